"""The paper's test sets: their folders, what is measured on them, the published numbers beside ours."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from osdface_core.errors import ConfigError, OSDFaceError
from osdface_core.files import writing

from .pairing import list_images
from .scores import Report
from .table import align

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
PRESETS: tuple[str, ...] = tuple(PUBLISHED["sets"])
COLUMNS: dict[str, list[str]] = PUBLISHED["columns"]
HIGHER = ("musiq", "clipiqa", "maniqa")
OURS = "this run"


@dataclass(frozen=True)
class PaperSet:
    """One of `PRESETS` on the disk.

    Attributes:
        lq, reference: folders of the inputs and, where there are some, of the clean faces.
        published: method -> column -> value.
        note: how many pictures are there, where it is not the whole set.
    """

    lq: Path
    reference: Path | None
    published: dict[str, dict[str, float]]
    note: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """List the metrics of its table, as `--metrics` names them."""
        wanted = [ours for column in self._columns for ours in COLUMNS[column]]
        return tuple(dict.fromkeys("fid" if name == "fid_stats" else name for name in wanted))

    @property
    def _columns(self) -> list[str]:
        return list(next(iter(self.published.values())))

    def rows(self, report: Report) -> dict[str, dict[str, list[float]]]:
        """Collect this run's and the published values; of LPIPS both, since its network is not stated."""
        whole, sets = report.summaries()[0], report.sets.get("", {})
        mine: dict[str, list[float]] = {}
        for column in self._columns:
            lines = [whole.line(name) for name in COLUMNS[column]]
            found = [line.restored.mean for line in lines if line]
            found += [sets[name]["restored"] for name in COLUMNS[column] if "restored" in sets.get(name, {})]
            mine[column] = [value for value in found if math.isfinite(value)]
        return {OURS: mine} | {m: {k: [v] for k, v in one.items()} for m, one in self.published.items()}

    def compare(self, report: Report) -> str:
        """Lay this run and the published numbers out as text."""
        header = ["", *(f"{name} {'↑' if name in HIGHER else '↓'}" for name in self._columns)]
        rows = self.rows(report).items()
        cells = [
            [m, *(" / ".join(f"{v:.4g}" for v in one[k]) or "-" for k in self._columns)] for m, one in rows
        ]
        title = f"published: {PUBLISHED['source']}" + (f"; {self.note}" if self.note else "")
        return "\n  ".join([title, *align([header, *cells])])

    def radar(self, report: Report, target: Path) -> None:
        """Draw the paper's Figure 2: each axis over the first published method, outside is better.

        Raises:
            OSDFaceError: matplotlib is missing, or the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise OSDFaceError(
                "radar.png needs matplotlib: pip install matplotlib; all else is written"
            ) from None
        rows = self.rows(report)
        best, names = next(one for m, one in rows.items() if m != OURS), self._columns
        angles = [2 * math.pi * i / len(names) for i in range(len(names) + 1)]
        figure = Figure(figsize=(6, 7), layout="constrained")
        axis = figure.add_subplot(projection="polar")
        for method, one in rows.items():
            ratios = [one[k][0] / best[k][0] if one[k] else math.nan for k in names]
            ratios = [r if k in HIGHER else 1 / r for k, r in zip(names, ratios, strict=True)]
            style = {"color": "black", "linewidth": 3, "zorder": 3} if method == OURS else {}
            axis.plot(angles, [*ratios, ratios[0]], marker="o", label=method, **style)
        axis.set_xticks(angles[:-1], names)
        figure.legend(loc="outside lower center", ncols=3)
        with writing(target, OSDFaceError) as temporary:
            figure.savefig(temporary, dpi=100, format="png")


def open_set(name: str, folder: Path) -> PaperSet:
    """Find a test set in a folder with `lq/` and, for celeba-test, `hq/`.

    Raises:
        ConfigError: the folders are not there; says how many pictures belong there and where they are from.
    """
    facts = PUBLISHED["sets"][name]
    lq, hq = folder / "lq", folder / "hq" if facts["reference"] else None
    if missing := [f"{path.name}/" for path in (lq, hq) if path and not path.is_dir()]:
        raise ConfigError(
            f"{folder} has no {' and no '.join(missing)}: {name} is {facts['count']:,} aligned faces "
            f"of 512 px in {'lq/ and hq/' if hq else 'lq/'}, from {facts['where']}"
        )
    count = len(list_images(lq))
    short = f"{count:,} of the set's {facts['count']:,} pictures, so not comparable"
    return PaperSet(lq, hq, facts["methods"], "" if count == facts["count"] else short)

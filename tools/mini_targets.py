"""Judge the embedded model: every target of docs/mini.md, measured and printed in one go.

    python tools/mini_targets.py VAL --weights WEIGHTS --out report/

VAL is a folder of clean aligned faces of people that training never saw. They are degraded with fixed seeds;
"input" is the degraded picture enlarged bicubically. Exit code 1 if a target that must hold does not.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from face_labels import write_labels
from gallery import compose
from torch import Tensor

from osdface_core import OSDFacePipeline
from osdface_core.cli.allocator import keep_freed_memory
from osdface_core.errors import OSDFaceError
from osdface_core.files import replacing, write_text
from osdface_core.loading import resolve
from osdface_trainer.evaluation import gallery, table
from osdface_trainer.evaluation.collect import EvaluationOptions
from osdface_trainer.evaluation.evaluate import degraded, eight_bit, evaluate_degraded, read_face
from osdface_trainer.evaluation.pairing import list_images, read_image
from osdface_trainer.evaluation.scores import (
    GroupSummary,
    Report,
    finite_values,
    to_json,
    worst_first,
)  # fmt: skip
from osdface_trainer.metrics import WeightFinder, load_metrics
from osdface_trainer.metrics.landmarks import five_points

LEVELS = ("mild", "medium", "severe")
METRICS = ("perceptual", "identity", "psnr", "hf_energy", "colour_shift")
WORST = 20  # pictures a level in worst.png
OTHERS = 4  # other faces' prompts that each face is tried with
Better = Literal["<=", ">="]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        value: measured; NaN where it could not be.
        must, aim: what has to hold and what is hoped for; None where there is no such limit.
        better: on which side of a limit it holds.
    """

    what: str
    value: float
    better: Better
    must: float
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """FAIL, must or aim: the highest that is reached."""
        if not self._reaches(self.must):
            return "FAIL"
        return "aim" if self.aim is not None and self._reaches(self.aim) else "must"

    def _reaches(self, limit: float) -> bool:
        return self.value <= limit if self.better == "<=" else self.value >= limit


def picture_targets(report: Report) -> list[Target]:
    """Set targets for the restored pictures by level, and for identity in each skin-tone group."""
    found = {(one.profile, one.group): one for one in report.summaries()}
    whole = {level: found.get((level, None)) for level in LEVELS}
    limits = {"mild": (0.78, 0.70), "medium": (0.64, 0.55), "severe": (0.66, 0.50)}
    targets = [
        Target(f"perceptual ratio, {level}", _means(whole[level], "perceptual")[2], "<=", *limits[level])
        for level in LEVELS
    ]
    for level in LEVELS:
        restored, before, _ = _means(whole[level], "psnr")
        least = -0.3 if level == "mild" else 0.0
        targets.append(Target(f"PSNR gain [dB], {level}", restored - before, ">=", least, 0.5))
    for (level, group), summary in found.items():
        if level in LEVELS and (group is None or group[0] == "skin"):
            restored, before, _ = _means(summary, "identity_cos")
            who = f", skin {group[1]} (n = {summary.n})" if group else ""
            least = -0.01 if level == "mild" else 0.0
            targets.append(Target(f"identity gain, {level}{who}", restored - before, ">=", least))
    for level in LEVELS:
        detail, _, _ = _means(whole[level], "hf_energy")
        targets.append(Target(f"detail, {level}, least", detail, ">=", 0.6, 0.8))
        targets.append(Target(f"detail, {level}, most", detail, "<=", 1.2, 1.2))
    return targets


def _means(summary: GroupSummary | None, metric: str) -> tuple[float, float, float]:
    """Return the means of restored and input and their ratio; NaN where not measured."""
    line = summary.line(metric) if summary else None
    found = (line.restored, line.input, line.ratio) if line else (None, None, None)
    restored, before, ratio = (one.mean if one else math.nan for one in found)
    return restored, before, ratio


Files = dict[str, Path]
Score = Callable[[Tensor, dict[str, Tensor]], dict[str, dict[str, list[float]]]]


def spread(files: Files, count: int) -> Files:
    """Take so many files, spread over the folder."""
    names = list(files)
    count = min(count, len(names))
    return {name: files[name] for name in (names[i * len(names) // count] for i in range(count))}


def clean_and_degraded(files: Files) -> tuple[Tensor, Tensor]:
    """Read (N, 3, 512, 512) in [0, 1], and the same as `evaluate_degraded` degrades it to medium."""
    clean = torch.stack([read_face(file)[0] for file in files.values()])
    return clean, eight_bit(degraded(clean, list(files), "medium", 0))


def clean_latent_target(pipeline: OSDFacePipeline, files: Files, score: Score, batch: int) -> Target:
    """Test whether the decoder paints what latents show: the clean face's beside a degraded guide."""
    painted, inputs = [], []
    codec = pipeline.backbone.codec
    for clean, lq in zip(*(faces.split(batch) for faces in clean_and_degraded(files)), strict=True):
        with torch.inference_mode():
            decoded = codec.decode(codec.encode(clean * 2 - 1), lq * 2 - 1).float()
        found = score(clean, {"decoded": eight_bit(decoded / 2 + 0.5), "input": lq})
        painted += found["decoded"]["perceptual"]
        inputs += found["input"]["perceptual"]
    ratio = float(np.mean(painted) / np.mean(inputs))
    return Target("clean latents + degraded guide, perceptual ratio, medium", ratio, "<=", 0.45, 0.30)


def prompt_targets(pipeline: OSDFacePipeline, files: Files, score: Score, batch: int) -> list[Target]:
    """Test whether the prompt is heard: the own one against those of `OTHERS` other faces, paired by face.

    Each face's scores with other prompts are averaged first, which takes out how unlike one other face
    happens to be. The other faces lie equally far apart in the folder.
    """
    clean, lq = clean_and_degraded(files)
    prompts = torch.cat([pipeline.encode_prompt(part) for part in lq.split(batch)])
    away = sorted({max(1, len(files) * k // (OTHERS + 1)) for k in range(1, OTHERS + 1)})
    given = [prompts.roll(steps, dims=0) for steps in (0, *away)]
    columns: dict[tuple[str, str], list[float]] = {}
    changes: list[float] = []
    for part in torch.arange(len(lq)).split(batch):
        own, *foreign = [eight_bit(pipeline.restore(lq[part], prompt=one[part])) for one in given]
        for one in foreign:
            changes += ((own - one).abs().mean((1, 2, 3)) * 255).tolist()
        scores = score(clean[part], {"own": own} | {str(k): one for k, one in enumerate(foreign)})
        for metric in ("perceptual", "identity_cos"):
            columns.setdefault((metric, "own"), []).extend(scores["own"][metric])
            found = [scores[str(k)][metric] for k in range(len(away))]
            columns.setdefault((metric, "other"), []).extend(np.mean(found, axis=0).tolist())
    return [
        Target("another's prompt, change of the picture [levels of 255]", float(np.mean(changes)), ">=", 1.0),
        *_paired("perceptual", columns["perceptual", "other"], columns["perceptual", "own"]),
        *_paired("identity", columns["identity_cos", "own"], columns["identity_cos", "other"]),
    ]


def _paired(metric: str, larger: list[float], smaller: list[float]) -> list[Target]:
    """A one-sided paired t test of larger > smaller, and by how much."""
    from scipy.stats import ttest_rel

    a, b = np.asarray(larger), np.asarray(smaller)
    kept = np.isfinite(a) & np.isfinite(b)
    p = float(ttest_rel(a[kept], b[kept], alternative="greater").pvalue)  # NaN where the two are equal
    worse = float(a[kept].mean() / b[kept].mean() - 1)
    return [
        Target(f"another's prompt, worse {metric}, p of a paired t test (n = {kept.sum()})", p, "<=", 0.01),
        Target(f"another's prompt, worse {metric}, relative", worse, ">=", 0.0, 0.05),
    ]


def landmark_targets(files: Files, restored: Path) -> list[Target]:
    """Test whether a severely degraded face becomes one with eyes, nose and mouth in their places.

    Args:
        restored: folder with `severe/restored` and `severe/lq`, as `evaluate_degraded` saves them.
    """
    errors: dict[str, list[float]] = {"restored": [], "lq": []}
    for name, file in files.items():
        truth = five_points(read_face(file)[0])
        if truth.isnan().any():
            continue
        for side, found in errors.items():
            points = five_points(read_image(restored / "severe" / side / f"{name}.png"))
            found.append(float((points - truth).norm(dim=1).mean() / (truth[1] - truth[0]).norm()))
    share, error = found_and_error(errors["restored"])
    before = "input: {:.0%}, {:.1%}".format(*found_and_error(errors["lq"]))
    return [
        Target(f"face found, severe (n = {len(errors['restored'])}; {before})", share, ">=", 0.95),
        Target("landmarks off, severe [eye distances]", error, "<=", 0.05),
    ]


def found_and_error(errors: Sequence[float]) -> tuple[float, float]:
    """Share of the faces that were found, and the mean error of those."""
    known = [error for error in errors if math.isfinite(error)]
    return (len(known) / len(errors), float(np.mean(known))) if known else (0.0, math.nan)


def cost_targets(pipeline: OSDFacePipeline, model: str, face: Tensor) -> list[Target]:
    """Time one face: two threads, float32, plain engine, median of five [s]; note the file's size."""
    pipeline.to(torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    pipeline.use_engine("eager")
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        pipeline.restore(face)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    path = resolve(model)
    size = path.stat().st_size / 1e6 if path.is_file() else math.nan
    return [
        Target("one face of 512 px, 2 threads, eager [s]", float(np.median(seconds[1:])), "<=", 2.2, 1.2),
        Target("file [MB]", size, "<=", 48.0),
    ]


def as_text(targets: Sequence[Target]) -> str:
    """Write a table with one line per target, and how many are reached."""
    rows = [["target", "measured", "must", "aim", ""]]
    for one in targets:
        value = "not measured" if math.isnan(one.value) else f"{one.value:.3g}"
        aim = "" if one.aim is None else f"{one.better} {one.aim:g}"
        rows.append([one.what, value, f"{one.better} {one.must:g}", aim, one.verdict])
    verdicts = [one.verdict for one in targets]
    reached = len(verdicts) - verdicts.count("FAIL")
    return "\n".join([*table.align(rows), f"{reached} of {len(verdicts)} musts reached"])


def write_worst(path: Path, report: Report) -> None:
    """Draw the worst pictures of each level, two triples a line: input, restored, reference."""
    column = report.column()
    if column is None:
        raise OSDFaceError("no picture could be measured")
    levels = ([row for row in report.rows if row.profile == level] for level in LEVELS)
    worst = [row.thumbs for rows in levels for row in worst_first(rows, column)[:WORST]]
    pictures = [io.BytesIO(thumbs[side]) for thumbs in worst for side in ("input", "restored", "reference")]
    with replacing(path) as temporary:
        compose([pictures[start : start + 6] for start in range(0, len(pictures), 6)]).save(temporary)


def measure(args: argparse.Namespace) -> list[Target]:
    """Measure every target; pictures, tables and the gallery go to `args.out`."""
    pipeline = OSDFacePipeline.from_pretrained(args.model, device="cpu", dtype=args.dtype, engine="eager")
    files = dict(list(list_images(args.faces).items())[: args.limit or None])
    write_labels(files, args.out / "labels.csv")
    options = EvaluationOptions(
        METRICS, args.weights, manifest=args.out / "labels.csv", group_by=("skin", "pose"), device="cpu",
        batch_size=args.batch_size, limit=args.limit or None, progress=not args.quiet,
    )  # fmt: skip
    report = evaluate_degraded(args.faces, LEVELS, pipeline.restore, save=args.out, options=options)
    metrics = load_metrics(("perceptual", "identity"), WeightFinder(args.weights), torch.device("cpu"))
    if metrics.missing:
        raise OSDFaceError("; ".join(metrics.missing.values()))
    paired = spread(files, args.pairs)
    targets = [
        *picture_targets(report),
        clean_latent_target(pipeline, paired, metrics.score, args.batch_size),
        *prompt_targets(pipeline, paired, metrics.score, args.batch_size),
        *landmark_targets(files, args.out),
        *cost_targets(pipeline, args.model, read_face(next(iter(files.values())))[0][None]),
    ]
    text = as_text(targets)
    rows = [{**finite_values(vars(one)), "verdict": one.verdict} for one in targets]
    write_text(args.out / "report.json", to_json(report, {"targets": rows}))
    write_text(args.out / "report.txt", f"{table.to_text(report)}\n{text}\n")
    write_text(args.out / "gallery.html", gallery.render(report, heading=args.model, verdict=text))
    write_worst(args.out / "worst.png", report)
    return targets


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if every must is reached, 1 if not, 2 for bad input."""
    parser = argparse.ArgumentParser("mini_targets", description="Every target of the embedded model.")
    parser.add_argument("faces", type=Path, help="folder of clean aligned faces that training never saw")
    parser.add_argument("--model", default="mini", help="mini or a checkpoint")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="SqueezeNet 1.0 and MobileFaceNet")
    parser.add_argument("--out", type=Path, default=Path("mini_targets"), metavar="DIR")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only so many faces (all)")
    parser.add_argument("--pairs", type=int, default=50, metavar="N", help="faces of the prompt's test (50)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of all but the time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        targets = measure(args)
    except OSDFaceError as error:
        print(f"mini_targets: {error}", file=sys.stderr)
        return 2
    print(as_text(targets))
    return 1 if any(one.verdict == "FAIL" for one in targets) else 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())

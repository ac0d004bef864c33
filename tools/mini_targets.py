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
from PIL import Image
from torch import Tensor

from osdface_core import OSDFacePipeline
from osdface_core.errors import OSDFaceError
from osdface_core.faces import detect
from osdface_core.files import replacing
from osdface_core.loading import resolve
from osdface_trainer.data.degrade import degrade
from osdface_trainer.evaluation import gallery, table
from osdface_trainer.evaluation.evaluate import EvaluationOptions, eight_bit, evaluate_degraded, face_seed
from osdface_trainer.evaluation.intervals import finite
from osdface_trainer.evaluation.pairing import list_images, read_image, resize_bicubic
from osdface_trainer.evaluation.scores import GroupSummary, Report, to_json, worst_first, write_text
from osdface_trainer.metrics import WeightFinder, load_metrics

LEVELS = ("mild", "medium", "severe")
METRICS = ("perceptual", "identity", "psnr", "hf_energy", "colour_shift")
SIDE = 512
WORST, CELL = 20, 192  # pictures a level in worst.png, and the side of one [px]
Better = Literal["<=", ">="]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        value: measured; None where it could not be.
        must, aim: what has to hold and what is hoped for; None where there is no such limit.
        better: on which side of a limit it holds.
    """

    what: str
    value: float | None
    better: Better
    must: float
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """FAIL, must or aim: the highest that is reached."""
        if not self._reaches(self.must):
            return "FAIL"
        return "aim" if self.aim is not None and self._reaches(self.aim) else "must"

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types; NaN is null."""
        value = None if self.value is None else finite(self.value)
        return {**vars(self), "value": value, "verdict": self.verdict}

    def _reaches(self, limit: float) -> bool:
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= limit if self.better == "<=" else self.value >= limit


def picture_targets(report: Report) -> list[Target]:
    """Set targets for the restored pictures by level, and for identity in each skin-tone group."""
    found = {(one.profile, one.group): one for one in report.summaries()}
    whole = {level: found.get((level, None)) for level in LEVELS}
    limits = {"mild": (0.78, 0.70), "medium": (0.64, 0.55), "severe": (0.66, 0.50)}
    targets = [
        Target(f"perceptual ratio, {level}", _ratio(whole[level], "perceptual"), "<=", *limits[level])
        for level in LEVELS
    ]
    for level in LEVELS:
        least = -0.3 if level == "mild" else 0.0
        targets.append(Target(f"PSNR gain [dB], {level}", _gain(whole[level], "psnr"), ">=", least, 0.5))
    for (level, group), summary in found.items():
        if level in LEVELS and (group is None or group[0] == "skin"):
            who = f", skin {group[1]} (n = {summary.n})" if group else ""
            least = -0.01 if level == "mild" else 0.0
            targets.append(
                Target(f"identity gain, {level}{who}", _gain(summary, "identity_cos"), ">=", least)
            )
    for level in LEVELS:
        detail = _value(whole[level], "hf_energy")
        targets.append(Target(f"detail, {level}, least", detail, ">=", 0.6, 0.8))
        targets.append(Target(f"detail, {level}, most", detail, "<=", 1.2, 1.2))
    return targets


def _value(summary: GroupSummary | None, metric: str) -> float | None:
    line = summary.line(metric) if summary else None
    return line.restored.mean if line else None


def _gain(summary: GroupSummary | None, metric: str) -> float | None:
    line = summary.line(metric) if summary else None
    return line.restored.mean - line.input.mean if line and line.input else None


def _ratio(summary: GroupSummary | None, metric: str) -> float | None:
    line = summary.line(metric) if summary else None
    return line.ratio.mean if line and line.ratio else None


class Faces:
    """Clean faces and the same, degraded at one level, in batches.

    Args:
        files: by stem, of clean aligned faces.
        limit: only so many, spread over the folder; 0 = all.
    """

    def __init__(self, files: dict[str, Path], limit: int = 0) -> None:
        names = list(files)
        count = min(limit or len(names), len(names))
        self.names = [names[i * len(names) // count] for i in range(count)]
        self.files = files

    def clean(self, names: Sequence[str]) -> Tensor:
        """Read clean faces: (B, 3, 512, 512) in [0, 1]."""
        faces = (resize_bicubic(read_image(self.files[name]), (SIDE, SIDE)) for name in names)
        return eight_bit(torch.stack(list(faces)))

    def degraded(self, clean: Tensor, names: Sequence[str], level: str) -> Tensor:
        """Make the pictures that `evaluate_degraded` makes of them."""
        return eight_bit(degrade(clean, level, [face_seed(name, 0) for name in names], enlarge="bicubic"))

    def chunks(self, size: int) -> list[list[str]]:
        return [self.names[start : start + size] for start in range(0, len(self.names), size)]


Score = Callable[[Tensor, dict[str, Tensor]], dict[str, dict[str, list[float]]]]


def clean_latent_target(pipeline: OSDFacePipeline, faces: Faces, score: Score, batch: int) -> Target:
    """Test whether the decoder paints what latents show: the clean face's beside a degraded guide."""
    painted, inputs = [], []
    codec = pipeline.backbone.codec
    for names in faces.chunks(batch):
        clean = faces.clean(names)
        lq = faces.degraded(clean, names, "medium")
        with torch.inference_mode():
            decoded = codec.decode(codec.encode(clean * 2 - 1), lq * 2 - 1).float()
        found = score(clean, {"decoded": eight_bit(decoded / 2 + 0.5), "input": lq})
        painted += found["decoded"]["perceptual"]
        inputs += found["input"]["perceptual"]
    value = float(np.mean(painted) / np.mean(inputs)) if inputs else None
    return Target("clean latents + degraded guide, perceptual ratio, medium", value, "<=", 0.45, 0.30)


def prompt_targets(pipeline: OSDFacePipeline, faces: Faces, score: Score, batch: int) -> list[Target]:
    """Test whether the prompt is heard: the own one against that of a face half the folder away, paired."""
    clean = faces.clean(faces.names)
    lq = faces.degraded(clean, faces.names, "medium")
    prompts = torch.cat([pipeline.encode_prompt(part) for part in lq.split(batch)])
    others = prompts.roll(len(prompts) // 2, dims=0)
    columns: dict[tuple[str, str], list[float]] = {}
    changes = []
    for part in torch.arange(len(lq)).split(batch):
        own = eight_bit(pipeline.restore(lq[part], prompt=prompts[part]))
        other = eight_bit(pipeline.restore(lq[part], prompt=others[part]))
        changes += ((own - other).abs().mean((1, 2, 3)) * 255).tolist()
        for side, scores in score(clean[part], {"own": own, "other": other}).items():
            for metric in ("perceptual", "identity_cos"):
                columns.setdefault((metric, side), []).extend(scores[metric])
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


def landmark_targets(faces: Faces, restored: Path) -> list[Target]:
    """Test whether a severely degraded face becomes one with eyes, nose and mouth in their places.

    Args:
        restored: folder with `severe/restored` and `severe/lq`, as `evaluate_degraded` saves them.
    """
    errors: dict[str, list[float]] = {"restored": [], "lq": []}
    for name in faces.names:
        truth = five_points(faces.clean([name])[0])
        if truth is None:
            continue
        eyes = float(np.linalg.norm(truth[1] - truth[0]))
        for side, found in errors.items():
            points = five_points(read_image(restored / "severe" / side / f"{name}.png"))
            off = math.nan if points is None else np.linalg.norm(points - truth, axis=1).mean() / eyes
            found.append(float(off))
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


def five_points(face: Tensor) -> np.ndarray | None:
    """Find eyes, nose, mouth corners of the face nearest to the middle: (5, 2) [px], or None."""
    found = [np.asarray(one.landmarks) for one in detect(face, "mtcnn", min_face=SIDE // 5)]
    return min(found, key=lambda points: float(np.linalg.norm(points.mean(0) - SIDE / 2)), default=None)


def cost_targets(pipeline: OSDFacePipeline, model: str, face: Tensor) -> list[Target]:
    """Time one face on two threads with the plain engine, median of five [s]; note the file's size."""
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
    size = path.stat().st_size / 1e6 if path.is_file() else None
    return [
        Target("one face of 512 px, 2 threads, eager [s]", float(np.median(seconds[1:])), "<=", 2.2, 1.2),
        Target("file [MB]", size, "<=", 48.0),
    ]


def as_text(targets: Sequence[Target]) -> str:
    """Write a table with one line per target, and how many are reached."""
    rows = [("target", "measured", "must", "aim", "")]
    for one in targets:
        value = "not measured" if one.value is None else f"{one.value:.3g}"
        aim = "" if one.aim is None else f"{one.better} {one.aim:g}"
        rows.append((one.what, value, f"{one.better} {one.must:g}", aim, one.verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    verdicts = [one.verdict for one in targets]
    reached = len(verdicts) - verdicts.count("FAIL")
    return "\n".join([*lines, f"{reached} of {len(verdicts)} musts reached"])


def write_worst(path: Path, report: Report) -> None:
    """Draw the worst pictures of each level, two triples a line: input, restored, reference."""
    column = report.column()
    if column is None:
        raise OSDFaceError("no picture could be measured")
    levels = ([row for row in report.rows if row.profile == level] for level in LEVELS)
    triples = [row.thumbs for rows in levels for row in worst_first(rows, column)[:WORST]]
    sheet = Image.new("RGB", (6 * CELL, -(-len(triples) // 2) * CELL), "white")
    for number, thumbs in enumerate(triples):
        for place, side in enumerate(("input", "restored", "reference")):
            with Image.open(io.BytesIO(thumbs[side])) as picture:
                corner = ((number % 2 * 3 + place) * CELL, number // 2 * CELL)
                sheet.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), corner)
    with replacing(path) as temporary:
        sheet.save(temporary)


def measure(args: argparse.Namespace) -> list[Target]:
    """Measure every target; pictures, tables and the gallery go to `args.out`."""
    pipeline = OSDFacePipeline.from_pretrained(args.model, device="cpu", dtype="fp32", engine="eager")
    files = list_images(args.faces)
    chosen = dict(list(files.items())[: args.limit or None])
    faces = Faces(chosen)
    write_labels(chosen, args.out / "labels.csv")
    options = EvaluationOptions(
        METRICS, args.weights, manifest=args.out / "labels.csv", group_by=("skin", "pose"), device="cpu",
        batch_size=args.batch_size, limit=args.limit or None, progress=not args.quiet,
    )  # fmt: skip
    report = evaluate_degraded(args.faces, LEVELS, pipeline.restore, save=args.out, options=options)
    metrics = load_metrics(("perceptual", "identity"), WeightFinder(args.weights), torch.device("cpu"))
    if metrics.missing:
        raise OSDFaceError("; ".join(metrics.missing.values()))
    paired = Faces(chosen, args.pairs)
    targets = [
        *picture_targets(report),
        clean_latent_target(pipeline, paired, metrics.score, args.batch_size),
        *prompt_targets(pipeline, paired, metrics.score, args.batch_size),
        *landmark_targets(faces, args.out),
        *cost_targets(pipeline, args.model, faces.clean(faces.names[:1])),
    ]
    text = as_text(targets)
    rows = [one.to_dict() for one in targets]
    write_text(args.out / "report.json", to_json(report, {"targets": rows}))
    write_text(args.out / "report.txt", f"{table.to_text(report)}\n{text}\n")
    gallery.write_gallery(args.out / "gallery.html", report, heading=args.model, verdict=text)
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
    sys.exit(main())

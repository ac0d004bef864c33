"""The arguments of `osdface evaluate`, and what is printed and written at the end."""

import argparse
from pathlib import Path
from typing import Any, get_args

from osdface_core.console import say
from osdface_core.errors import ConfigError, OSDFaceError
from osdface_core.files import write_text

from ..data.degrade import Enlarge
from ..data.degrade_profiles import named_profile
from ..metrics import check_names
from . import gallery, table
from .collect import EvaluationOptions
from .evaluate import Restore, evaluate, evaluate_degraded
from .presets import PRESETS, PaperSet, open_set
from .scores import Report, to_json

EXAMPLES = """examples:
  osdface evaluate restored/ reference/ --lq input/ --html report.html
  osdface evaluate --degrade mild,medium,severe clean_faces/ --model mini --out report/
  osdface evaluate restored/ celeba-test/ --preset celeba-test --fid-stats ffhq.npz --out report/
  osdface evaluate ffhq/ --metrics fid --write-fid-stats ffhq.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface evaluate` on `parser`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "restored", type=Path, help="folder of restored faces; with --degrade: of clean faces"
    )
    parser.add_argument(
        "reference", type=Path, nargs="?", help="folder of clean faces with the same file stems"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="a test set of the paper: the second folder holds lq/ (and hq/)"
    )
    parser.add_argument(
        "--lq", type=Path, metavar="DIR", help="the low-quality inputs, measured beside (bicubic)"
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--metrics", metavar="A,B", help="only these; default: all that can be computed")
    measuring.add_argument(
        "--weights", type=Path, metavar="DIR", help="network weights of the metrics; also $OSDFACE_WEIGHTS"
    )
    measuring.add_argument(
        "--fid-stats", type=Path, metavar="FILE", help="stored statistics (e.g. of FFHQ) for a further FID"
    )
    measuring.add_argument(
        "--write-fid-stats", type=Path, metavar="NPZ", help="keep the restored folder's, for --fid-stats"
    )
    measuring.add_argument("--manifest", type=Path, metavar="CSV", help="table with a column 'file'")
    measuring.add_argument(
        "--group-by", metavar="COLUMN", help="means per value of these manifest columns (comma-separated)"
    )
    measuring.add_argument("--device", default="auto")
    measuring.add_argument("--batch-size", type=int, default=4, metavar="N")
    measuring.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    measuring.add_argument("--seed", type=int, default=0, help="of degradations and bootstrap")
    measuring.add_argument("--quiet", action="store_true", help="no progress bar")
    model = parser.add_argument_group("degrade and restore clean faces")
    model.add_argument(
        "--degrade", metavar="PROFILE[,PROFILE]", help="e.g. mild,medium,severe; identity is no degradation"
    )
    add_model_arguments(model)
    model.add_argument(
        "--enlarge", default="bicubic", choices=get_args(Enlarge), help="how the model's input is enlarged"
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument("--json", type=Path, metavar="FILE", help="everything, per image and in summary")
    writing.add_argument(
        "--html", type=Path, metavar="FILE", help="gallery with sliders; one file that opens offline"
    )
    writing.add_argument("--sort", metavar="COLUMN", help="what ranks images in the gallery, worst first")
    writing.add_argument("--out", type=Path, metavar="DIR", help="report.json, report.txt and gallery.html")
    writing.add_argument(
        "--save-images", action="store_true", help="with --out and --degrade: the LQ and restored PNGs too"
    )


def add_model_arguments(group: Any) -> None:
    """Declare the model that restores, and how."""
    group.add_argument("--model", default="mini", help="mini, a checkpoint or a released folder")
    group.add_argument(
        "--base", type=Path, metavar="PATH", help="Stable Diffusion 2.1-base, for LoRA checkpoints"
    )
    group.add_argument("--dtype", default="auto", help="auto, fp32, fp16 or bf16")
    group.add_argument("--strength", type=float, default=1.0)
    group.add_argument("--color-fix", default="none", help="none, adain, wavelet or luma")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files.

    Returns:
        0; 1 if an image could not be evaluated.
    Raises:
        OSDFaceError: bad folders or options, or a file that cannot be written.
    """
    outputs = _outputs(args)
    preset = _preset(args)
    report = _evaluate(args, thumbs=bool(outputs["html"]))
    if not report.rows:
        raise OSDFaceError(
            f"no image could be evaluated: {next(iter(report.failed.values()), 'the folder is empty')}"
        )
    _check_sort(report, args.sort)
    if preset:
        report.notes.append(preset.compare(report))
    text = table.to_text(report)
    say(text.removesuffix("\n"))
    if outputs["text"]:
        write_text(outputs["text"], text)
    if outputs["json"]:
        write_text(outputs["json"], to_json(report))
    if outputs["html"]:
        write_text(outputs["html"], gallery.render(report, heading=_heading(args), sort=args.sort))
    if preset and args.out:
        preset.radar(report, args.out / "radar.png")
    return 1 if report.failed else 0


def _preset(args: argparse.Namespace) -> PaperSet | None:
    """Open the test set of `--preset`, and evaluate what it says."""
    if not args.preset:
        return None
    if args.degrade or args.lq or not args.reference:
        raise ConfigError("--preset needs the restored folder and the test set's, and no --degrade or --lq")
    preset = open_set(args.preset, args.reference)
    args.lq, args.reference = preset.lq, preset.reference
    args.metrics = args.metrics or ",".join(preset.metrics)
    return preset


def _outputs(args: argparse.Namespace) -> dict[str, Path | None]:
    """Say where each report goes; folders are made before the work, so that a bad path is found early."""
    out: Path | None = args.out
    paths: dict[str, Path | None] = {
        "json": args.json or (out and out / "report.json"),
        "text": out and out / "report.txt",
        "html": args.html or (out and out / "gallery.html"),
    }
    for path in filter(None, paths.values()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({error.strerror}): choose another place") from error
    return paths


def _evaluate(args: argparse.Namespace, thumbs: bool) -> Report:
    metrics = _names(args.metrics)
    options = EvaluationOptions(
        metrics=metrics, weights=args.weights, fid_stats=args.fid_stats,
        write_fid_stats=args.write_fid_stats,
        manifest=args.manifest, group_by=_names(args.group_by) or (),
        device=args.device, batch_size=args.batch_size, limit=args.limit, seed=args.seed,
        thumbs=thumbs, progress=not args.quiet,
    )  # fmt: skip
    if not args.degrade:
        return evaluate(args.restored, args.reference, lq=args.lq, options=options)
    if args.reference or args.lq or args.write_fid_stats:
        raise ConfigError(
            "--degrade makes inputs and references itself: give one folder of clean faces, no --lq, and "
            "no --write-fid-stats"
        )
    profiles = _names(args.degrade) or ()
    save = args.out if args.save_images else None
    if args.save_images and not save:
        raise ConfigError("--save-images needs --out DIR")
    check_names(metrics or ())  # before the model is loaded, which may take a while
    for profile in profiles:
        named_profile(profile)
    restore = restorer(args)
    report = evaluate_degraded(
        args.restored, profiles, restore, enlarge=args.enlarge, save=save, options=options
    )
    report.settings |= {"model": str(args.model), "strength": args.strength, "color_fix": args.color_fix}
    return report


def restorer(args: argparse.Namespace) -> Restore:
    """Load the model that the arguments name, as a function of faces."""
    from osdface_core import OSDFacePipeline

    pipeline = OSDFacePipeline.from_pretrained(
        args.model, base=args.base, device=args.device, dtype=args.dtype
    )
    return lambda faces: pipeline.restore(faces, strength=args.strength, color_fix=args.color_fix)


def _names(text: str | None) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    return names or None


def _check_sort(report: Report, column: str | None) -> None:
    if column and not report.column(column):
        known = ", ".join(one.name for one in report.columns)
        raise ConfigError(f"--sort {column}: no such column was measured, choose from {known}")


def _heading(args: argparse.Namespace) -> str:
    if args.degrade:
        return f"{args.model} on {args.restored.name}"
    return f"{args.restored.name} against {args.reference.name}" if args.reference else args.restored.name

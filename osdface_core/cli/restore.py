"""`osdface restore`: its arguments, the loop over the inputs, and what is said about each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from .. import __version__
from ..errors import ConfigError, ImageError, OSDFaceError
from ..options import Codec, ColorFix, Detector, Dtype, Engine, PasteMode

if TYPE_CHECKING:  # PyTorch and all that needs it load in the functions: --help answers at once
    from ..pipeline import OSDFacePipeline
    from .inputs import Guard, Job, Missing

ORDERS = ("area", "left_to_right", "top_to_bottom", "score")
# Arguments that `photo.restore_photo` takes under another name.
RENAMED = {"paste": "paste_mode"}
MODEL_OPTIONS = ("aligned", "base", "lora_scale", "codec")
PHOTO_OPTIONS = (
    "detector", "detector_dir", "faces", "min_face", "max_face", "max_faces", "order", "strength", "timestep",
    "color_fix", "upscale", "upscale_model", "feather", "paste", "identity", "batch_size",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface restore` on `parser`."""
    parser.epilog = (
        "Exit status: 0 all done, 1 some inputs failed (each is named, the others are done), 2 wrong usage."
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photos, folders (with all below them) or globs"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="a file for one photo, else a folder"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_model_arguments(parser)
    _add_face_arguments(parser.add_argument_group("faces"))
    _add_look_arguments(parser.add_argument_group("look"))
    _add_writing_arguments(parser.add_argument_group("further results"))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose and place the model; `load` takes them."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="mini", metavar="mini|PATH", help="a checkpoint or a released folder (mini)"
    )
    group.add_argument(
        "--base", metavar="PATH", help="Stable Diffusion 2.1-base, for checkpoints that are a LoRA of it"
    )
    group.add_argument("--lora-scale", type=float, default=1.0, metavar="F", help="strength of that LoRA (1)")
    group.add_argument(
        "--lora", choices=("merged", "live"), default="merged", help="how it is applied (merged)"
    )
    group.add_argument(
        "--codec",
        choices=get_args(Codec),
        default="own",
        help="taesd: quicker, softer previews with --base (own)",
    )
    group.add_argument(
        "--codec-dir", metavar="DIR", help="folder with taesd_encoder.safetensors, taesd_decoder.safetensors"
    )
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", choices=get_args(Dtype), default="auto")
    group.add_argument("--engine", choices=get_args(Engine), default="auto", help="how it runs (auto)")


def load(args: argparse.Namespace) -> OSDFacePipeline:
    """The pipeline that `add_model_arguments` describe. Raises CheckpointError."""
    from ..pipeline import OSDFacePipeline

    return OSDFacePipeline.from_pretrained(
        args.model,
        base=args.base,
        lora_scale=args.lora_scale,
        lora=args.lora,
        device=args.device,
        dtype=args.dtype,
        engine=args.engine,
        codec=args.codec,
        codec_dir=args.codec_dir,
    )


def _add_face_arguments(group: Any) -> None:
    group.add_argument(
        "--aligned", action="store_true", help="inputs are aligned face crops; square ones give 512x512"
    )
    group.add_argument(
        "--detector",
        choices=get_args(Detector),
        default="auto",
        help="auto takes RetinaFace where it is at hand",
    )
    group.add_argument("--detector-dir", metavar="DIR", help="folder with RetinaFace weights")
    group.add_argument(
        "--faces", type=_faces, default="all", metavar="WHICH", help="all, largest, center, or 0,2,…"
    )
    group.add_argument(
        "--min-face", type=_at_least(0), default=0, metavar="PX", help="leave smaller faces alone"
    )
    group.add_argument("--max-face", type=_at_least(0), metavar="PX", help="leave larger faces alone")
    group.add_argument("--max-faces", type=_count, metavar="N", help="at most so many, the first in --order")
    group.add_argument("--order", choices=ORDERS, default="area")


def _add_look_arguments(group: Any) -> None:
    group.add_argument(
        "--strength", type=_between(0, 1), default=1.0, metavar="0..1", help="0 the input, 1 restored"
    )
    group.add_argument(
        "--timestep", type=_timestep, metavar="0..999", help="lower keeps more, higher invents more"
    )
    group.add_argument("--color-fix", choices=get_args(ColorFix), default="none")
    group.add_argument(
        "--upscale", type=_between(1, 16), default=1.0, metavar="F", help="enlarge the photo first"
    )
    group.add_argument(
        "--upscale-model", metavar="FILE", help="a super-resolution model for that, through spandrel"
    )
    group.add_argument(
        "--paste",
        choices=get_args(PasteMode),
        default="residual",
        help="residual adds what changed and keeps detail finer than 512 px; replace covers the face",
    )
    group.add_argument(
        "--feather", type=_between(0.001, 1), default=0.2, metavar="F", help="soft border of a face (0.2)"
    )
    group.add_argument(
        "--batch-size", type=_count, metavar="N", help="faces at once; default: what fits in memory"
    )


def _add_writing_arguments(group: Any) -> None:
    group.add_argument("--crops", type=Path, metavar="DIR", help="aligned faces before and after, as PNG")
    group.add_argument("--compare", action="store_true", help="a before/after PNG beside each result")
    group.add_argument("--json", type=Path, metavar="FILE", help="report: inputs, outputs, faces, errors")
    group.add_argument(
        "--identity", metavar="FILE", help="weights of a recognition network, for identity scores"
    )


def run(args: argparse.Namespace) -> int:
    """Restore all inputs.

    Returns: 0 or 1, see the parser's epilog.
    Raises:
        ConfigError: the options or paths do not fit together; nothing was touched.
        CheckpointError: the model cannot be loaded.
    """
    from .inputs import Guard, plan
    from .report import save_json

    if args.aligned and (args.upscale != 1.0 or args.upscale_model):
        raise ConfigError("--aligned gives 512x512 faces; leave --upscale out")
    jobs, missing = plan(args.inputs, args.out.expanduser())
    guard = Guard(job.source for job in jobs)
    _refuse_overwriting(jobs, args, guard)
    for item in missing:
        _say(f"{item.source}: {item.reason}", sys.stderr)
    records = [_failure(item) for item in missing if item.failed]
    left_out = [f"{item.source}: {item.reason}" for item in missing if not item.failed]
    try:
        if jobs:
            _restore_all(load(args), jobs, args, guard, records)
    finally:
        if args.json:
            save_json(_report(args, records, left_out), args.json)
    return 1 if any("error" in record for record in records) else 0


def _restore_all(
    pipeline: OSDFacePipeline,
    jobs: list[Job],
    args: argparse.Namespace,
    guard: Guard,
    records: list[dict[str, Any]],
) -> None:
    """A photo that fails is named and the others go on; three are in memory at a time at most."""
    from .batch import FileRestorer, Plan

    options = {RENAMED.get(name, name): getattr(args, name) for name in PHOTO_OPTIONS}
    how = Plan(options, args.aligned, args.crops, args.compare)
    single = len(jobs) == 1
    if args.detector == "auto" and (detector := _detector(args)) and not args.quiet:
        _say(f"face detector: {detector['name']} ({detector['reason']})", sys.stderr)
    hidden = True if args.quiet else None  # None: hidden where stderr is no terminal
    with tqdm(total=len(jobs), unit="face" if single else "photo", disable=hidden, file=sys.stderr) as bar:

        def tell(job: Job, result: Any) -> None:
            if isinstance(result, Exception):
                result = {"input": str(job.source), "error": _reason(result)}
                _say(f"{job.source}: {result['error']}", sys.stderr)
            else:
                _say(_line(result), sys.stdout)
                for note in result["notes"]:
                    _say(f"{job.source}: {note}", sys.stderr)
            records.append(result)
            if not single:
                bar.update()

        restorer = FileRestorer(pipeline, how, guard, _faces_on(bar) if single else None)
        runner_for(pipeline, jobs)(jobs, restorer, tell)


def runner_for(pipeline: OSDFacePipeline, jobs: Sequence[Job]) -> Callable[..., None]:
    """Beside PyTorch's own layers the other steps compete for the CPU's cores: 1.54 times as long."""
    from .batch import one_by_one, overlapped

    return overlapped if pipeline.engine.overlaps and len(jobs) > 1 else one_by_one


def _faces_on(bar: Any) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.refresh()

    return progress


def _refuse_overwriting(jobs: list[Job], args: argparse.Namespace, guard: Guard) -> None:
    """Before anything is read: no result may take the place of an input or of another result."""
    from .batch import compare_path

    targets = {job.target for job in jobs}
    for job in jobs:
        if guard.refused(job.target):
            raise ConfigError(
                f"{job.target} is an input and is never overwritten; give another place with -o"
            )
        if args.compare and (guard.refused(compare_path(job.target)) or compare_path(job.target) in targets):
            raise ConfigError(
                f"{compare_path(job.target)} is taken by a photo; leave --compare out or give another -o"
            )
    if args.json and (guard.refused(args.json) or args.json in targets):
        raise ConfigError(f"--json {args.json} is a photo of this run; give another name")


def _detector(args: argparse.Namespace) -> dict[str, str] | None:
    """Name the detector that runs and why it is that one; None for crops, which need none."""
    from ..faces.detect import choose_detector

    if args.aligned:
        return None
    name, reason = choose_detector(args.detector, args.detector_dir)
    return {"name": name, "reason": reason}


def _report(
    args: argparse.Namespace, records: list[dict[str, Any]], left_out: list[str]
) -> dict[str, Any]:
    failed = sum("error" in record for record in records)
    return {
        "osdface": __version__,
        "model": args.model,
        "options": {
            name: getattr(args, name) for name in ("aligned", "base", "lora_scale", "codec", *PHOTO_OPTIONS)
        },
        "detector": _detector(args),
        "done": len(records) - failed,
        "failed": failed,
        "left_out": left_out,
        "photos": records,
    }


def _failure(item: Missing) -> dict[str, Any]:
    return {"input": item.source, "error": item.reason}


def _line(record: dict[str, Any]) -> str:
    count = len(record["faces"])
    return f"{record['output']}  {count} face{'' if count == 1 else 's'}  {record['seconds']:.1f} s"


def _reason(error: Exception) -> str:
    """One line for a file that failed; errors nobody planned for carry their kind."""
    text = " ".join(str(error).split())
    if isinstance(error, OSDFaceError):
        return text
    if isinstance(error, MemoryError):
        return f"not enough memory {text}; use a smaller --batch-size or --upscale".replace("  ", " ")
    return f"{type(error).__name__}: {text}"[:500]


def _say(line: str, stream: Any) -> None:
    tqdm.write(line, file=stream)
    stream.flush()  # whoever reads the pipe sees each photo when it is done


def _faces(text: str) -> str:
    from ..faces.select import parse_which

    try:
        parse_which(text)
    except ImageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not within {low:g}..{high:g}")
        return value

    return number


def _at_least(low: float) -> Callable[[str], float]:
    return _between(low, float("inf"))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _timestep(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 999:
        raise argparse.ArgumentTypeError(f"{text} is not within 0..999")
    return value

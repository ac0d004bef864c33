"""What a run leaves besides its results: crops, before/after pictures, a JSON report, lines on failures."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .. import __version__
from ..console import complain
from ..errors import ImageError, OSDFaceError
from ..faces.detect import choose_detector
from ..files import writing
from ..images import from_unit
from ..options import SETS, Host, in_words_of, options_of

GAP = 8  # [px] between before and after
LARGEST = 4096  # [px], longer side of one half: a picture to look at, whatever the photo's size


def comparison(before: np.ndarray, after: np.ndarray) -> Image.Image:
    """Join two photos in one picture: side by side if they are upright, one above the other if wide.

    Args:
        before, after: (H, W, 3) uint8, uint16 or float32; `before` is enlarged to the size of `after`.
    Returns:
        8-bit RGB.
    """
    right = viewable(after)
    left = viewable(before).resize(right.size, Image.Resampling.LANCZOS)
    width, height = right.size
    wide = width > 1.25 * height
    size = (width, 2 * height + GAP) if wide else (2 * width + GAP, height)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (0, height + GAP) if wide else (width + GAP, 0))
    return canvas


def viewable(pixels: np.ndarray, largest: int = LARGEST) -> Image.Image:
    """Turn (H, W, 3) uint8, uint16 or float32 into 8-bit RGB, at most `largest` px on its longer side."""
    step = -(-max(pixels.shape[:2]) // (2 * largest))
    pixels = pixels[::step, ::step]  # so that a 16-bit giant is not copied whole
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.float32) / 257.0).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return image


def save_picture(image: Image.Image, path: Path) -> None:
    """Write an 8-bit picture whole or not at all.

    Raises:
        ImageError: the disk is full or the folder cannot be written.
    """
    with writing(path, ImageError) as temporary:
        image.save(temporary)


def crop_pictures(crops: Tensor, restored: Tensor, stem: Path) -> list[tuple[Path, Image.Image]]:
    """Turn the aligned faces into pictures named `stem`_face0_before.png, `stem`_face0_after.png, ..."""
    pictures = []
    for number, pair in enumerate(zip(crops, restored, strict=True)):
        for when, face in zip(("before", "after"), pair, strict=True):
            path = stem.with_name(f"{stem.name}_face{number}_{when}.png")
            pictures.append((path, Image.fromarray(from_unit(face, np.uint8))))
    return pictures


def save_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON whole or not at all.

    Raises:
        ImageError: the disk is full or the folder cannot be written.
    """
    with writing(path, ImageError) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass
class Tally:
    """What became of the photos, in numbers; their records only where somebody wants them.

    Attributes:
        report: a file of JSON lines; each record is appended when it is known.
        records: kept for `--json`; None keeps none, so that memory does not grow.
    """

    report: Path | None = None
    records: list[dict[str, Any]] | None = None
    done: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count a record and pass it on. Raises ImageError: the report cannot be written."""
        if "error" in record:
            self.failed += 1
        else:
            self.done += 1
        if self.records is not None:
            self.records.append(record)
        if self.report is not None:
            append_line(self.report, json.dumps(record))

    def __str__(self) -> str:
        text = f"{self.done} restored, {self.failed} failed"
        why = "their results are there and newer; --redo restores them again"
        return text + (f", {self.skipped} skipped ({why})" if self.skipped else "")


def append_line(path: Path, line: str) -> None:
    """Append a line in one call of the system: several processes may do so, and a kill leaves no half line.

    What a crash of the machine cut off before is ended first. The lock (not on Windows) is for that look at
    the end: another process's line may be half there while it is being written.

    Raises:
        ImageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if find_spec("fcntl"):
                import fcntl

                with suppress(OSError):  # some network disks have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            size = os.lseek(file, 0, os.SEEK_END)
            if size and os.lseek(file, size - 1, os.SEEK_SET) >= 0 and os.read(file, 1) != b"\n":
                line = "\n" + line
            os.write(file, (line + "\n").encode())
        finally:
            os.close(file)
    except OSError as error:
        raise ImageError(f"report {path} cannot be written: {error.strerror or error}") from error


def summary(
    args: argparse.Namespace,
    records: list[dict[str, Any]],
    left_out: list[str],
    what: str = "photos",
    skipped: int = 0,
) -> dict[str, Any]:
    """Collect what `--json` writes: the options, and one record per input under the name `what`."""
    failed = sum("error" in record for record in records)
    names = ["aligned", *(name for options in SETS for name in options_of(options) if name != "source")]
    return {
        "osdface": __version__,
        "model": args.source,
        "options": {name: getattr(args, name) for name in (*names, "identity")},
        "detector": _detector(args),
        "done": len(records) - failed,
        "failed": failed,
        "skipped": skipped,
        "left_out": left_out,
        what: records,
    }


def tell_detector(args: argparse.Namespace) -> None:
    """Say which detector was chosen, unless one was named."""
    if args.detector == "auto" and (detector := _detector(args)) and not args.quiet:
        complain(f"face detector: {detector['name']} ({detector['reason']})")


def _detector(args: argparse.Namespace) -> dict[str, str] | None:
    """Name the detector that runs and why it is that one; None for crops, which need none."""
    if args.aligned:
        return None
    name, reason = choose_detector(args.detector, args.detector_dir)
    return {"name": name, "reason": reason}


def failure_line(error: Exception, host: Host = "cli") -> str:
    """Say in one line why a file failed; errors nobody planned for carry their kind."""
    text = in_words_of(host, " ".join(str(error).split()))
    if isinstance(error, OSDFaceError):
        return text
    if isinstance(error, MemoryError):
        advice = in_words_of(host, "use a smaller `batch_size` or `upscale`")
        return f"not enough memory {text}; {advice}".replace("  ", " ")
    return f"{type(error).__name__}: {text}"[:500]

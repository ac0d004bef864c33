"""`osdface restore` of videos: where each result goes, the progress bar, what is said and reported."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..console import complain, printable, say
from ..errors import ConfigError
from ..options import DetectOptions, PasteOptions, RestoreOptions, VideoOptions, options_of
from ..photo import OSDFacePipeline
from ..video import is_video, restore_video
from ..video.formats import container_of, load_av
from .inputs import Guard
from .report import failure_line, save_json, summary, tell_detector
from .usage import check_usage

PHOTOS_ONLY = ("aligned", "crops", "compare", "identity", "attention_maps", "tags")


def run_videos(args: argparse.Namespace, load: Callable[[argparse.Namespace], OSDFacePipeline]) -> int:
    """Restore all inputs, which are videos; returns 0, or 1 if one failed.

    Raises:
        ConfigError: the options or paths do not fit together; nothing was touched.
        VideoError: PyAV is not installed.
    """
    for name in PHOTOS_ONLY:
        if getattr(args, name) not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} is for photos; leave it out for videos")
    load_av()
    unused = check_usage(args)
    jobs = _targets(args.inputs, args.out.expanduser())
    guard = Guard(source for source, _ in jobs)
    for _, target in jobs:
        if guard.refused(target):
            raise ConfigError(f"{target} is an input and is never overwritten; give another place with -o")
        container_of(target)
    for line in unused:
        complain(line)
    pipeline = load(args)
    tell_detector(args)
    records: list[dict[str, Any]] = []
    try:
        for source, target in jobs:
            records.append(_restore(pipeline, source, target, args))
    finally:
        if args.json:
            save_json(summary(args, records, [], "videos"), guard.check(args.json))
    return 1 if any("error" in record for record in records) else 0


def _targets(inputs: list[str], out: Path) -> list[tuple[Path, Path]]:
    """Pair each video with its result: `out` itself for one video, else its name in the folder `out`."""
    sources: list[Path] = []
    for given in inputs:
        if not is_video(given):
            raise ConfigError(f"{given} is no video: restore photos and videos in separate calls")
        path = Path(given).expanduser()
        matches = sorted(glob.glob(str(path))) if glob.has_magic(given) and not path.exists() else []  # noqa: PTH207
        sources += [Path(match) for match in matches] or [path]
    if is_video(out) and not out.is_dir():
        if len(sources) > 1:
            raise ConfigError(f"{out} is a file name, but there are several inputs; give a folder with -o")
        return [(sources[0], out)]
    if out.suffix and not out.is_dir():
        container_of(out)
    targets = [out / source.name for source in sources]
    for target in targets:
        if targets.count(target) > 1:
            raise ConfigError(f"several inputs would be written to {target}; give their folders one by one")
    return list(zip(sources, targets, strict=True))


def _restore(
    pipeline: OSDFacePipeline, source: Path, target: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Restore one video; a failure is told and recorded."""
    sets = (DetectOptions, RestoreOptions, PasteOptions, VideoOptions)
    options = {name: getattr(args, name) for one in sets for name in options_of(one)}
    record: dict[str, Any] = {"input": str(source), "output": str(target)}
    hidden = True if args.quiet else None  # None: hidden where stderr is no terminal
    with tqdm(unit="frame", disable=hidden, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            result = restore_video(pipeline, source, target, progress=progress, **options)
        except KeyboardInterrupt:
            complain(
                f"{printable(str(target))} holds what is done so far; the same command goes on from there"
            )
            raise
        except Exception as error:
            record["error"] = failure_line(error)
            complain(printable(f"{source}: {record['error']}"))
            return record
    for note in result.notes:
        complain(printable(f"{source}: {note}"))
    again = f", {result.resumed} of them before" if result.resumed else ""
    broken = f"  {result.broken} damaged frames passed through" if result.broken else ""
    name = printable(str(target))
    say(f"{name}  {result.frames} frames{again}  {result.faces} faces{broken}  {result.seconds:.1f} s")
    return record | dataclasses.asdict(result)

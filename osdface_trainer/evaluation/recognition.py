"""`osdface evaluate recognition`: are people recognised through turbulence, and after restoring it?

OSDFace, supplement D: pairs of faces through air of some length, embedded by a recognition network with and
without restoration; LFW's protocol.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from osdface_core.console import say
from osdface_core.devices import pick_device
from osdface_core.errors import ConfigError, ImageError, OSDFaceError
from osdface_core.faces.align import align
from osdface_core.faces.detect import detect
from osdface_core.faces.select import select
from osdface_core.files import write_text
from osdface_core.images import from_unit, read_photo, to_unit, write_photo
from osdface_core.models.identity import embed, load_identity

from ..data.augment import Augmentation, augment
from ..data.sources import list_faces
from ..data.turbulence import turbulent
from .cli import add_model_arguments, restorer
from .evaluate import FACE, Restore, eight_bit, face_seed, read_face
from .pairing import batches, resize_bicubic
from .table import align as columns
from .verification import Measured, draw, summary, verify

RECROP = Augmentation(
    flip=1.0, brightness=0.1, contrast=0.1, rotate=5, zoom=0.08, shift=0.04, geometry_prob=1.0
)
RECROPPED = "people with one picture are paired with it mirrored, turned, cropped and lit a little otherwise"
CLEAN = "clean"


@dataclass(frozen=True)
class Picture:
    """A file, or the same one mirrored and cropped otherwise."""

    path: Path
    recrop: bool = False


@dataclass(frozen=True)
class Pair:
    """Two pictures of one person or of two; `fold`: LFW's split."""

    a: Picture
    b: Picture
    same: bool
    fold: int


@dataclass
class Views:
    """Embeddings (D,) of each picture by condition, what could not be read, and where to keep pictures."""

    net: nn.Module
    save: Path | None
    found: dict[str, dict[Picture, Tensor]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, condition: str, pictures: Sequence[Picture], faces: Tensor) -> None:
        """Embed (B, 3, 512, 512) unit."""
        vectors = embed(self.net, faces.to(next(self.net.parameters()).device)).cpu()
        self.found.setdefault(condition, {}).update(zip(pictures, vectors, strict=True))
        for picture, face in zip(pictures, faces, strict=True):
            if self.save:
                name = f"{picture.path.stem}{'_recrop' * picture.recrop}.png"
                write_photo(self.save / condition.replace(" ", "_") / name, from_unit(face, np.uint8))


def read_pairs(file: Path, folder: Path) -> list[Pair]:
    """Read LFW's `pairs.txt`: folds of lines `NAME I J` (one person), then of `NAME I OTHER J`.

    Raises:
        ConfigError: another layout, with the line.
    """

    def picture(name: str, number: str) -> Picture:
        return Picture(folder / name / f"{name}_{int(number):04d}.jpg")

    try:
        first, *lines = file.read_text(encoding="utf-8").splitlines()
        count = int(first.split()[-1])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is no pairs.txt of LFW ({error}): its first line is '10 300'") from error
    pairs = []
    for index, line in enumerate(line for line in lines if line.strip()):
        words = line.split("\t") if "\t" in line else line.split()
        try:
            same = len(words) == 3
            name, i, *other, j = words
            pairs.append(Pair(picture(name, i), picture((other or [name])[0], j), same, index // (2 * count)))
        except ValueError:
            raise ConfigError(f"{file}: {line!r} is neither 'NAME I J' nor 'NAME I OTHER J'") from None
    return pairs


def own_pairs(source: str, people: int | None) -> tuple[list[Pair], bool]:
    """Pair the pictures of a folder or manifest: all of one person, and the first with others' second ones.

    Returns: the pairs, ten folds of them, and whether some are one picture cropped twice.
    """
    views: dict[str, list[Picture]] = {}
    for item in list_faces(source):
        views.setdefault(item.identity or item.name, []).append(Picture(item.path))
    chosen = list(views.values())[:people]
    alone = [one for one in chosen if len(one) == 1]
    for one in alone:
        one.append(Picture(one[0].path, recrop=True))
    pairs = []
    for number, mine in enumerate(chosen):
        pairs += [Pair(a, b, True, number % 10) for a, b in combinations(mine, 2)]
        pairs += [Pair(mine[0], other[1], False, number % 10) for other in chosen if other is not mine]
    return pairs, bool(alone)


def read_picture(picture: Picture, aligned: bool) -> Tensor:
    """Read a face as (3, 512, 512) unit. Raises ImageError: unreadable, or nobody is found."""
    if aligned:
        face = read_face(picture.path)[0]
    else:
        photo = to_unit(read_photo(picture.path).pixels)
        found = select(detect(photo), (photo.shape[1], photo.shape[2]), "center")
        if not found:
            raise ImageError(f"{picture.path.name}: no face was found; --aligned takes crops as they are")
        face = align(photo, found, FACE)[0]
    return augment(face[None], [face_seed(picture.path.stem, 1)], RECROP)[0] if picture.recrop else face


def through_air(face: Tensor, length: float, side: int, seed: int) -> Tensor:
    """Show (3, 512, 512) unit as a camera sees it that has `side` px for it, enlarged again."""
    small = turbulent(resize_bicubic(face, (side, side))[None], length, seed)[0]
    return eight_bit(resize_bicubic(small, (FACE, FACE)))


def look(
    pairs: Sequence[Pair], views: Views, restore: Restore, args: argparse.Namespace
) -> Iterator[tuple[str, Measured]]:
    """Embed every picture clean, through the air and restored, then measure condition by condition."""
    pictures = {str(i): p for i, p in enumerate(dict.fromkeys(p for pair in pairs for p in (pair.a, pair.b)))}
    read = batches(
        list(pictures), lambda name: (read_picture(pictures[name], args.aligned),), args.batch_size,
        views.failed, not args.quiet,
    )  # fmt: skip
    for names, (faces,) in read:
        assert faces is not None  # `read_picture` gives one always
        seen = [pictures[name] for name in names]
        views.add(CLEAN, seen, faces)
        for length in map(float, args.length.split(",")):
            seeds = [face_seed(f"{p.path.stem}{p.recrop}{length}", args.seed) for p in seen]
            air = [through_air(face, length, args.side, s) for face, s in zip(faces, seeds, strict=True)]
            lq = torch.stack(air)
            views.add(f"{length / 1000:g} km", seen, lq)
            views.add(f"{length / 1000:g} km restored", seen, eight_bit(restore(lq).float().cpu()))
    for condition, vectors in views.found.items():
        kept = [pair for pair in pairs if pair.a in vectors and pair.b in vectors]
        cosines = np.array([float(vectors[pair.a] @ vectors[pair.b]) for pair in kept], dtype=np.float64)
        yield condition, verify(cosines, *(np.array([getattr(p, k) for p in kept]) for k in ("same", "fold")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface evaluate recognition` on `parser`."""
    option = parser.add_argument
    option("faces", help="LFW's folder (with --pairs), a folder of faces, or a manifest with identities")
    option("--pairs", type=Path, metavar="FILE", help="LFW's pairs.txt; default: pairs of the faces")
    option("--aligned", action="store_true", help="the pictures are aligned face crops, not photos")
    option("--length", default="20000,30000,40000", metavar="M[,M]", help="metres of air")
    option("--side", type=int, default=256, metavar="PX", help="size of a face as the camera has it")
    option("--identity", metavar="FILE", help="MobileFaceNet (default) or ArcFace, e.g. R50's backbone.pth")
    option("--device", default="auto")
    option("--batch-size", type=int, default=4, metavar="N")
    option("--limit", type=int, metavar="N", help="only the first N people; with --pairs: N pairs")
    option("--seed", type=int, default=0, help="of the air")
    option("--quiet", action="store_true", help="no progress bar")
    option("--out", type=Path, required=True, metavar="DIR", help="recognition.json, .txt and .png")
    option("--save-images", action="store_true", help="the faces of every condition too")
    add_model_arguments(parser.add_argument_group("restore"))


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write JSON, text and plots.

    Returns: 0; 1 if a picture could not be read.
    Raises:
        OSDFaceError: bad pairs, options or files.
    """
    lengths = args.length.replace(" ", "").split(",")
    if args.side < 16 or not all(part.replace(".", "", 1).isdigit() and float(part) > 0 for part in lengths):
        raise ConfigError("--side needs 16 or more, --length metres of air, e.g. 20000,40000")
    notes = []
    if args.pairs:
        pairs = read_pairs(args.pairs, Path(args.faces))[: args.limit]
    else:
        pairs, recropped = own_pairs(args.faces, args.limit)
        notes += [RECROPPED] if recropped else []
    net = load_identity(args.identity, pick_device(args.device))
    views = Views(net, args.out if args.save_images else None)
    conditions = dict(look(pairs, views, restorer(args), args))
    if not conditions:
        raise OSDFaceError(f"no picture could be read: {next(iter(views.failed.values()), 'there is none')}")
    notes += [f"not read: {why}" for why in views.failed.values()]
    text = "\n".join([*columns(summary(conditions)), "", *notes]).rstrip() + "\n"
    settings = {k: str(v) for k, v in vars(args).items() if v is not None}
    report = {"settings": settings, "notes": notes, "conditions": conditions}
    say(text.removesuffix("\n"))
    write_text(args.out / "recognition.json", json.dumps(report, indent=1))
    write_text(args.out / "recognition.txt", text)
    draw(conditions, args.out / "recognition.png")
    return 1 if views.failed else 0

"""Match restored, reference and low-quality images by file stem, and read them as batches of one size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.errors import ConfigError, ImageError
from osdface_core.images import is_photo, read_photo, readable, to_unit


@dataclass(frozen=True)
class ImageSet:
    """One restored image with what belongs to it."""

    name: str
    restored: Path
    reference: Path | None = None
    lq: Path | None = None


@dataclass
class Pairing:
    """The matched items and, per folder, the file names that found no partner."""

    items: list[ImageSet]
    unmatched: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class ImageBatch:
    """Images of one size, (B,3,H,W) float in [0,1]."""

    names: list[str]
    restored: Tensor
    reference: Tensor | None
    lq: Tensor | None


def list_images(folder: Path) -> dict[str, Path]:
    """List stem -> file of the images directly in `folder`, sorted by name.

    Raises:
        ConfigError: if there is no such folder, no image in it, or two images share a stem.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give a folder of images")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if is_photo(file) and file.is_file():
            if file.stem in found:
                raise ConfigError(
                    f"{found[file.stem]} and {file.name} share the stem {file.stem!r}: keep one of them"
                )
            found[file.stem] = file
    if not found:
        raise ConfigError(f"{folder} holds no images ({', '.join(sorted(readable()))})")
    return found


def pair(restored: Path, reference: Path | None, lq: Path | None = None) -> Pairing:
    """Match the images of up to three folders by stem; an image without LQ partner is kept, without
    reference not.

    Raises:
        ConfigError: if a folder is unusable or nothing matches.
    """
    files = list_images(restored)
    targets = list_images(reference) if reference else None
    inputs = list_images(lq) if lq else {}
    common = [stem for stem in files if targets is None or stem in targets]
    if not common:
        raise ConfigError(
            f"no image in {restored} has the same stem as one in {reference}: name the pairs alike"
        )
    items = [
        ImageSet(stem, files[stem], targets[stem] if targets else None, inputs.get(stem)) for stem in common
    ]
    left = {
        "restored": [files[stem].name for stem in files if stem not in common],
        "reference": [path.name for stem, path in (targets or {}).items() if stem not in files],
        "lq": [path.name for stem, path in inputs.items() if stem not in common],
        "without lq": [stem for stem in common if lq and stem not in inputs],
    }
    return Pairing(items, {side: names for side, names in left.items() if names})


def read_image(path: Path) -> Tensor:
    """Read (3,H,W) float in [0,1], upright, alpha dropped. Raises ImageError."""
    return to_unit(read_photo(path).pixels)


def resize_bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3,h,w) -> (3,*size), bicubic (antialiased when it shrinks), clamped to [0,1]."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )


def read_images(item: ImageSet) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Read restored, reference and LQ; the LQ is resized (bicubic) to the size of the restored image.

    Raises:
        ImageError: if a file cannot be read, or restored and reference differ in size.
    """
    restored = read_image(item.restored)
    reference = read_image(item.reference) if item.reference else None
    if reference is not None and reference.shape != restored.shape:
        got, expected = (f"{one.shape[2]}×{one.shape[1]}" for one in (restored, reference))
        raise ImageError(
            f"{item.restored.name}: got {got} px, the reference has {expected}: resize one of them"
        )
    size = (restored.shape[1], restored.shape[2])
    return restored, reference, resize_bicubic(read_image(item.lq), size) if item.lq else None


def batches(items: Sequence[ImageSet], size: int, failed: dict[str, str]) -> Iterator[ImageBatch]:
    """Yield batches of up to `size` images of one shape, in order; unreadable items go to `failed` (name ->
    reason).
    """
    for chunk in (items[start : start + size] for start in range(0, len(items), size)):
        read = []
        for item in chunk:
            try:
                read.append((item.name, *read_images(item)))
            except (ImageError, OSError) as error:
                failed[item.name] = str(error)
        for _, alike in groupby(read, key=lambda one: (one[1].shape, one[3] is None)):
            names, restored, reference, lq = zip(*alike, strict=True)
            yield ImageBatch(list(names), torch.stack(restored), _stack(reference), _stack(lq))


def _stack(images: Sequence[Tensor | None]) -> Tensor | None:
    present = [image for image in images if image is not None]
    return torch.stack(present) if present else None

"""Match restored, reference and low-quality images by file stem, and read them as batches of one size."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.errors import ConfigError, ImageError
from osdface_core.images import is_photo, read_photo, readable, to_unit

Files = tuple[Path, Path | None, Path | None]
"""A restored image, its reference and its low-quality input."""
Images = tuple[Tensor | None, ...]


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


def pair(
    restored: Path, reference: Path | None, lq: Path | None = None
) -> tuple[dict[str, Files], dict[str, list[str]]]:
    """Match the images of up to three folders by stem; an image without LQ partner is kept, without
    reference not.

    Returns:
        the files by stem; folder -> file names that found no partner.
    Raises:
        ConfigError: if a folder is unusable or nothing matches.
    """
    files = list_images(restored)
    targets = list_images(reference) if reference else {}
    inputs = list_images(lq) if lq else {}
    items = {
        stem: (file, targets.get(stem), inputs.get(stem))
        for stem, file in files.items()
        if not reference or stem in targets
    }
    if not items:
        raise ConfigError(
            f"no image in {restored} has the same stem as one in {reference}: name the pairs alike"
        )
    left = {
        "restored": [path.name for stem, path in files.items() if stem not in items],
        "reference": [path.name for stem, path in targets.items() if stem not in items],
        "lq": [path.name for stem, path in inputs.items() if stem not in items],
        "without lq": [stem for stem in items if lq and stem not in inputs],
    }
    return items, {side: names for side, names in left.items() if names}


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


def read_images(restored: Path, reference: Path | None, lq: Path | None) -> Images:
    """Read restored, reference and LQ; the LQ is resized (bicubic) to the size of the restored image.

    Raises:
        ImageError: if a file cannot be read, or restored and reference differ in size.
    """
    image = read_image(restored)
    target = read_image(reference) if reference else None
    if target is not None and target.shape != image.shape:
        got, expected = (f"{one.shape[2]}×{one.shape[1]}" for one in (image, target))
        raise ImageError(f"{restored.name}: got {got} px, the reference has {expected}: resize one of them")
    return image, target, resize_bicubic(read_image(lq), (image.shape[1], image.shape[2])) if lq else None


def batches(
    names: Sequence[str], read: Callable[[str], Images], size: int, failed: dict[str, str], progress: bool
) -> Iterator[tuple[list[str], Images]]:
    """Yield names and images (B,3,H,W) in batches of up to `size` images of one shape, in order.

    Args:
        read: name -> images (3,H,W), or None where there is none.
        failed: receives name -> reason of what cannot be read.
        progress: show a bar, when stderr is a terminal.
    """
    from tqdm import tqdm

    with tqdm(total=len(names), unit="image", desc="evaluate", disable=None if progress else True) as bar:
        for chunk in (names[start : start + size] for start in range(0, len(names), size)):
            done = []
            for name in chunk:
                try:
                    done.append((name, *read(name)))
                except (ImageError, OSError) as error:
                    failed[name] = str(error)
            for _, alike in groupby(
                done, key=lambda one: [image is not None and image.shape for image in one[1:]]
            ):
                together, *sides = zip(*alike, strict=True)
                yield list(together), tuple(None if side[0] is None else torch.stack(side) for side in sides)
            bar.update(len(chunk))

"""Decoded samples, and how Pillow's pictures become them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError
from .metadata import Metadata

LARGEST = 178_956_970
"""Most pixels of a photo: Pillow's limit against decompression bombs; 12,000 x 9,000 is well inside."""
STRIP = 1 << 22
"""Pixels that are turned into an array at once."""


@dataclass(frozen=True)
class Plane:
    """Decoded samples of a file.

    Attributes:
        samples: (H, W, C) in the file's own type; C is 1 or 3.
        alpha: (H, W), or None.
        premultiplied: whether colours were multiplied by alpha.
    """

    samples: np.ndarray
    alpha: np.ndarray | None
    premultiplied: bool = False

    def joined(self) -> np.ndarray:
        """Return samples and alpha as one (H, W, 1 to 4) array."""
        return self.samples if self.alpha is None else np.dstack((self.samples, self.alpha))


def split_alpha(data: np.ndarray, *, premultiplied: bool = False) -> Plane:
    """Take (H, W, 1 to 4) samples apart: two and four channels have alpha as their last."""
    color = data.shape[2] - (data.shape[2] + 1) % 2
    return Plane(data[..., :color], data[..., color] if data.shape[2] > color else None, premultiplied)


def check_size(width: int, height: int) -> None:
    """Refuse pictures of more than LARGEST pixels."""
    if width * height > LARGEST:
        raise ImageError(f"has {width}x{height} px: at most {LARGEST} in all; split or shrink it first")


def from_pillow(image: Image.Image, about: Metadata) -> Plane:
    """Take the samples of a loaded 8-bit (or one-channel deeper) picture.

    Args:
        about: loses its colour profile where that was used to convert CMYK or LAB to RGB.
    """
    if image.mode == "1" or (image.mode == "L" and "transparency" not in image.info):
        return Plane(_samples(image, "L")[..., None], None)
    if image.mode.startswith("I"):
        return Plane(_sixteen(image)[..., None], None)
    if image.mode == "F":
        return Plane(np.array(image, dtype=np.float32)[..., None], None)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        samples = _samples(_to_rgb(image, about.icc), "RGB")
        about.icc = None
        if image.mode in ("CMYK", "LAB"):
            about.notes.append(f"its {image.mode} colours are converted to sRGB")
        return Plane(samples, None)
    if image.mode in ("LA", "La", "L"):
        return split_alpha(_samples(image, "LA"))
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return split_alpha(_samples(image, "RGBA"))
    return Plane(_samples(image, "RGB"), None)


def _samples(image: Image.Image, mode: str) -> np.ndarray:
    """The picture as an array of `mode`, strip by strip: at once, Pillow holds it three more times."""
    bands = len(mode)
    samples = np.empty((image.height, image.width, bands)[: 3 if bands > 1 else 2], np.uint8)
    step = max(1, STRIP // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        samples[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert(mode))
    return samples


def _sixteen(image: Image.Image) -> np.ndarray:
    data = np.array(image)
    if data.min() < 0 or data.max() > 65535:
        raise ImageError("has 32-bit samples: expected 8 or 16 bits or float; convert the picture")
    return data.astype(np.uint16)


def _to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Through the picture's own profile if it has one, else by the plain formula."""
    if icc and image.mode in ("CMYK", "LAB"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile: the plain formula is what viewers use then, too
    return image.convert("RGB")

"""A photo's pixels behind one interface, whether the caller holds a tensor, an array or a Pillow image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError

Pixels = Tensor | np.ndarray | Image.Image
"""What callers hand in: (3, H, W) float tensor in [0, 1] on any device; (H, W, 3) array of uint8, uint16 or
float; or a Pillow image."""

FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}
"""Array value that means 1.0 in the unit range."""

BRIGHT = 8.0
"""Mean of a float photo that only values of 0 to 255 reach; highlights above 1 are fine."""

Area = tuple[int, int, int, int]
"""top, bottom, left, right of a rectangle [px], ends exclusive."""


class PhotoArray(ABC):
    """The pixels of one photo. `PhotoArray.of` wraps what a caller has; `native` gives the same kind back.

    Attributes:
        shape: height and width [px].
        device: where the pixels lie.
    """

    shape: tuple[int, int]
    device: torch.device

    @staticmethod
    def of(photo: Pixels | PhotoArray) -> PhotoArray:
        """Wrap a photo without copying it; a PhotoArray is returned as it is.

        Raises:
            ImageError: another layout or type, an empty photo, or floats that look like 0..255.
        """
        if isinstance(photo, PhotoArray):
            return photo
        if isinstance(photo, Image.Image):
            return _PillowPhoto(photo)
        wrapped = TensorPhoto(photo) if isinstance(photo, Tensor) else _NumpyPhoto(photo)
        if wrapped.is_far_from_unit():
            raise ImageError(
                "float photo has values far above 1: expected 0 to 1; divide it by its white, often 255"
            )
        return wrapped

    @abstractmethod
    def native(self) -> Pixels:
        """Return the photo as the kind that `of` was given."""

    @abstractmethod
    def native_mask(self, mask: Tensor) -> Tensor | np.ndarray:
        """Return a (1, H, W) mask as it goes with `native`: itself, or an (H, W) array."""

    @abstractmethod
    def region(self, area: Area, device: torch.device | None = None) -> Tensor:
        """Return a rectangle as (3, h, w) float32, unit range (float photos may exceed it), on `device`."""

    @abstractmethod
    def planes(self) -> np.ndarray:
        """Return the three channels (3, H, W), in the pixels' own range."""

    @abstractmethod
    def with_planes(self, planes: np.ndarray) -> PhotoArray:
        """Return a photo of this kind and depth from (3, h, w) float32 in the pixels' own range."""

    @abstractmethod
    def empty(self, shape: tuple[int, int]) -> PhotoArray:
        """Return an uninitialised photo of this kind and depth."""

    @abstractmethod
    def writable(self, in_place: bool) -> PhotoArray:
        """Return a copy, or this photo itself if it may and can be written to."""

    @abstractmethod
    def write(self, area: Area, values: Tensor, where: Tensor | None = None) -> None:
        """Put (3, h, w) unit-range values into a rectangle, rounded once.

        Args:
            where: (h, w) bool; elsewhere every pixel keeps its exact value. None: everywhere.
        """

    def pillow(self, area: Area | None = None) -> Image.Image | None:
        """Return the pixels, or a rectangle of them, as a Pillow image where they are 8-bit arrays."""
        del area
        return None


class TensorPhoto(PhotoArray):
    """(3, H, W) float, unit range."""

    def __init__(self, pixels: Tensor) -> None:
        shape = tuple(pixels.shape)
        if len(shape) != 3 or shape[0] != 3 or not pixels.is_floating_point() or 0 in shape:
            raise _no_photo(shape, pixels.dtype)
        self.pixels, self.shape, self.device = pixels, (shape[1], shape[2]), pixels.device

    def is_far_from_unit(self) -> bool:
        """Tell whether the values look like 0 to 255."""
        return float(self.pixels.mean(dtype=torch.float32)) > BRIGHT

    def native(self) -> Tensor:
        return self.pixels

    def native_mask(self, mask: Tensor) -> Tensor:
        return mask

    def region(self, area: Area, device: torch.device | None = None) -> Tensor:
        top, bottom, left, right = area
        return self.pixels[:, top:bottom, left:right].to(device=device, dtype=torch.float32)

    def planes(self) -> np.ndarray:
        return self.pixels.detach().cpu().float().numpy()

    def with_planes(self, planes: np.ndarray) -> TensorPhoto:
        return TensorPhoto(torch.from_numpy(planes).clamp(0.0, 1.0).to(self.pixels))

    def empty(self, shape: tuple[int, int]) -> TensorPhoto:
        return TensorPhoto(self.pixels.new_zeros(3, *shape))

    def writable(self, in_place: bool) -> TensorPhoto:
        return self if in_place else TensorPhoto(self.pixels.clone())

    def write(self, area: Area, values: Tensor, where: Tensor | None = None) -> None:
        top, bottom, left, right = area
        part = self.pixels[:, top:bottom, left:right]
        part.copy_(values if where is None else torch.where(where.to(part.device), values.to(part), part))


class _NumpyPhoto(PhotoArray):
    """(H, W, 3) uint8, uint16 or float."""

    device = torch.device("cpu")

    def __init__(self, pixels: np.ndarray) -> None:
        shape, kind = tuple(pixels.shape), str(pixels.dtype)
        if len(shape) != 3 or shape[2] != 3 or kind not in FULL_SCALE or 0 in shape:
            raise _no_photo(shape, kind)
        self.pixels, self.shape, self.full = pixels, (shape[0], shape[1]), FULL_SCALE[kind]

    def is_far_from_unit(self) -> bool:
        """Whether these are floats whose values look like 0 to 255."""
        return self.full == 1.0 and float(self.pixels.mean(dtype=np.float64)) > BRIGHT

    def native(self) -> Pixels:
        return self.pixels

    def native_mask(self, mask: Tensor) -> np.ndarray:
        return mask[0].cpu().numpy()

    def region(self, area: Area, device: torch.device | None = None) -> Tensor:
        top, bottom, left, right = area
        part = np.ascontiguousarray(self.pixels[top:bottom, left:right])
        if part.dtype == np.uint16 or not part.flags.writeable:  # torch has few operations for uint16
            part = part.astype(np.float32)
        region = torch.from_numpy(part).to(device).permute(2, 0, 1).to(torch.float32)
        return region if self.full == 1.0 else region / self.full

    def planes(self) -> np.ndarray:
        return self.pixels.transpose(2, 0, 1)

    def with_planes(self, planes: np.ndarray) -> PhotoArray:
        values = planes if self.full == 1.0 else planes.round().clip(0, self.full)
        return self._like(np.ascontiguousarray(values.transpose(1, 2, 0), self.pixels.dtype))

    def empty(self, shape: tuple[int, int]) -> PhotoArray:
        return self._like(np.zeros((*shape, 3), self.pixels.dtype))

    def writable(self, in_place: bool) -> PhotoArray:
        return self if in_place and self.pixels.flags.writeable else self._like(self.pixels.copy())

    def write(self, area: Area, values: Tensor, where: Tensor | None = None) -> None:
        top, bottom, left, right = area
        part = self.pixels[top:bottom, left:right]
        values = values.permute(1, 2, 0).float()
        values = values if self.full == 1.0 else (values * self.full).round()
        touched = slice(None) if where is None else where.cpu().numpy()
        part[touched] = values.cpu().numpy()[touched].astype(part.dtype)

    def pillow(self, area: Area | None = None) -> Image.Image | None:
        top, bottom, left, right = area or (0, self.shape[0], 0, self.shape[1])
        eight_bits = self.pixels.dtype == np.uint8
        return Image.fromarray(self.pixels[top:bottom, left:right]) if eight_bits else None

    def _like(self, pixels: np.ndarray) -> PhotoArray:
        return _NumpyPhoto(pixels)


class _PillowPhoto(_NumpyPhoto):
    """Its RGB; a grey image comes back grey, and one with transparency keeps it."""

    def __init__(self, image: Image.Image, pixels: np.ndarray | None = None) -> None:
        if image.mode.startswith(("I", "F")):
            raise ImageError(
                f"Pillow image has mode {image.mode}, which is more than 8 bits: give an (H, W, 3) array of "
                "uint16 or float32, or the file's path"
            )
        super().__init__(np.array(image.convert("RGB")) if pixels is None else pixels)
        self.image = image

    def native(self) -> Image.Image:
        image = Image.fromarray(self.pixels)
        if self.image.mode in ("L", "LA"):
            image = image.convert("L")
        if "A" in self.image.getbands() or "transparency" in self.image.info:
            alpha = self.image.convert("RGBA").getchannel("A")
            image.putalpha(alpha if alpha.size == image.size else alpha.resize(image.size))
        image.info = {key: value for key, value in self.image.info.items() if key != "transparency"}
        return image

    def _like(self, pixels: np.ndarray) -> PhotoArray:
        return _PillowPhoto(self.image, pixels)


def _no_photo(shape: tuple[int, ...], kind: object) -> ImageError:
    return ImageError(
        f"photo has shape {shape} and type {kind}: expected a (3, H, W) float tensor, "
        "an (H, W, 3) array of uint8, uint16 or float32, or a Pillow image; convert it first"
    )

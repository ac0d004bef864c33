"""`osdface demo`: a photo that a package ships, made bad, restored, before and after in one picture."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..console import say
from ..errors import ConfigError, OSDFaceError
from .report import comparison, save_picture
from .restore import add_model_arguments, load

SIDE = 300  # [px] of each clean portrait
# Head and shoulders: left, top, right, bottom [px] in the shipped photos.
ASTRONAUT = (105, 0, 345, 240)
HOPPER = (85, 0, 485, 400)
SHRINK = 2
UPSCALE = (
    4  # the bad photo's faces are some 60 px wide: in a photo of its own size nobody would see their detail
)
BLUR = 1.2  # [px] standard deviation, before shrinking
NOISE = 6.0  # [levels of 255] standard deviation
QUALITY = 45  # of the JPEG
FILES = ("clean.png", "before.png", "after.png", "demo.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface demo` on `parser`."""
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("osdface-demo"), metavar="DIR", help="folder (osdface-demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the four pictures, print their names, return 0.

    Raises:
        OSDFaceError: the packages with the photos, or the model, are missing.
    """
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"{args.out} is a file; give a folder with -o")
    clean = demo_photo()
    before = degrade(clean, args.seed)
    result = load(args).restore_photo(before, upscale=UPSCALE)
    after = np.asarray(result.image)
    pictures = (
        Image.fromarray(clean),
        Image.fromarray(before),
        Image.fromarray(after),
        comparison(before, after),
    )
    for name, picture in zip(FILES, pictures, strict=True):
        save_picture(picture, args.out / name)
    say(f"restored {len(result.faces)} faces; before and after: {args.out / FILES[-1]}")
    return 0


def demo_photo() -> np.ndarray:
    """Compose two faces side by side, (300, 600, 3) uint8; see `portraits`."""
    return np.concatenate(portraits(SIDE), axis=1)


def portraits(side: int) -> list[np.ndarray]:
    """Cut out scikit-image's astronaut (NASA) and matplotlib's Grace Hopper (US Navy), (side, side, 3) uint8.

    Both portraits are in the public domain and lie in the installed packages; nothing is fetched.

    Raises:
        OSDFaceError: a package is missing.
    """
    try:
        from matplotlib.cbook import get_sample_data
        from skimage.data import astronaut

        hopper = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
        photos = [
            Image.fromarray(astronaut()).crop(ASTRONAUT),
            Image.open(hopper).convert("RGB").crop(HOPPER),
        ]
    except (ImportError, OSError) as error:
        raise OSDFaceError(f'the demo photo is missing ({error}): pip install "osdface[demo]"') from error
    return [np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS)) for photo in photos]


def degrade(photo: np.ndarray, seed: int = 0) -> np.ndarray:
    """Blur, shrink, add noise, compress: the common degradation model of blind face restoration.

    Args:
        photo: (H, W, 3) uint8.
        seed: of the noise.
    Returns:
        (H / SHRINK, W / SHRINK, 3) uint8.
    """
    image = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(BLUR))
    image = image.resize((photo.shape[1] // SHRINK, photo.shape[0] // SHRINK), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0.0, NOISE, (image.height, image.width, 3))
    noisy = (np.asarray(image, np.float32) + noise).round().clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(buffer).convert("RGB"))

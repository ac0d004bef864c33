"""The README's gallery: the demo faces at three strengths of damage, restored by `osdface restore --aligned`.

    python tools/gallery.py docs/images/gallery.jpg

Rows: the profiles mild, medium and severe. Columns, per face: input, restored, original. The damage is drawn
from fixed seeds, one per face, so that nobody chooses a flattering draw.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osdface_core.cli.demo import portraits
from osdface_core.cli.main import main as osdface
from osdface_core.faces import align, detect
from osdface_core.images import from_unit, write_photo
from osdface_trainer.data.degrade import degrade

LEVELS = ("mild", "medium", "severe")
CELL = 200  # side of a face in the picture [px]
PORTRAIT = 600  # side of a portrait before its face is cut out [px]


def save(faces: Tensor, folder: Path, level: str) -> list[Path]:
    """Write (N, 3, H, W) in [0, 1] as `level_N.png`."""
    paths = [folder / f"{level}_{number}.png" for number in range(len(faces))]
    for path, face in zip(paths, faces, strict=True):
        write_photo(path, from_unit(face, np.uint8))
    return paths


def compose(rows: Sequence[Sequence[Path | io.BytesIO]]) -> Image.Image:
    """Put the pictures (files) of each row side by side, the rows below each other."""
    canvas = Image.new("RGB", (CELL * len(rows[0]), CELL * len(rows)))
    for row, paths in enumerate(rows):
        for column, path in enumerate(paths):
            with Image.open(path) as face:
                cell = face.resize((CELL, CELL), Image.Resampling.LANCZOS)
            canvas.paste(cell, (CELL * column, CELL * row))
    return canvas


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture. Returns 0, or the status of `osdface restore` when that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the picture, a JPEG")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        bad, good, clean = (Path(temporary) / name for name in ("input", "restored", "original"))
        photos = portraits(PORTRAIT)
        original = torch.cat([align(photo, detect(photo, "mtcnn")[:1]) for photo in photos])
        faces = save(original, clean, "clean")
        rows = []
        for level in LEVELS:
            seeds = range(len(original))
            inputs = save(degrade(original, level, seeds, enlarge="bicubic"), bad, level)
            rows.append(
                [path for i, source in enumerate(inputs) for path in (source, good / source.name, faces[i])]
            )
        if status := osdface(["restore", str(bad), "-o", str(good), "--aligned"]):
            return status
        compose(rows).save(args.out, quality=88)
    return 0


if __name__ == "__main__":
    sys.exit(main())

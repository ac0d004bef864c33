"""One picture of the worst images: input, restored and reference side by side, with their numbers."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from osdface_core.files import replacing

from .scores import Report, Row, worst_first

CELL = 192
"""[px] side of one picture."""
SIDES = ("input", "restored", "reference")
LABELS = {"input": "LQ", "restored": "restored", "reference": "reference"}
_CAPTION = 36
_GAP = 6
_CAPTION_COLUMNS = ("perceptual", "lpips_vgg", "identity_cos", "psnr", "niqe", "hf_energy")


def montage(report: Report, count: int = 20, column: str | None = None) -> Image.Image:
    """The `count` worst images of each profile, two triples per line; rows need thumbnails.

    Args:
        column: what ranks them; None takes the report's ranking column.
    """
    ranked = report.column(column)
    font = ImageFont.load_default(14)
    tiles: list[Image.Image] = []
    for profile in report.profiles:
        rows = [row for row in report.rows if row.profile == profile and row.thumbs]
        rows = worst_first(rows, ranked) if ranked else rows
        tiles += [_tile(row, font) for row in rows[:count]]
    return _grid(tiles, 2)


def write_montage(path: Path, report: Report, count: int = 20, column: str | None = None) -> None:
    """Save the montage as PNG, whole or not at all."""
    with replacing(path) as temporary:
        montage(report, count, column).save(temporary, "PNG")


def caption(row: Row) -> str:
    """Name, profile and the numbers a viewer looks for."""
    numbers = [
        f"{name} {row.restored[name]:.3g}" + (f" ({row.input[name]:.3g})" if name in row.input else "")
        for name in _CAPTION_COLUMNS
        if math.isfinite(row.restored.get(name, math.nan))
    ]
    return f"{row.profile + '/' if row.profile else ''}{row.name}\n" + "  ".join(numbers[:4])


def _tile(row: Row, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    present = [side for side in SIDES if side in row.thumbs]
    tile = Image.new("RGB", (len(present) * (CELL + _GAP), CELL + _CAPTION + _GAP), "white")
    draw = ImageDraw.Draw(tile)
    for index, side in enumerate(present):
        picture = Image.open(io.BytesIO(row.thumbs[side]))
        scale = CELL / max(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
        left = index * (CELL + _GAP)
        tile.paste(picture, (left, _CAPTION))
        draw.text(
            (left + 4, _CAPTION + 3),
            LABELS[side],
            fill="white",
            stroke_width=2,
            stroke_fill="black",
            font=font,
        )
    draw.multiline_text((2, 0), caption(row), fill="black", font=font, spacing=2)
    return tile


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    if not tiles:
        return Image.new("RGB", (CELL, _CAPTION), "white")
    width, height = (max(tile.size[axis] for tile in tiles) for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % columns * width, index // columns * height))
    return sheet

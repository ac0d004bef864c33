"""Numbered boxes on a picture, for people."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#ff5a36", "#36c5ff", "#ffd23f", "#7ae582", "#c77dff", "#ff9ff3", "#00d1b2", "#f7f7f7")
GREY = "#8a8a8a"
Box = tuple[float, float, float, float]


def draw_boxes(
    picture: Image.Image, boxes: Sequence[Box], captions: Sequence[str], colours: Sequence[int | None]
) -> None:
    """Draw boxes with captions on an RGB picture, in place.

    Args:
        boxes: x0, y0, x1, y1 [px]; may reach over the border.
        captions: one short text per box, drawn on a patch of the box's colour.
        colours: index into `COLOURS` per box; None draws in grey.
    """
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    line, font = max(3, side // 250), ImageFont.load_default(size=max(14, side // 32))
    for box, caption, index in zip(boxes, captions, colours, strict=True):
        colour = GREY if index is None else COLOURS[index % len(COLOURS)]
        draw.rectangle(box, outline=colour, width=line)
        place = (max(0.0, box[0]), max(0.0, box[1]))
        patch = draw.textbbox(place, caption, font=font, anchor="la")
        draw.rectangle((patch[0], patch[1], patch[2] + 4, patch[3] + 4), fill=colour)
        draw.text((place[0] + 2, place[1] + 2), caption, fill="black", font=font, anchor="la")

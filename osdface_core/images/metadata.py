"""What a photo's file says besides its pixels, and how that follows when the pixels are turned upright."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import exif, photoshop, xmp


@dataclass
class Metadata:
    """Side notes of a photo's file.

    Attributes: see `Photo`, whose fields of these names they become.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    photoshop: bytes | None = None
    comments: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: list[str] = field(default_factory=list)

    def make_upright(self) -> int:
        """Reset the orientation everywhere; leave out what cannot follow the pixels, each with a note.

        Returns:
            the orientation (1 to 8) that the stored pixels have: EXIF's, or XMP's where EXIF names none.
        """
        if self.exif and not exif.is_readable(self.exif):
            self.exif = None
            self.notes.append("its EXIF block is damaged and left out")
        turn = exif.find_orientation(self.exif) or xmp.orientation(self.xmp)
        self.exif = exif.reset_orientation(self.exif)
        self.xmp = xmp.reset_orientation(self.xmp)
        if turn != 1:
            self.exif = exif.without_thumbnail(self.exif)
            self.photoshop = photoshop.turned(self.photoshop)
        if turn >= 5:
            self.exif = exif.swap_resolution(self.exif)
            self.dpi = (self.dpi[1], self.dpi[0]) if self.dpi else None
        self.xmp, left_out = xmp.without_companions(self.xmp, thumbnails=turn != 1)
        self.notes += left_out
        return turn

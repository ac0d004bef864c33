"""What travels between nodes on the pack's own sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..osdface_core.faces.face import Face

FACES, VRE, BACKBONE = "OSDFACE_FACES", "OSDFACE_VRE", "OSDFACE_BACKBONE"


@dataclass(frozen=True)
class FaceSet:
    """OSDFACE_FACES: the faces of every frame, in the order of the crops that go with them.

    Attributes:
        frames: per frame its faces; coordinates in pixels of frames of `height` x `width`.
        numbers: per frame how each face is called in previews and selections: its track in a clip, else its
            place in the photo when it was detected. A selection keeps the numbers.
        height, width: size of the frames that the detector saw [px].
    """

    frames: tuple[tuple[Face, ...], ...]
    numbers: tuple[tuple[int, ...], ...]
    height: int
    width: int

    def __len__(self) -> int:
        return sum(len(faces) for faces in self.frames)

    def __iter__(self) -> Iterator[Face]:
        return (face for faces in self.frames for face in faces)

    def with_identity(self, before_after: list[tuple[float, float]]) -> FaceSet:
        """Add identity scores to the faces, one pair per face in order."""
        scores = iter(before_after)
        frames = tuple(
            tuple(replace(f, identity_before_after=next(scores)) for f in faces) for faces in self.frames
        )
        return replace(self, frames=frames)

    def scale_to(self, height: int, width: int) -> FaceSet:
        """Return the same faces on frames of another size of the same shape.

        Raises:
            ValueError: the shapes differ by more than rounding.
        """
        if (height, width) == (self.height, self.width):
            return self
        sx, sy = width / self.width, height / self.height
        # An upscaler may round each side to a multiple of 8 or 16.
        if abs(sx / sy - 1.0) > 0.03:
            raise ValueError(
                f"the image is {width}x{height} but the faces were found on {self.width}x{self.height}: "
                "give Paste Back the same photo, in its own or another size, uncropped"
            )
        frames = tuple(tuple(face.scaled(sx, sy) for face in faces) for faces in self.frames)
        return FaceSet(frames, self.numbers, height, width)

    def to_json(self) -> str:
        """Write one entry per face: frame, number and everything known about it."""
        entries = [
            {"frame": i, "number": number, **face.to_dict()}
            for i, faces in enumerate(self.frames)
            for number, face in zip(self.numbers[i], faces, strict=True)
        ]
        return json.dumps({"width": self.width, "height": self.height, "faces": entries}, indent=1)

"""Colour profiles from what a PNG (or a video codec) says about its colours, for formats that hold only ICC.

Source: ICC.1:2001-04 (version 2 profiles), ITU-T H.273 (code points), PNG specification 11.3.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .metadata import Metadata

Numbers = Sequence[float] | np.ndarray

D65 = (0.3127, 0.3290)
PRIMARIES = {
    1: (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # BT.709, sRGB
    5: (*D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),  # BT.601, 625 lines
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # BT.601, 525 lines
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
"""H.273 colour primaries: x and y of white, red, green, blue, in the order of PNG's cHRM."""
SRGB = (1, 13, 0, 1)
D50 = np.array((0.9642, 1.0, 0.8249))
BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))
STEPS = 1024


def from_chunks(about: Metadata, *, grey: bool) -> tuple[bytes | None, str]:
    """Choose or make the profile that says what the colour chunks of a PNG say.

    cICP goes before a profile, sRGB after it, and gAMA with cHRM come last (PNG specification 4.3).

    Returns:
        the profile, or None for sRGB and where there is none that says it; then a line, else nothing.
    """
    chunks = dict(about.chunks)
    if len(code := chunks.get(b"cICP", b"")) == 4:
        return _from_code(code, grey)
    if about.icc or b"sRGB" in chunks:
        return about.icc, ""
    gamma = chunks.get(b"gAMA", b"")
    primaries = chunks.get(b"cHRM", b"")
    if len(gamma) != 4 and len(primaries) != 32:
        return None, ""
    exponent = 1e5 / max(1, int.from_bytes(gamma, "big")) if len(gamma) == 4 else 2.2
    values = np.array(struct.unpack(">8I", primaries)) / 1e5 if len(primaries) == 32 else PRIMARIES[1]
    plain = np.allclose(values, PRIMARIES[1], atol=0.002) and abs(exponent - 2.2) < 0.02
    return (None, "") if plain else _made(values, exponent, grey)


def _from_code(code: bytes, grey: bool) -> tuple[bytes | None, str]:
    primaries, transfer, matrix, full = code
    primaries = 6 if primaries == 7 else primaries  # SMPTE 240M has those of BT.601
    if (primaries, transfer, matrix, full) == SRGB:
        return None, ""
    curve = _curve(transfer)
    if primaries not in PRIMARIES or curve is None or matrix or not full:
        kind = {16: "PQ", 18: "HLG"}.get(transfer, f"{primaries}/{transfer}/{matrix}/{full}")
        return None, f"its colours ({kind}) need a PNG: other formats show them wrongly"
    return _made(PRIMARIES[primaries], curve, grey)


def _curve(transfer: int) -> float | np.ndarray | None:
    """H.273 transfer characteristics as an exponent or as linear light at even steps of the signal."""
    if transfer in (4, 5, 8):
        return {4: 2.2, 5: 2.8, 8: 1.0}[transfer]
    signal = np.linspace(0.0, 1.0, STEPS)
    if transfer == 13:
        return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    if transfer in (1, 6, 14, 15):
        return np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))
    return None


def _made(values: Numbers, curve: float | np.ndarray, grey: bool) -> tuple[bytes | None, str]:
    try:
        return profile(values, curve, grey=grey), ""
    except (np.linalg.LinAlgError, ValueError, struct.error):
        return None, "its colour description is damaged and left out"


def profile(primaries: Numbers, curve: float | np.ndarray, *, grey: bool = False) -> bytes:
    """Make an ICC profile of version 2.

    Args:
        primaries: x and y of white, red, green, blue.
        curve: exponent, or linear light at even steps of the signal.
        grey: for one channel, with the white point alone.
    Raises:
        ValueError, LinAlgError: primaries that make no colour space.
    """
    points = np.asarray(primaries, float).reshape(4, 2)
    if not np.isfinite(points).all() or (points[:, 1] <= 0).any():
        raise ValueError("primaries out of range")
    xyz = np.stack((points[:, 0], points[:, 1], 1 - points.sum(axis=1))) / points[:, 1]
    white, columns = xyz[:, 0], xyz[:, 1:]
    columns = columns * np.linalg.solve(columns, white)
    cone = BRADFORD @ white
    adapted = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / cone) @ BRADFORD @ columns
    response = _curve_tag(curve)
    text = b"made from the colour description of the source"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(1 + 8 + 3 + 67),
        b"cprt": b"text\0\0\0\0no copyright\0",
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(D50),
    }
    response = _curve_tag(curve)
    if grey:
        tags[b"kTRC"] = response
    for number, name in enumerate(() if grey else (b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(adapted[:, number])
        tags[name + b"TRC"] = response
    return _packed(tags, b"GRAY" if grey else b"RGB ")


def _fixed(values: Numbers) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _curve_tag(curve: float | np.ndarray) -> bytes:
    if isinstance(curve, np.ndarray):
        table = np.rint(curve * 65535).astype(">u2")
        return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve * 256))


def _packed(tags: dict[bytes, bytes], space: bytes) -> bytes:
    place, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = place + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2001, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + table + body

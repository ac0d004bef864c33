"""A small part of the fuzzing campaign (`python -m tests.fuzz`), and what it found with the right answers."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osdface_core.errors import ImageError
from osdface_core.images import Photo, exif, jpeg, png, read_photo, tiff, write_photo, xmp
from tests.fuzz import models, photos
from tests.test_image_metadata import chunks_of, jpeg_with, picture, png_with

SECONDS = 10.0


def at_once(step: str, action: Callable[[], Any], decoded: object) -> Any:
    return action()


@pytest.fixture(scope="module")
def whole_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, models.Files]:
    return models.seeds(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return photos.seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("number", range(40))
def test_damaged_photos(number: int, whole: dict[str, bytes], tmp_path: Path) -> None:
    start = time.process_time()
    photos.check(photos.put(tmp_path, *photos.mutant(number, whole)), at_once)
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("number", range(12))
def test_damaged_models(
    number: int, whole_models: dict[str, models.Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    path = models.put(tmp_path, *models.mutant(number, whole_models))
    models.check(path, at_once)
    assert time.process_time() - start < SECONDS
    assert not (tmp_path / "executed").exists()


def test_whole_models_are_loaded(whole_models: dict[str, models.Files], tmp_path: Path) -> None:
    for kind, files in whole_models.items():
        assert models.check(models.put(tmp_path, kind, files), at_once) == f"loaded: {kind}"


def test_whole_photos_are_read(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in whole.items():
        assert photos.check(photos.put(tmp_path, name, data), at_once) == "read", name


# --- photos ---


def directory(*entries: bytes) -> bytes:
    """An EXIF block whose first directory, at 8, has these raw fields."""
    return exif.PREFIX + b"II*\0\10\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def test_directories_that_name_each_other_end_soon() -> None:
    again = struct.pack("<HHII", exif.EXIF, 4, 1, 8)
    start = time.process_time()
    exif.fields(directory(*[again] * 2000))
    assert time.process_time() - start < SECONDS


def test_a_value_named_many_times_is_held_within_bounds() -> None:
    many = [struct.pack("<HHII", 1000 + n, 7, 1 << 20, 8) for n in range(3000)]
    found = exif.fields(directory(*many) + bytes(1 << 20))
    assert 0 < sum(len(entry.data) for entry in found) <= exif.TOTAL


def test_thousands_of_fields_are_shortened_soon() -> None:
    entries = [exif.Entry(tag, 2, 11, b"0123456789\0") for tag in range(20_000)]
    block = exif.pack([exif.Entry(40_000, 2, 5, b"kept\0"), *entries], "<")
    start = time.process_time()
    shorter, gone = exif.fitted(block, 65533)
    assert time.process_time() - start < SECONDS and shorter and 50_000 < len(shorter) <= 65533
    assert 40_000 in {entry.tag for entry in exif.fields(shorter)} and len(gone) < 300


def test_a_field_beyond_the_file_costs_only_itself(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tags = [(285, 2, 20, "x" * 19, True)]
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", bigtiff=True, extratags=tags)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    place = data.index(struct.pack("<HHQ", 285, 2, 20))
    data[place + 12 : place + 20] = b"\xff" * 8
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, picture())


def test_a_tiff_of_bits_that_nobody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", picture("uint16")[..., 0], photometric="minisblack")
    data, field = (tmp_path / "a.tif").read_bytes(), struct.Struct("<HHIHH")
    for tag, old, new in ((258, 16, 5384), (262, 1, 5)):  # bits a sample; grey to CMYK
        assert data.count(field.pack(tag, 3, 1, old, 0)) == 1
        data = data.replace(field.pack(tag, 3, 1, old, 0), field.pack(tag, 3, 1, new, 0))
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageError, match="a TIFF of 5384 bits, expected 8, 16 or 32: export it so"):
        read_photo(tmp_path / "a.tif")
    monkeypatch.setattr(tiff, "_has_tifffile", lambda: False)
    with pytest.raises(ImageError, match="which needs: pip install"):
        read_photo(tmp_path / "a.tif")


def test_all_notes_of_a_png_together_are_bounded(tmp_path: Path) -> None:
    bomb = b"k\0\0" + zlib.compress(bytes(15 << 20))
    photo = read_photo(png_with(tmp_path / "a.png", *[(b"zTXt", bomb)] * 20, (b"tEXt", b"last\0kept")))
    assert np.array_equal(photo.pixels, picture())
    assert len(photo.text["k"]) == 15 << 20 and photo.text["last"] == "kept"
    assert photo.notes == ("its zTXt chunk is left out (all together unpack to more than 16 MB)",)


def test_many_texts_of_one_name_are_joined_in_order(tmp_path: Path) -> None:
    texts = [(b"tEXt", b"k\0" + str(n).encode()) for n in range(9000)]
    start = time.process_time()
    assert read_photo(png_with(tmp_path / "a.png", *texts)).text["k"].split("\n") == [*map(str, range(9000))]
    assert time.process_time() - start < SECONDS


def test_chunks_without_end_are_left_out(tmp_path: Path) -> None:
    photo = read_photo(png_with(tmp_path / "a.png", *[(b"abCd", b"")] * (png.MOST_CHUNKS + 500)))
    assert np.array_equal(photo.pixels, picture()) and len(photo.notes) == 1
    assert "from number 10000 on" in photo.notes[0]


def test_a_jpeg_with_megabytes_of_filling(tmp_path: Path) -> None:
    path = jpeg_with(tmp_path / "a.jpg", (jpeg.COM, b"kept"))
    data = path.read_bytes()
    start = time.process_time()
    for filling in (b"\xff", b"\0", b"\xff\0", b"\xff\xd0"):
        notes, pixels = jpeg._split(data[:2] + filling * (8 << 20) + data[2:])
        assert notes == [(jpeg.COM, b"kept")] and pixels == jpeg._split(data)[1]
    assert time.process_time() - start < SECONDS


def test_xmp_of_a_million_tags_is_not_taken_apart() -> None:
    packet = b'<x xmlns:g="http://ns.adobe.com/hdr-gain-map/1.0/">' + b"<a/>" * 1_000_000 + b"</x>"
    assert xmp.without_companions(packet, thumbnails=False) == (None, ["its XMP is damaged and left out"])


@pytest.mark.parametrize(("suffix", "longest"), [(".jpg", 65500), (".webp", 16383)])
def test_a_side_that_a_format_does_not_hold(tmp_path: Path, suffix: str, longest: int) -> None:
    write_photo(tmp_path / f"a{suffix}", Photo(np.zeros((longest, 1, 3), np.uint8)))
    with pytest.raises(
        ImageError, match=f"holds at most {longest} px a side, not {longest + 1}: choose another"
    ):
        write_photo(tmp_path / f"b{suffix}", Photo(np.zeros((longest + 1, 1, 3), np.uint8)))


def test_the_profile_and_notes_of_a_png_stay_where_they_were(tmp_path: Path) -> None:
    path = png_with(tmp_path / "a.png", (b"iTXt", b"k\0\0\0\0\0v"))
    write_photo(tmp_path / "b.png", read_photo(path))
    assert chunks_of(tmp_path / "b.png")[b"tEXt"] == b"k\0v"

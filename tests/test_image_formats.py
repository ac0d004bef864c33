"""One list of formats for all commands: what is read is read everywhere, what is not is named, never lost."""

import importlib.util
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from osdface_core.cli.inputs import plan
from osdface_core.errors import ConfigError, ImageError
from osdface_core.images import Photo, PhotoSearch, check_alpha, formats, read_photo, readable, write_photo
from osdface_trainer.data.sources import IMAGE_SUFFIXES
from osdface_trainer.evaluation.pairing import list_images
from osdface_trainer.prepare.run import _list_photos

SMOOTH = np.linspace(30, 220, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
HEIC_HEAD = b"\0\0\0\x18ftypheic" + bytes(99)


def put(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(SMOOTH).save(path, **options)
    return path


@pytest.fixture
def without_heic(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find(name)
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # an import then fails, installed or not
    readable.cache_clear()
    yield
    readable.cache_clear()


def test_photos_that_are_not_read_are_counted_and_named(tmp_path, without_heic):
    put(tmp_path / "in" / "a.jpg")
    for name in ("x.HEIC", "y.heic", "z.jxl", "raw.NEF", "notes.txt", ".hidden.jxl"):
        (tmp_path / "in" / name).write_bytes(HEIC_HEAD)
    jobs, missing = plan([str(tmp_path / "in")], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["a.jpg"]
    (told,) = missing
    assert not told.failed and "2 .heic" in told.reason and "osdface[heic]" in told.reason
    assert "1 .jxl" in told.reason and "1 .nef" in told.reason and "txt" not in told.reason
    _, (told,) = plan([str(tmp_path / "in" / "*")], tmp_path / "out")
    assert "2 .heic" in told.reason
    _, found = _list_photos(tmp_path / "in", tmp_path / "out")
    assert "2 .heic" in found.left_out[0]
    with pytest.raises(ImageError, match=r"osdface\[heic\]"):
        read_photo(tmp_path / "in" / "x.HEIC")


def test_every_command_takes_the_same_formats(tmp_path):
    names = [f"{number}{suffix}" for number, suffix in enumerate(sorted(readable() - set(formats.HEIC)))]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    jobs, missing = plan([str(tmp_path)], tmp_path / "out")
    prepared, _ = _list_photos(tmp_path, tmp_path / "out")
    assert not missing and {job.source.name for job in jobs} == set(names) == set(prepared)
    assert {path.name for path in list_images(tmp_path).values()} == set(names)
    assert readable() - set(formats.HEIC) == IMAGE_SUFFIXES


@pytest.mark.parametrize("name", ["a.gif", "a.tga", "a.jp2", "a.avif", "a.jfif", "a.dib"])
def test_formats_beyond_the_common_ones(tmp_path, name):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    put(tmp_path / name, **({"format": "JPEG"} if name == "a.jfif" else {}))
    photo = read_photo(tmp_path / name)
    assert np.abs(photo.pixels.astype(int) - SMOOTH).mean() < 4
    (job,), _ = plan([str(tmp_path / name)], tmp_path / "out")
    assert job.target == tmp_path / "out" / ("a.png" if name[1:] not in formats.SUFFIXES else name)
    write_photo(job.target, photo)
    assert np.abs(read_photo(job.target).pixels.astype(int) - photo.pixels).mean() < 2


def test_turned_avif_keeps_its_colours(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[274] = 6
    put(tmp_path / "a.avif", exif=exif.tobytes(), quality=95, subsampling="4:4:4")
    data = (tmp_path / "a.avif").read_bytes()
    at = data.index(b"colrnclx") + 8
    (tmp_path / "a.avif").write_bytes(data[:at] + bytes((0, 9, 0, 16)) + data[at + 4 :])
    photo = read_photo(tmp_path / "a.avif")
    assert photo.pixels.shape == (64, 48, 3) and photo.chunks == ((b"cICP", bytes((9, 16, 0, 1))),)


def test_heic_in_its_depth(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    deep = (np.linspace(0.1, 0.9, 48 * 64 * 3).reshape(48, 64, 3) * 65535).astype(np.uint16)
    heif.from_bytes("RGB;16", (64, 48), deep.tobytes()).save(tmp_path / "a.heic", quality=95)
    photo = read_photo(tmp_path / "a.heic")
    assert photo.pixels.dtype == np.uint16 and np.abs(photo.pixels.astype(int) - deep).mean() < 1500
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Phone"
    heif.from_pillow(Image.fromarray(SMOOTH)).save(tmp_path / "b.heic", exif=exif.tobytes(), quality=95)
    photo = read_photo(tmp_path / "b.heic")
    assert photo.pixels.shape == (64, 48, 3) and b"Phone" in photo.exif
    write_photo(tmp_path / "b.png", photo)
    again = read_photo(tmp_path / "b.png")
    assert np.array_equal(again.pixels, photo.pixels)  # turned once


def test_results_of_formats_that_are_only_read(tmp_path):
    for name in ("a.gif", "b.gif", "b.png", "c.gif", "c.tga", "d.jpg"):
        put(tmp_path / "in" / name)
    jobs, _ = plan([str(tmp_path / "in")], tmp_path / "out")
    names = {job.source.name: job.target.name for job in jobs}
    assert names == {
        "a.gif": "a.png",
        "b.gif": "b.gif.png",
        "b.png": "b.png",
        "c.gif": "c.gif.png",
        "c.tga": "c.tga.png",
        "d.jpg": "d.jpg",
    }


@pytest.mark.parametrize("suffix", [".avif", ".heic", ".jxl", ".GIF", ".pdf", ".psd", ".jp2"])
def test_unwritable_output_is_wrong_usage(tmp_path, suffix):
    put(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="is not written"):
        plan([str(tmp_path / "a.png")], tmp_path / f"want{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert plan([str(tmp_path / "a.png")], tmp_path / f"folder{suffix}")[0]
    assert plan([str(tmp_path / "a.png")], tmp_path / "results.v2")[0]  # a folder's name may have a dot


def test_linked_folders_are_searched_once(tmp_path):
    put(tmp_path / "in" / "own" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    for link, target in (
        ("album", "elsewhere"),
        ("again", "elsewhere"),
        ("own2", "in/own"),
        ("up", "."),
        ("own/loop", "in"),
    ):
        (tmp_path / "in" / link).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    found = PhotoSearch(tmp_path / "in")
    assert sorted(below.as_posix() for _, below in found) == ["again/b.png", "own/a.png"]
    assert len(found.left_out) == 1 and "up leads to a folder around it" in found.left_out[0]


def test_folders_that_cannot_be_opened_are_failures(tmp_path, monkeypatch):
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "locked" / "b.png")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    jobs, (missing,) = plan([str(tmp_path / "in")], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["a.png"]
    assert missing.failed and missing.source.endswith("locked") and "Permission denied" in missing.reason


def test_videos_of_a_folder_are_named(tmp_path):
    put(tmp_path / "a.png")
    for name in ("film.mp4", "sub/b.MP4", "c.mkv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for given in (tmp_path, tmp_path / "**" / "*"):
        jobs, (told,) = plan([str(given)], tmp_path / "out")
        assert len(jobs) == 1 and not told.failed
        assert "1 .mkv (videos; osdface restore takes them by name); 2 .mp4 (videos" in told.reason


def test_folders_that_a_glob_meets_are_told(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "sub" / "b.png")
    jobs, (told,) = plan([str(tmp_path / "*")], tmp_path / "out")
    assert len(jobs) == 1 and not told.failed and "1 folders" in told.reason
    assert plan([str(tmp_path / "**" / "*")], tmp_path / "out")[1] == []


def test_transparency_is_refused_before_the_model(tmp_path):
    clear = Photo(SMOOTH, np.zeros((48, 64), np.uint8))
    with pytest.raises(ImageError, match="transparency"):
        check_alpha(tmp_path / "a.jpg", clear)
    check_alpha(tmp_path / "a.png", clear)


def test_a_photo_without_suffix_of_a_format_that_is_only_read(tmp_path):
    write_photo(tmp_path / "photo", Photo(SMOOTH, format="GIF"))
    assert read_photo(tmp_path / "photo").format == "PNG"
    assert stat.S_ISREG((tmp_path / "photo").stat().st_mode)

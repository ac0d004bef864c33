"""Photo files: depth, alpha, profile, EXIF and orientation survive; damage is one clear line."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from osdface_core.errors import ImageError
from osdface_core.images import Photo, from_unit, read_photo, to_unit, write_photo, xmp
from osdface_core.images import exif as exif_block
from osdface_core.images.read import upright

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_ICC = ICC[:16] + b"GRAY" + ICC[20:]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="1" dc:title="a"/></x:xmpmeta>'
SLOW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def make_exif(orientation: int = 1, order: str = "<") -> bytes:
    """Make and artist, orientation, and a sub-directory with exposure time and a maker note."""
    entry = exif_block.Entry
    pack = "little" if order == "<" else "big"
    sub = (
        entry(33434, 5, 1, (1).to_bytes(4, pack) + (250).to_bytes(4, pack)),
        entry(37500, 7, 9, b"makernote"),
    )
    entries = (
        entry(271, 2, 6, b"Canon\x00"),
        entry(274, 3, 1, orientation.to_bytes(2, pack)),
        entry(315, 2, 4, b"Ann\x00"),
        entry(exif_block.EXIF, 4, 1, b"", sub),
    )
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + (8).to_bytes(4, pack)
    return exif_block.PREFIX + head + exif_block.serialise(entries, order, 8)


def ramp(dtype: str, height: int = 37, width: int = 53) -> np.ndarray:
    noise = np.random.default_rng(7).random((height, width, 3))
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return (noise * full).astype(dtype)


def exif_tags(path: Path) -> tuple:
    """As Pillow reads them: from a TIFF's own directory, else from the EXIF block."""
    exif = Image.Exif()
    if path.suffix == ".tif":
        exif.load_from_fp(io.BytesIO(path.read_bytes()))
    else:
        exif = Image.open(path).getexif()
    sub = exif.get_ifd(exif_block.EXIF)
    return exif.get(271), exif.get(315), float(sub[33434]), bytes(sub[37500]), exif.get(274, 1)


@SLOW
@given(
    case=st.sampled_from(
        [
            ("png", "uint8"),
            ("png", "uint16"),
            ("tif", "uint8"),
            ("tif", "uint16"),
            ("tif", "float32"),
            ("webp", "uint8"),
        ]
    ),
    alpha=st.booleans(),
    grey=st.booleans(),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 9999),
)
def test_lossless_round_trip(tmp_path, case, alpha, grey, shape, seed):
    suffix, dtype = case
    random = np.random.default_rng(seed)
    full = {"uint8": 255, "uint16": 65535, "float32": 1.0}[dtype]
    pixels = (random.random((*shape, 3)) * full).astype(dtype)
    pixels = np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels
    plane = (random.random(shape) * full).astype(dtype) if alpha else None
    photo = Photo(
        pixels, plane, grey=grey, icc=GREY_ICC if grey else ICC, exif=make_exif(), xmp=XMP, dpi=(300, 300)
    )
    path = tmp_path / f"p.{suffix}"
    write_photo(path, photo)
    back = read_photo(path)
    assert back.pixels.dtype == np.dtype(dtype)
    assert np.array_equal(back.pixels, pixels)
    assert (back.alpha is None) if plane is None else np.array_equal(back.alpha, plane)
    assert back.grey == (grey and suffix != "webp")
    assert back.icc == (None if grey and suffix == "webp" else photo.icc)  # a grey profile fits no RGB file
    assert back.xmp is not None and back.xmp.strip() == XMP
    assert exif_tags(path) == ("Canon", "Ann", 0.004, b"makernote", 1)
    if suffix != "webp":
        assert back.dpi == pytest.approx((300, 300), rel=1e-3)
    again = tmp_path / f"q.{suffix}"
    write_photo(again, back)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_keeps_exif_of_either_byte_order(tmp_path, order):
    path = tmp_path / "a.tif"
    write_photo(path, Photo(ramp("uint16"), exif=make_exif(order=order), icc=ICC))
    assert exif_tags(path)[:4] == ("Canon", "Ann", 0.004, b"makernote")
    assert np.array_equal(tifffile.imread(path), ramp("uint16"))
    assert exif_block.byte_order(path.read_bytes()) == order


def test_jpeg_keeps_metadata_and_full_chroma(tmp_path):
    path = tmp_path / "a.jpg"
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    write_photo(path, Photo(smooth, icc=ICC, exif=make_exif(), xmp=XMP, dpi=(240, 240)))
    back = read_photo(path)
    assert (back.icc, back.exif, back.xmp, back.dpi) == (ICC, make_exif(), XMP, (240, 240))
    assert np.abs(back.pixels.astype(int) - smooth).max() < 6 and not back.lossless
    with Image.open(path) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "16.png", "palette.tif"])
def test_orientation_is_applied_once(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20, :32], stored[:20, 32:], stored[20:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    block = make_exif(orientation)
    if suffix == "16.png":
        write_photo(path, Photo(stored.astype(np.uint16) * 257, exif=block))
    elif suffix == "tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        picture = Image.fromarray(stored)
        picture = picture.quantize(8) if suffix == "palette.tif" else picture
        picture.save(
            path,
            exif=block,
            **(
                {"lossless": True}
                if suffix == "webp"
                else {"quality": 95, "subsampling": 0}
                if suffix == "jpg"
                else {}
            ),
        )
    photo = read_photo(path)
    expected = upright(stored, orientation)
    scale = 257 if photo.pixels.dtype == np.uint16 else 1
    assert photo.pixels.shape == expected.shape
    assert np.abs(photo.pixels.astype(int) / scale - expected).mean() < 2
    target = tmp_path / f"b.{suffix}"
    write_photo(target, photo)
    assert np.abs(read_photo(target).pixels.astype(int) - photo.pixels).mean() < 2
    assert Image.open(target).getexif().get(274, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_agrees_with_pillow(orientation):
    from PIL import ImageOps

    array = ramp("uint8")
    image = Image.fromarray(array)
    image.getexif()[274] = orientation
    assert np.array_equal(upright(array, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_reset_orientation_changes_one_value():
    block = make_exif(6)
    reset = exif_block.reset_orientation(block)
    assert exif_block.find_orientation(block) == 6 and exif_block.find_orientation(reset) == 1
    assert sum(a != b for a, b in zip(block, reset, strict=True)) == 1
    assert xmp.reset_orientation(b'tiff:Orientation="6"') == b'tiff:Orientation="1"'


@SLOW
@given(st.binary(max_size=200))
def test_damaged_exif_never_raises(data):
    for block in (data, exif_block.PREFIX + data, make_exif(3)[: len(data)], make_exif(3) + data):
        assert 0 <= exif_block.find_orientation(block) <= 8
        assert len(exif_block.reset_orientation(block)) == len(block)
        body = block.removeprefix(exif_block.PREFIX)
        exif_block.parse(
            lambda place, size, body=body: body[place : place + size], 8, exif_block.Header("<", 8)
        )


def test_grey_palette_cmyk_and_transparency(tmp_path):
    base = Image.fromarray(ramp("uint8"))
    base.convert("L").save(tmp_path / "grey.png")
    grey = read_photo(tmp_path / "grey.png")
    assert grey.grey and np.array_equal(grey.pixels[..., 0], np.asarray(base.convert("L")))
    base.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_photo(tmp_path / "bits.png").pixels)) == {0, 255}
    base.quantize(16).save(tmp_path / "palette.png")
    assert np.array_equal(
        read_photo(tmp_path / "palette.png").pixels, np.asarray(base.quantize(16).convert("RGB"))
    )
    base.quantize(16).save(tmp_path / "clear.png", transparency=3)
    clear = read_photo(tmp_path / "clear.png")
    assert clear.alpha is not None and np.array_equal(clear.alpha == 0, np.asarray(base.quantize(16)) == 3)
    base.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    cmyk = read_photo(tmp_path / "cmyk.jpg")
    assert cmyk.pixels.shape == (37, 53, 3) and cmyk.icc is None
    base.convert("LA").save(tmp_path / "la.png")
    assert read_photo(tmp_path / "la.png").grey


def test_depth_follows_the_format(tmp_path):
    deep = ramp("uint16")
    for name, expected in (
        ("a.jpg", np.uint8),
        ("a.bmp", np.uint8),
        ("a.png", np.uint16),
        ("a.tif", np.uint16),
    ):
        write_photo(tmp_path / name, Photo(deep))
        assert read_photo(tmp_path / name).pixels.dtype == expected
    assert np.array_equal(read_photo(tmp_path / "a.bmp").pixels, np.rint(deep / 257).astype(np.uint8))
    write_photo(tmp_path / "f.png", Photo(ramp("float32")))
    assert np.array_equal(
        read_photo(tmp_path / "f.png").pixels, np.rint(ramp("float32") * 65535).astype(np.uint16)
    )


def test_float_tiff_keeps_values_beyond_one(tmp_path):
    hdr = ramp("float32") * 8 - 2
    write_photo(tmp_path / "hdr.tif", Photo(hdr))
    assert np.array_equal(read_photo(tmp_path / "hdr.tif").pixels, hdr)


def test_tiff_variants(tmp_path):
    data = ramp("uint16")
    tifffile.imwrite(
        tmp_path / "planar.tif", np.moveaxis(data, -1, 0), photometric="rgb", planarconfig="separate"
    )
    assert np.array_equal(read_photo(tmp_path / "planar.tif").pixels, data)
    tifffile.imwrite(tmp_path / "white.tif", data[..., 0], photometric="miniswhite")
    assert np.array_equal(read_photo(tmp_path / "white.tif").pixels[..., 0], 65535 - data[..., 0])
    tifffile.imwrite(tmp_path / "big.tif", data, photometric="rgb", byteorder=">", bigtiff=True)
    big = read_photo(tmp_path / "big.tif")
    assert big.pixels.dtype == np.uint16 and big.pixels.dtype.isnative and np.array_equal(big.pixels, data)
    tifffile.imwrite(
        tmp_path / "pre.tif", np.dstack((data, data[..., :1])), photometric="rgb", extrasamples=["assocalpha"]
    )
    pre = read_photo(tmp_path / "pre.tif")
    write_photo(tmp_path / "pre2.tif", pre)
    assert pre.premultiplied and read_photo(tmp_path / "pre2.tif").premultiplied
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([data, data]), photometric="rgb")
    with pytest.raises(ImageError, match="2 pages"):
        read_photo(tmp_path / "pages.tif")
    tifffile.imwrite(tmp_path / "int.tif", data.astype(np.int32), photometric="rgb")
    with pytest.raises(ImageError, match="int32"):
        read_photo(tmp_path / "int.tif")


def test_png_text_survives(tmp_path):
    text = {"prompt": '{"1": "ü"}', "parameters": "steps 1"}
    for dtype in ("uint8", "uint16"):
        write_photo(tmp_path / "a.png", Photo(ramp(dtype), text=text, xmp=XMP))
        back = read_photo(tmp_path / "a.png")
        assert back.text == text and back.xmp == XMP


def test_bad_files_are_one_line(tmp_path):
    good = tmp_path / "good.png"
    write_photo(good, Photo(ramp("uint8", 200, 200)))
    deep = tmp_path / "deep.png"
    write_photo(deep, Photo(ramp("uint16", 200, 200)))
    tiff = tmp_path / "good.tif"
    write_photo(tiff, Photo(ramp("uint16", 200, 200)))
    jpeg = tmp_path / "good.jpg"
    write_photo(jpeg, Photo(ramp("uint8", 200, 200)))
    cases = {
        "missing.png": None,
        "empty.png": b"",
        "text.jpg": b"hello, this is no picture",
        "short.tif": b"II*\x00",
    }
    for source in (good, deep, tiff, jpeg):
        cases["cut_" + source.name] = source.read_bytes()[: source.stat().st_size // 2]
    for name, data in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError) as error:
            read_photo(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)
    with pytest.raises(ImageError, match="folder"):
        read_photo(tmp_path)


def test_animation_and_bomb_are_refused(tmp_path, monkeypatch):
    frames = [Image.fromarray(ramp("uint8")) for _ in range(2)]
    frames[1] = Image.new("RGB", frames[0].size)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        read_photo(tmp_path / "a.gif")
    write_photo(tmp_path / "a.png", Photo(ramp("uint8")))
    write_photo(tmp_path / "a.tif", Photo(ramp("uint8")))
    monkeypatch.setattr("osdface_core.images.plane.LARGEST", 1000)
    for name in ("a.png", "a.tif"):
        with pytest.raises(ImageError, match=r"1000|most"):
            read_photo(tmp_path / name)


def test_refuses_what_the_format_cannot_hold(tmp_path):
    clear = np.zeros((37, 53), np.uint8)
    with pytest.raises(ImageError, match="transparency"):
        write_photo(tmp_path / "a.jpg", Photo(ramp("uint8"), clear))
    write_photo(tmp_path / "b.jpg", Photo(ramp("uint8"), clear + 255))  # opaque: nothing is lost
    with pytest.raises(ImageError, match=r"cannot write \.xyz"):
        write_photo(tmp_path / "a.xyz", Photo(ramp("uint8")))
    with pytest.raises(ImageError, match="choose another format"):
        write_photo(tmp_path / "a.webp", Photo(np.zeros((1, 16384, 3), np.uint8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jpg"]


def test_full_disk_leaves_the_old_file(tmp_path):
    """A file-size limit makes the system refuse the write half-way, as a full disk does."""
    names = ["a.png", "a.tif", "a.jpg", "deep.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    root = Path(__file__).resolve().parents[1]
    code = f"""
import resource, sys
sys.path.insert(0, {str(root)!r})
import numpy as np
from osdface_core.images import Photo, write_photo
from osdface_core.errors import ImageError
pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for name in {names!r}:
    try:
        photo = Photo(pixels.astype("uint16" if "deep" in name else "uint8"))
        write_photo({str(tmp_path)!r} + "/" + name, photo)
    except ImageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / name) for name in names
    ]
    assert done.stdout.count("cannot be written") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).read_bytes() == b"old" for name in names)


def test_grey_that_was_coloured_is_written_in_colour(tmp_path):
    photo = Photo(ramp("uint8"), grey=True, icc=GREY_ICC)
    write_photo(tmp_path / "a.png", photo)
    back = read_photo(tmp_path / "a.png")
    assert not back.grey and back.icc is None and np.array_equal(back.pixels, photo.pixels)


def test_lossy_webp_is_known(tmp_path):
    image = Image.fromarray(ramp("uint8"))
    for name, options in (
        ("a.webp", {}),
        ("b.webp", {"icc_profile": ICC}),
        ("c.webp", {"lossless": True, "icc_profile": ICC}),
    ):
        image.save(tmp_path / name, **options)
        assert read_photo(tmp_path / name).lossless == options.get("lossless", False)


def test_second_picture_of_a_phone_jpeg(tmp_path):
    image = Image.fromarray(ramp("uint8"))
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image])
    assert read_photo(tmp_path / "a.jpg").format == "JPEG"


@SLOW
@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
)
def test_unit_round_trip_is_exact(plane):
    array = np.repeat(plane[..., None], 3, axis=2)
    unit = to_unit(array)
    assert unit.dtype == torch.float32 and 0 <= float(unit.min()) <= float(unit.max()) <= 1
    assert np.array_equal(from_unit(unit, array.dtype), array)
    assert np.array_equal(from_unit(to_unit(plane), array.dtype), array)


def test_from_unit_rounds_and_cuts():
    values = torch.tensor([-0.1, 0.49 / 255, 0.51 / 255, 1.2]).view(1, 2, 2).expand(3, 2, 2)
    assert from_unit(values, "uint8")[..., 0].ravel().tolist() == [0, 0, 1, 255]
    with pytest.raises(ImageError):
        from_unit(values, "int64")
    with pytest.raises(ImageError):
        to_unit(np.zeros((2, 2, 4), np.uint8))


def test_huge_photo_within_memory(tmp_path):
    """A 12,000 x 9,000 header is accepted (the pixels are one grey, so the file is small)."""
    buffer = io.BytesIO()
    Image.new("L", (12000, 9000), 128).save(buffer, "PNG")
    (tmp_path / "big.png").write_bytes(buffer.getvalue())
    photo = read_photo(tmp_path / "big.png")
    assert photo.pixels.shape == (9000, 12000, 3) and photo.grey
    assert dataclasses.replace(photo, pixels=photo.pixels[:2]).pixels.shape == (2, 12000, 3)

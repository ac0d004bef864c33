"""What a photo's file says: colours, text, EXIF, XMP and IPTC are kept whole, or left out with one line."""

import dataclasses
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from osdface_core.errors import ImageError
from osdface_core.images import Photo, exif, icc, jpeg, photoshop, png, read_photo, write_photo, xmp
from osdface_core.images.metadata import Metadata
from osdface_core.images.read import upright

GAMMA_ONE = (b"gAMA", struct.pack(">I", 100000))
P3 = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
HDR = (b"cICP", bytes((9, 16, 0, 1)))
SRGB = (b"sRGB", b"\0")
LIGHT = (b"mDCV", bytes(24))
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
CAPTION = b"\x1c\x02\x78\x00\x0fGrandma in 1952"


def picture(dtype: str = "uint8", height: int = 40, width: int = 64) -> np.ndarray:
    full = 65535 if dtype == "uint16" else 255
    return (np.random.default_rng(3).random((height, width, 3)) * full).astype(dtype)


def packet(properties: str, inner: str = "") -> bytes:
    """An XMP packet with attributes and elements of one description."""
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f"{properties}>{inner}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def png_with(path: Path, *chunks: tuple[bytes, bytes], dtype: str = "uint8", broken: bytes = b"") -> Path:
    """A PNG with chunks behind its header; those of kind `broken` get a wrong checksum."""
    write_photo(path, Photo(picture(dtype)))
    data = path.read_bytes()
    head = len(png.MAGIC) + 25
    added = b""
    for kind, body in chunks:
        check = zlib.crc32(kind + body) ^ (kind == broken)
        added += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    path.write_bytes(data[:head] + added + data[head:])
    return path


def chunks_of(path: Path) -> dict[bytes, bytes]:
    return {kind: bytes(body) for kind, body, _, _ in png._walk(path.read_bytes())}


def jpeg_with(path: Path, *segments: tuple[int, bytes], stored: np.ndarray | None = None, **options) -> Path:
    buffer = io.BytesIO()
    smooth = np.zeros((40, 64, 3), np.uint8) if stored is None else stored
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95, subsampling=0, **options)
    data = buffer.getvalue()
    added = b"".join(b"\xff" + bytes((m,)) + struct.pack(">H", len(body) + 2) + body for m, body in segments)
    path.write_bytes(data[:2] + added + data[2:])
    return path


def segments_of(path: Path) -> list[tuple[int, bytes]]:
    return jpeg._split(path.read_bytes())[0]


def quarters() -> np.ndarray:
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20, :32], stored[:20, 32:], stored[20:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return stored


def exif_with_thumbnail(orientation: int, size: tuple[int, int] = (64, 40)) -> bytes:
    """Camera, orientation, size and a thumbnail in a second directory at the end of the block."""
    entry, thumb = exif.Entry, b"\xff\xd8thumbnail\xff\xd9"
    short = [struct.pack("<H", number) for number in (orientation, *size)]
    sub = (entry(40962, 3, 1, short[1]), entry(40963, 3, 1, short[2]), entry(37500, 7, 9, b"makernote"))
    first = exif.pack(
        (entry(271, 2, 6, b"Canon\0"), entry(274, 3, 1, short[0]), entry(exif.EXIF, 4, 1, b"", sub)), "<"
    )
    place = len(first) - len(exif.PREFIX)
    second = exif.serialise(
        (entry(513, 4, 1, struct.pack("<I", place + 30)), entry(514, 4, 1, struct.pack("<I", len(thumb)))),
        "<",
        place,
    )
    assert len(second) == 30
    link = len(exif.PREFIX) + 8 + 2 + 12 * 3
    return first[:link] + struct.pack("<I", place) + first[link + 4 :] + second + thumb


# --- colour descriptions of PNG ---


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_keeps_every_colour_description(tmp_path, dtype):
    told = (HDR, SRGB, GAMMA_ONE, P3, LIGHT, (b"cLLI", bytes(8)))
    path = png_with(tmp_path / "a.png", *told, dtype=dtype)
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, picture(dtype)) and photo.notes == ()
    assert write_photo(tmp_path / "b.png", photo) == ()
    assert {kind: body for kind, body in chunks_of(tmp_path / "b.png").items() if kind in png.COLOR} == dict(
        told
    )
    kinds = list(chunks_of(tmp_path / "b.png"))
    assert all(kinds.index(kind) < kinds.index(b"IDAT") for kind, _ in told)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_png_keeps_gamma(tmp_path, dtype):
    grey = np.repeat(picture(dtype)[..., :1], 3, axis=2)
    write_photo(tmp_path / "a.png", Photo(grey, grey=True, chunks=(GAMMA_ONE,)))
    photo = read_photo(tmp_path / "a.png")
    assert photo.grey and photo.chunks == (GAMMA_ONE,) and np.array_equal(photo.pixels, grey)
    write_photo(tmp_path / "a.jpg", photo)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(Image.open(tmp_path / "a.jpg").info["icc_profile"]))
    assert profile.profile.xcolor_space.strip() == "GRAY"


def shown(samples: np.ndarray, profile: bytes) -> np.ndarray:
    """Samples as an sRGB screen shows them."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(Image.fromarray(samples), source, ImageCms.createProfile("sRGB"))
    return np.asarray(shown).astype(int)


def test_gamma_and_primaries_become_a_profile(tmp_path):
    patches = np.array(
        [[[128, 128, 128], [64, 64, 64], [255, 255, 255], [0, 255, 0], [200, 120, 90]]], np.uint8
    )
    write_photo(tmp_path / "a.tif", Photo(patches, chunks=(GAMMA_ONE,)))
    profile = read_photo(tmp_path / "a.tif").icc
    linear = patches / 255
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert profile and np.abs(shown(patches, profile) - expected).max() <= 2
    # Display P3 by code points, against littlecms' own profile of the same primaries
    write_photo(tmp_path / "b.tif", Photo(patches, chunks=((b"cICP", bytes((12, 13, 0, 1))),)))
    wide = shown(patches, read_photo(tmp_path / "b.tif").icc)
    assert np.abs(wide[0, :3] - patches[0, :3]).max() <= 1  # neutral greys stay
    light = np.where(patches <= 10, patches / 3294.6, ((patches / 255 + 0.055) / 1.055) ** 2.4)[0, 4]
    srgb = ((1.2249, -0.2247, 0), (-0.0420, 1.0419, 0), (-0.0197, -0.0786, 1.0979)) @ light  # CSS Color 4
    assert np.abs(wide[0, 4] - 255 * (1.055 * srgb ** (1 / 2.4) - 0.055)).max() <= 1.5


def test_what_means_srgb_needs_no_profile(tmp_path):
    plain = (
        (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in icc.PRIMARIES[1]))),
    )
    for chunks in ((SRGB, GAMMA_ONE), plain, ((b"cICP", bytes((1, 13, 0, 1))),), ()):
        assert icc.from_chunks(Metadata(chunks=chunks), grey=False) == (None, "")
    own = Metadata(icc=b"profile", chunks=(GAMMA_ONE,))
    assert icc.from_chunks(own, grey=False) == (b"profile", "")  # a profile goes before gamma
    assert icc.from_chunks(Metadata(chunks=((b"cHRM", bytes(32)), GAMMA_ONE)), grey=False)[1]  # nonsense


def test_hdr_png_to_jpeg_is_told(tmp_path):
    notes = write_photo(tmp_path / "a.jpg", Photo(picture(), chunks=(HDR,)))
    assert len(notes) == 1 and "PQ" in notes[0] and "PNG" in notes[0]


def test_formats_without_a_place_for_it_say_so(tmp_path):
    photo = Photo(
        picture(), text={"prompt": "a"}, photoshop=photoshop.from_block(CAPTION), comments=(b"by Bob",)
    )
    for name, words in (("a.webp", "prompt"), ("b.bmp", "IPTC"), ("c.tif", "comment"), ("d.jpg", "prompt")):
        (note,) = write_photo(tmp_path / name, photo)
        assert words in note
    assert write_photo(tmp_path / "a.png", photo) == ()


# --- 16 bits without further packages ---


def adam7(samples: np.ndarray) -> bytes:
    """An interlaced 16-bit PNG."""
    height, width, channels = samples.shape
    raw = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = samples[y::dy, x::dx].astype(">u2")
        raw += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 1)
    return png.MAGIC + b"".join(
        png._chunk(kind, body)
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (61, 33)])
def test_sixteen_bit_png_of_every_kind(tmp_path, channels, size):
    samples = np.random.default_rng(5).integers(0, 65536, (*size, channels), np.uint16)
    samples[: size[0] // 2] = np.add.outer(np.arange(size[0] // 2), np.arange(size[1]))[..., None] * 97
    for data in (png.encode(samples, ()), adam7(samples)):
        (tmp_path / "a.png").write_bytes(data)
        photo = read_photo(tmp_path / "a.png")
        color = samples[..., : 3 if channels >= 3 else 1]
        assert np.array_equal(photo.pixels, np.broadcast_to(color, (*size, 3)))
        assert photo.alpha is None if channels in (1, 3) else np.array_equal(photo.alpha, samples[..., -1])


def test_sixteen_bit_encoder_agrees_with_another_decoder():
    import imagecodecs

    samples = picture("uint16", 301, 97)
    assert np.array_equal(imagecodecs.png_decode(png.encode(samples, ())), samples)


def test_sixteen_bit_encoder_is_small_and_fast():
    ramp = np.add.outer(np.arange(1000) * 40, np.arange(1000) * 20)[..., None]
    samples = (ramp + np.random.default_rng(0).integers(0, 300, (1000, 1000, 3))).astype(np.uint16)
    started = time.process_time()
    encoded = png.encode(samples, ())
    between = time.process_time()
    plain = zlib.compress(samples.tobytes())
    assert len(encoded) < 0.8 * len(plain)
    assert between - started < 1.3 * (time.process_time() - between)


def test_one_transparent_colour_in_sixteen_bits(tmp_path):
    samples = picture("uint16")
    samples[3, 4] = samples[7, 9] = (1, 2, 3)
    data = png.encode(samples, [(b"tRNS", struct.pack(">3H", 1, 2, 3))])
    (tmp_path / "a.png").write_bytes(data)
    alpha = read_photo(tmp_path / "a.png").alpha
    assert alpha is not None and sorted(map(tuple, np.argwhere(alpha == 0))) == [(3, 4), (7, 9)]


# --- side notes decide nothing ---


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_large_text_opens_and_stays(tmp_path, kind, dtype):
    text = b'{"nodes": 1}' * 150_000
    body = {
        b"tEXt": b"workflow\0" + text,
        b"zTXt": b"workflow\0\0" + zlib.compress(text),
        b"iTXt": b"workflow\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    photo = read_photo(png_with(tmp_path / "a.png", (kind, body), dtype=dtype))
    assert photo.text == {"workflow": text.decode()} and photo.notes == ()
    write_photo(tmp_path / "b.png", photo)
    assert read_photo(tmp_path / "b.png").text == photo.text


def test_text_bomb_and_damaged_notes_are_left_out(tmp_path):
    bomb = (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(png.LIMIT + 1)))
    damaged = ((b"iCCP", b"icc\0\0not deflated"), (b"zTXt", b"a\0\0xx"))
    photo = read_photo(png_with(tmp_path / "a.png", bomb, *damaged, (b"tEXt", b"good\0one")))
    assert photo.text == {"good": "one"} and photo.icc is None
    assert np.array_equal(photo.pixels, picture())
    assert [note.split()[1] for note in photo.notes] == ["zTXt", "iCCP", "zTXt"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_wrong_checksum_matters_in_the_pixels_only(tmp_path, dtype):
    path = png_with(tmp_path / "a.png", (b"tEXt", b"key\0value"), GAMMA_ONE, dtype=dtype, broken=b"tEXt")
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, picture(dtype)) and photo.chunks == (GAMMA_ONE,)
    assert photo.text == {} and photo.notes == ("its tEXt chunk is damaged and left out",)
    data = bytearray(path.read_bytes())
    data[
        data.index(b"IDAT")
        - 4
        + 8
        + int.from_bytes(data[data.index(b"IDAT") - 4 : data.index(b"IDAT")], "big")
    ] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="checksum"):
        read_photo(path)


def test_two_texts_of_one_name_both_stay(tmp_path):
    photo = read_photo(png_with(tmp_path / "a.png", (b"tEXt", b"Comment\0one"), (b"tEXt", b"Comment\0two")))
    assert photo.text == {"Comment": "one\ntwo"}


def test_chunks_of_others_are_copied_if_safe(tmp_path):
    photo = read_photo(
        png_with(tmp_path / "a.png", (b"abCd", b"kept"), (b"caBX", b"signature"), (b"tIME", bytes(7)))
    )
    assert photo.chunks == ((b"abCd", b"kept"),)
    assert photo.notes == ("its caBX chunk holds only for the old pixels and is left out",)
    write_photo(tmp_path / "b.png", photo)
    assert chunks_of(tmp_path / "b.png")[b"abCd"] == b"kept"


def test_apng_is_refused(tmp_path):
    frames = [Image.fromarray(picture()), Image.new("RGB", (64, 40))]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        read_photo(tmp_path / "a.png")


# --- blocks above 64 kB in JPEG ---


def large_exif(note: int = 90_000) -> bytes:
    entry = exif.Entry
    sub = (entry(37500, 7, 9, b"makernote"), entry(37510, 7, note, b"u" * note))
    return exif.pack((entry(271, 2, 6, b"Canon\0"), entry(exif.EXIF, 4, 1, b"", sub)), "<")


def test_exif_above_64_kb_is_shortened_in_jpeg(tmp_path):
    write_photo(tmp_path / "a.webp", Photo(picture(), exif=large_exif()))
    photo = read_photo(tmp_path / "a.webp")
    assert photo.exif == large_exif()
    (note,) = write_photo(tmp_path / "a.jpg", photo)
    assert "UserComment" in note and "MakerNote" in note
    kept = Image.open(tmp_path / "a.jpg").getexif()
    assert kept[271] == "Canon" and 37510 not in kept.get_ifd(exif.EXIF)


def test_exif_in_two_segments_is_one_block(tmp_path):
    body = large_exif()[len(exif.PREFIX) :]
    parts = [(jpeg.APP1, exif.PREFIX + body[start : start + 65000]) for start in (0, 65000)]
    photo = read_photo(jpeg_with(tmp_path / "a.jpg", *parts))
    assert photo.exif == large_exif()
    assert len(write_photo(tmp_path / "b.jpg", photo)) == 1 and read_photo(tmp_path / "b.jpg").exif


def test_thumbnail_goes_first_where_exif_is_too_large(tmp_path):
    block = exif_with_thumbnail(1)
    block = block[:-2] + bytes(0)
    thumb = b"\xff\xd8" + bytes(70_000)
    place = block.index(b"\xff\xd8thumbnail")
    size = block.rindex(struct.pack("<HHI", 514, 4, 1)) + 8
    block = block[:size] + struct.pack("<I", len(thumb)) + block[size + 4 : place] + thumb
    (note,) = write_photo(tmp_path / "a.jpg", Photo(picture(), exif=block))
    assert note.endswith("thumbnail")
    assert bytes(Image.open(tmp_path / "a.jpg").getexif().get_ifd(exif.EXIF)[37500]) == b"makernote"


def test_large_xmp_takes_several_segments(tmp_path):
    long = packet("", f"<dc:title>{'w' * 150_000}</dc:title><dc:source>kept</dc:source>")
    assert write_photo(tmp_path / "a.jpg", Photo(picture(), xmp=long)) == ()
    bodies = [body for marker, body in segments_of(tmp_path / "a.jpg") if marker == jpeg.APP1]
    assert b"HasExtendedXMP" in bodies[0] and b"kept" in bodies[0] and len(bodies) == 4
    photo = read_photo(tmp_path / "a.jpg")
    assert b"w" * 150_000 in photo.xmp and b"kept" in photo.xmp and b"HasExtendedXMP" not in photo.xmp
    write_photo(tmp_path / "b.jpg", photo)
    again = read_photo(tmp_path / "b.jpg")
    write_photo(tmp_path / "c.jpg", again)
    assert read_photo(tmp_path / "c.jpg").xmp == again.xmp  # nothing piles up
    (note,) = write_photo(tmp_path / "c.jpg", Photo(picture(), xmp=b"x" * 70_000))
    assert "XMP" in note


def test_missing_extended_xmp_takes_its_announcement_along(tmp_path):
    main = packet(f'xmlns:xmpNote="{xmp.NOTE}" xmpNote:HasExtendedXMP="{"A" * 32}" dc:title="kept"')
    photo = read_photo(jpeg_with(tmp_path / "a.jpg", (jpeg.APP1, jpeg.XMP_PREFIX + main)))
    assert b"HasExtendedXMP" not in photo.xmp and b"kept" in photo.xmp
    assert photo.notes == ("its extended XMP is damaged and left out",)


# --- IPTC and comments ---


def test_iptc_and_comments_survive(tmp_path):
    block = jpeg_with(
        tmp_path / "a.jpg",
        (jpeg.APP13, photoshop.PREFIX + photoshop.resource(photoshop.IPTC, CAPTION)),
        (jpeg.COM, b"scanned by Bob"),
        (jpeg.COM, "für Ann".encode()),
    )
    photo = read_photo(block)
    assert photo.comments == (b"scanned by Bob", "für Ann".encode())
    write_photo(tmp_path / "b.jpg", photo)
    again = read_photo(tmp_path / "b.jpg")
    assert (again.photoshop, again.comments) == (photo.photoshop, photo.comments)
    assert photoshop.iptc(again.photoshop) == CAPTION
    write_photo(tmp_path / "c.tif", photo)
    with tifffile.TiffFile(tmp_path / "c.tif") as file:
        assert bytes(file.pages[0].tags[33723].value) == CAPTION
    assert photoshop.iptc(read_photo(tmp_path / "c.tif").photoshop) == CAPTION
    write_photo(tmp_path / "d.png", photo)
    back = read_photo(tmp_path / "d.png")
    assert photoshop.iptc(back.photoshop) == CAPTION
    assert back.text["Comment"] == "scanned by Bob\nfür Ann"


def test_bare_iptc_of_a_tiff(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", picture(), photometric="rgb", extratags=[(33723, 7, len(CAPTION), CAPTION, True)]
    )
    write_photo(tmp_path / "b.jpg", read_photo(tmp_path / "a.tif"))
    assert any(CAPTION in body for marker, body in segments_of(tmp_path / "b.jpg") if marker == jpeg.APP13)


# --- turned or left alone ---


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_embedded_thumbnails_do_not_stay_on_their_side(tmp_path, orientation):
    thumbnail = photoshop.resource(photoshop.THUMBNAILS[1], b"thumb")
    caption = photoshop.resource(photoshop.IPTC, CAPTION)
    inner = '<xmp:Thumbnails xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:Alt/></xmp:Thumbnails>'
    path = jpeg_with(
        tmp_path / "a.jpg",
        (jpeg.APP13, photoshop.PREFIX + thumbnail + caption),
        (jpeg.APP1, jpeg.XMP_PREFIX + packet('dc:title="kept"', inner)),
        exif=exif_with_thumbnail(orientation),
    )
    write_photo(tmp_path / "b.jpg", read_photo(path))
    back = read_photo(tmp_path / "b.jpg")
    upright_before = orientation == 1
    assert (b"thumbnail" in back.exif) == upright_before
    assert (thumbnail in back.photoshop) == upright_before and photoshop.iptc(back.photoshop) == CAPTION
    assert (b"Thumbnails" in back.xmp) == upright_before and b"kept" in back.xmp
    tags = Image.open(tmp_path / "b.jpg").getexif()
    link = len(exif.PREFIX) + 8 + 2 + 12 * 3
    assert (back.exif[link : link + 4] != bytes(4)) == upright_before and tags[274] == 1
    assert bytes(tags.get_ifd(exif.EXIF)[37500]) == b"makernote"
    width, height = (40, 64) if orientation >= 5 else (64, 40)
    assert (tags.get_ifd(exif.EXIF)[40962], tags.get_ifd(exif.EXIF)[40963]) == (width, height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("kind", [3, 4])
def test_tiff_orientation_of_every_layout(tmp_path, orientation, bigtiff, kind):
    for order in "<>":
        tifffile.imwrite(
            tmp_path / "a.tif",
            quarters(),
            photometric="rgb",
            bigtiff=bigtiff,
            byteorder=order,
            extratags=[(274, kind, 1, orientation, True)],
        )
        photo = read_photo(tmp_path / "a.tif")
        assert np.array_equal(photo.pixels, upright(quarters(), orientation))
        write_photo(tmp_path / "b.tif", photo)
        with tifffile.TiffFile(tmp_path / "b.tif") as file:
            assert 274 not in file.pages[0].tags
            assert np.array_equal(file.asarray(), photo.pixels)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize(
    "form", ['tiff:Orientation="{}"', "tiff:Orientation='{}'", "<tiff:Orientation>{}</tiff:Orientation>"]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation_only_in_xmp(tmp_path, orientation, form, suffix):
    form = form.format(orientation)
    told = packet("", form) if form.startswith("<") else packet(form)
    path = tmp_path / f"a.{suffix}"
    write_photo(path, Photo(quarters(), xmp=told))
    if suffix != "tif" and "'" not in form:  # where Pillow reads XMP
        with Image.open(path) as image:
            shown = np.asarray(ImageOps.exif_transpose(image)).astype(int)
        assert np.abs(shown - upright(quarters(), orientation)).mean() < 2
    photo = read_photo(path)
    assert np.abs(photo.pixels.astype(int) - upright(quarters(), orientation)).mean() < 2
    write_photo(tmp_path / f"b.{suffix}", photo)
    again = read_photo(tmp_path / f"b.{suffix}")
    assert xmp.orientation(again.xmp) == 1 and again.pixels.shape == photo.pixels.shape


def test_exif_decides_where_both_tell(tmp_path):
    path = jpeg_with(
        tmp_path / "a.jpg",
        (jpeg.APP1, jpeg.XMP_PREFIX + packet('tiff:Orientation="6"')),
        exif=exif_with_thumbnail(1),
    )
    photo = read_photo(path)
    assert photo.pixels.shape == (40, 64, 3) and xmp.orientation(photo.xmp) == 1


def test_another_prefix_for_tiff():
    told = b'<r xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="8"/>'
    assert xmp.orientation(told) == 8 and xmp.orientation(xmp.reset_orientation(told)) == 1


def test_raw_profiles_of_imagemagick(tmp_path):
    body = exif_with_thumbnail(6)
    lines = f"\nexif\n{len(body):8d}\n{body.hex()}\n".encode()
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines))
    photo = read_photo(png_with(tmp_path / "a.png", chunk))
    assert photo.pixels.shape == (64, 40, 3) and exif.find_orientation(photo.exif) == 1 and photo.text == {}


def test_resolution_is_turned_too(tmp_path):
    entry = exif.Entry
    ratios = [entry(tag, 5, 1, struct.pack("<II", value, 1)) for tag, value in ((282, 300), (283, 150))]
    block = exif.pack((*ratios, entry(274, 3, 1, struct.pack("<H", 6))), "<")
    photo = read_photo(jpeg_with(tmp_path / "a.jpg", dpi=(300, 150), exif=block))
    assert photo.dpi == (150, 300)
    tags = {one.tag: one.data for one in exif.fields(photo.exif)}
    assert struct.unpack("<I", tags[282][:4])[0] == 150 and struct.unpack("<I", tags[283][:4])[0] == 300


@pytest.mark.parametrize("dpi", [(1e9, 300.0), (1e-9, 300.0), (float("nan"), 300.0), (float("inf"), 1.0)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_nonsensical_resolution_stops_nothing(tmp_path, dpi, name):
    assert write_photo(tmp_path / name, Photo(picture(), dpi=dpi)) == (
        "its resolution is out of range and left out",
    )
    assert read_photo(tmp_path / name).pixels.shape == (40, 64, 3)


def test_damaged_exif_is_left_out(tmp_path):
    path = jpeg_with(tmp_path / "a.jpg", (jpeg.APP1, exif.PREFIX + b"II*\0\xff\xff\xff\xff"))
    photo = read_photo(path)
    assert photo.exif is None and photo.notes == ("its EXIF block is damaged and left out",)


# --- companions of the picture ---

GAIN_MAP_XMP = packet(
    'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" dc:title="kept"',
    '<C:Directory xmlns:C="http://ns.google.com/photos/1.0/container/"><rdf:Seq><rdf:li>'
    '<C:Item xmlns:I="http://ns.google.com/photos/1.0/container/item/" I:Semantic="GainMap"/>'
    "</rdf:li></rdf:Seq></C:Directory>",
)


def test_gain_map_goes_with_its_announcements(tmp_path):
    path = jpeg_with(
        tmp_path / "a.jpg",
        (jpeg.APP1, jpeg.XMP_PREFIX + GAIN_MAP_XMP),
        (jpeg.APP2, jpeg.GAIN_MAP + bytes(4)),
        (jpeg.APP2, jpeg.MPF_PREFIX + bytes(40)),
    )
    path.write_bytes(path.read_bytes() * 2)  # the gain map lies behind the picture
    photo = read_photo(path)
    assert photo.notes == ("its HDR gain map is left out",)
    write_photo(tmp_path / "b.jpg", photo)
    data = (tmp_path / "b.jpg").read_bytes()
    assert not any(word in data for word in (b"hdrgm", b"GainMap", b"container", b"21496", b"MPF\0"))
    assert b"kept" in data and data.count(b"\xff\xd8\xff") == 1


def test_motion_photo_goes_with_its_announcement(tmp_path):
    told = packet(
        f'xmlns:GCamera="{xmp.CAMERA}" GCamera:MotionPhoto="1" GCamera:SpecialTypeID="a" dc:title="kept"'
    )
    path = jpeg_with(tmp_path / "a.jpg", (jpeg.APP1, jpeg.XMP_PREFIX + told))
    photo = read_photo(path)
    assert photo.notes == ("its motion video is left out",)
    assert b"MotionPhoto" not in photo.xmp and b"SpecialTypeID" in photo.xmp and b"kept" in photo.xmp


def test_plain_xmp_keeps_its_bytes(tmp_path):
    told = (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        + packet('dc:title="a"')
        + b" " * 50
        + b'<?xpacket end="w"?>'
    )
    assert read_photo(jpeg_with(tmp_path / "a.jpg", (jpeg.APP1, jpeg.XMP_PREFIX + told))).xmp == told


def test_xmp_that_cannot_be_taken_apart_is_left_out():
    for told in (b"<a hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'", b"<a>" * 5000 + xmp.CAMERA.encode()):
        assert xmp.without_companions(told, thumbnails=False) == (None, ["its XMP is damaged and left out"])


def test_second_pictures_of_a_jpeg(tmp_path):
    def index(kind: int) -> bytes:
        rows = struct.pack("<IIIHH", 0x030000, 10, 0, 0, 0) + struct.pack("<IIIHH", kind, 10, 10, 0, 0)
        return exif.pack((exif.Entry(jpeg.MPF_ENTRIES, 7, 32, rows),), "<").removeprefix(exif.PREFIX)

    for kind, notes in ((0x010001, ()), (0x020002, ("its second picture is left out",))):
        path = jpeg_with(tmp_path / "a.jpg", (jpeg.APP2, jpeg.MPF_PREFIX + index(kind)))
        assert read_photo(path).notes == notes


# --- pages of TIFF ---


def test_tiff_of_different_pages_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for size in ((40, 64), (30, 64), (20, 20)):
            file.write(picture(height=size[0], width=size[1]), photometric="rgb")
    with pytest.raises(ImageError, match="3 pages"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("subifds", [False, True])
def test_reduced_pages_are_told(tmp_path, subifds):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture(), photometric="rgb", subifds=1 if subifds else 0)
        file.write(picture(height=10, width=16), photometric="rgb", subfiletype=1)
    photo = read_photo(tmp_path / "a.tif")
    assert np.array_equal(photo.pixels, picture())
    assert photo.notes == ("its reduced pictures (thumbnail or pyramid) are left out",)


def test_raw_file_with_a_preview_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.dng",
        picture(),
        photometric="rgb",
        subfiletype=1,
        extratags=[(50706, 1, 4, b"\1\4\0\0", True)],
    )
    with pytest.raises(ImageError, match="raw file"):
        read_photo(tmp_path / "a.dng")


def test_tiff_without_the_extra(tmp_path, monkeypatch):
    for name, pixels, grey in (("a", picture(), False), ("g", np.repeat(picture()[..., :1], 3, 2), True)):
        write_photo(tmp_path / f"{name}.tif", Photo(pixels, grey=grey))
        monkeypatch.setattr("osdface_core.images.tiff._has_tifffile", lambda: False)
        photo = read_photo(tmp_path / f"{name}.tif")
        assert np.array_equal(photo.pixels, pixels) and photo.grey == grey
    write_photo(tmp_path / "deep.tif", Photo(picture("uint16")))
    with pytest.raises(ImageError, match=r"16 bits.*osdface\[tiff\]"):
        read_photo(tmp_path / "deep.tif")


def test_cmyk_is_told(tmp_path):
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.notes == ("its CMYK colours are converted to sRGB",)
    assert dataclasses.replace(photo, notes=()).icc is None

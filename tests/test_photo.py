"""A whole photo: kinds and depths kept, other pixels bit-identical, no face, crowds, giants, one pixel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from osdface_core import OSDFacePipeline, read_photo, write_photo
from osdface_core.errors import ImageError, OptionError
from osdface_core.faces import Face
from osdface_core.faces.align import affine_rows, fit_similarity
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_core.photo import PhotoResult, restore_photo
from osdface_core.photo_array import PhotoArray
from osdface_core.upscale import enlarge

CPU = torch.device("cpu")


class Painter:
    """Stands in for the pipeline where the model does not matter: every face becomes reddish."""

    device = CPU

    def __init__(self) -> None:
        self.batches: list[int] = []

    def restore(self, crops: Tensor, *, strength: float = 1.0, **options: Any) -> Tensor:
        self.batches.append(len(crops))
        painted = crops * 0.5 + torch.tensor([0.5, 0.1, 0.2]).view(3, 1, 1)
        return torch.lerp(crops, painted, strength)


class Overflowing(Painter):
    """Every number of a face is NaN, as where half precision overflows."""

    def restore(self, crops: Tensor, **options: Any) -> Tensor:
        return torch.full_like(crops, torch.nan)


def test_a_model_that_gives_no_picture() -> None:
    photo = np.zeros((80, 80, 3), np.uint8)
    restorer: Any = Overflowing()
    with pytest.raises(ImageError, match=r"gives no picture \(NaN\): try `dtype` fp32"):
        restore_photo(restorer, photo, faces=[face_at(40, 40, 60)])


def face_at(x: float, y: float, side: float) -> Face:
    """A face whose upright crop is a square of `side` px around (x, y)."""
    template = np.array([[193, 240], [319, 240], [256, 314], [201, 371], [313, 371]], dtype=float)
    points = (template - 256) * side / 512 + (x, y)
    left, top = points.min(0) - side * 0.1
    right, bottom = points.max(0) + side * 0.1
    marks: Any = tuple(map(tuple, points.tolist()))
    return Face((left, top, right, bottom), marks, 0.99, affine_rows(fit_similarity(points)))


def noise(height: int = 160, width: int = 240, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return (
            rng.random((height, width, 3)).astype(dtype) * 3 - 1
        )  # beyond the unit range, as HDR photos are
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype=dtype, endpoint=True)


FACES = [face_at(70, 80, 90), face_at(180, 70, 60)]


def restored(photo: Any, faces: Any = FACES, pipeline: Any = None, **options: Any) -> PhotoResult:
    return restore_photo(pipeline or Painter(), photo, faces=faces, **options)


def assert_untouched_outside(before: Any, result: PhotoResult) -> None:
    mask = np.asarray(result.mask)
    assert mask.shape == before.shape[:2]
    assert mask.dtype == np.float32
    assert 0.05 < (mask > 0).mean() < 0.7
    outside = mask == 0
    assert np.array_equal(np.asarray(result.image)[outside], before[outside])
    inside = mask > 0.9
    assert not np.array_equal(np.asarray(result.image)[inside], before[inside])


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_pixel_outside_the_masks_is_bit_identical(dtype: Any, mode: str) -> None:
    photo = noise(dtype=dtype)
    kept = photo.copy()
    result = restored(photo, paste_mode=mode)
    assert np.asarray(result.image).dtype == dtype
    assert_untouched_outside(kept, result)
    assert np.array_equal(photo, kept), "the input itself was written to"
    assert result.crops.shape == result.restored.shape == (2, 3, 512, 512)


def test_tensors() -> None:
    photo = torch.rand(3, 160, 240)
    result = restored(photo)
    assert isinstance(result.image, Tensor)
    assert isinstance(result.mask, Tensor)
    assert result.image.dtype == photo.dtype
    outside = (result.mask == 0).expand(3, -1, -1)
    assert result.image[outside].equal(photo[outside])
    assert not result.image.equal(photo)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_pillow_images(mode: str) -> None:
    source = Image.fromarray(noise())
    if mode == "RGBA":
        source.putalpha(Image.linear_gradient("L").resize(source.size))
    source = source.convert(mode)
    source.info["icc_profile"] = b"profile"
    result = restored(source)
    assert isinstance(result.image, Image.Image)
    assert result.image.mode == {"P": "RGB"}.get(mode, mode)
    assert result.image.info["icc_profile"] == b"profile"
    assert_untouched_outside(
        np.asarray(source.convert("RGB")),
        PhotoResult(np.asarray(result.image.convert("RGB")), result.mask, [], result.crops, result.restored),
    )
    if mode == "RGBA":
        assert result.image.getchannel("A").tobytes() == source.getchannel("A").tobytes()
        assert restored(source, upscale=2.0).image.size == (480, 320)


def test_deep_pillow_images_are_refused() -> None:
    with pytest.raises(ImageError, match="mode F, which is more than 8 bits: give an"):
        restored(Image.fromarray(noise()).convert("F"))


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_floats_of_0_to_255_are_refused(kind: str) -> None:
    photo: Any = noise().astype(np.float32)
    photo = photo if kind == "array" else torch.from_numpy(photo).permute(2, 0, 1)
    with pytest.raises(ImageError, match="expected 0 to 1"):
        restored(photo)


def test_the_pipeline_is_called_with_a_photo(tiny_pipeline: OSDFacePipeline, tmp_path: Path) -> None:
    photo = noise()
    write_photo(tmp_path / "photo.png", photo)
    result = tiny_pipeline(tmp_path / "photo.png", faces=FACES)
    write_photo(tmp_path / "restored.png", np.asarray(result.image))
    again = tiny_pipeline.restore_photo(Image.fromarray(photo), faces=FACES).image
    assert np.array_equal(read_photo(tmp_path / "restored.png").pixels, np.asarray(again))
    assert not np.array_equal(np.asarray(again), photo)


def test_a_file(tmp_path: Path) -> None:
    deep = noise(dtype=np.uint16)
    from osdface_core.images import Photo, write_photo

    write_photo(tmp_path / "deep.png", Photo(deep))
    for path in (tmp_path / "deep.png", str(tmp_path / "deep.png")):
        assert_untouched_outside(deep, restored(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_strength_0_changes_no_bit(dtype: Any) -> None:
    photo = noise(dtype=dtype)
    result = restored(photo, strength=0.0)
    assert np.array_equal(np.asarray(result.image), photo)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_grey_stays_exactly_grey(tiny_pipeline: OSDFacePipeline, dtype: Any) -> None:
    photo = np.repeat(noise(dtype=dtype)[..., :1], 3, axis=2)
    for pipeline in (Painter(), tiny_pipeline):
        image = np.asarray(restored(photo, pipeline=pipeline).image)
        assert np.array_equal(image[..., 0], image[..., 1])
        assert np.array_equal(image[..., 0], image[..., 2])
        assert not np.array_equal(image, photo)


def test_upscaling_enlarges_everything_else_alike() -> None:
    photo = noise()
    result = restored(photo, upscale=2.0)
    enlarged, _ = enlarge(PhotoArray.of(photo), 2.0, None, CPU)
    assert_untouched_outside(np.asarray(enlarged.native()), result)
    assert result.faces == FACES, "faces stay in the input's pixels"


def test_more_than_sixty_faces_in_one_photo(portraits: np.ndarray) -> None:
    heads = [Image.fromarray(part).resize((64, 64)) for part in (portraits[:, :300], portraits[:, 300:])]
    rows = [np.concatenate([np.asarray(heads[(i + j) % 2]) for i in range(10)], axis=1) for j in range(7)]
    crowd = np.concatenate(rows)
    painter = Painter()
    result = restore_photo(painter, crowd, detector="mtcnn")  # type: ignore[arg-type]
    assert len(result.faces) == 70
    assert painter.batches == [70], "all faces go through the model together"
    centres = {(int(x // 64), int(y // 64)) for x, y in (face.center for face in result.faces)}
    assert len(centres) == 70, "one face per head"
    assert_untouched_outside(crowd, result)
    few = restore_photo(painter, crowd, detector="mtcnn", max_faces=3, order="left_to_right")  # type: ignore[arg-type]
    assert [int(face.center[0] // 64) for face in few.faces] == [0, 0, 0]


def test_the_largest_of_two(portraits: np.ndarray, tiny_pipeline: OSDFacePipeline) -> None:
    result = tiny_pipeline.restore_photo(portraits, detector="mtcnn", faces="largest")
    assert len(result.faces) == 1
    assert result.faces[0].center[0] > 300
    assert result.faces[0].identity_before_after is None
    assert np.array_equal(np.asarray(result.image)[:, :250], portraits[:, :250])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (11, 13), (200, 200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_no_face(size: tuple[int, int], dtype: Any) -> None:
    photo = np.zeros((*size, 3), dtype)
    result = restore_photo(Painter(), photo, detector="mtcnn")  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(result.image), photo)
    assert not np.asarray(result.mask).any()
    assert result.faces == []
    assert result.crops.shape == result.restored.shape == (0, 3, 512, 512)


def test_no_face_is_left_after_the_selection(portraits: np.ndarray) -> None:
    result = restore_photo(Painter(), portraits, detector="mtcnn", min_face=500)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(result.image), portraits)


def test_a_face_over_the_border() -> None:
    photo = noise()
    result = restored(photo, [face_at(5, 155, 120)])
    outside = np.asarray(result.mask) == 0
    assert np.array_equal(np.asarray(result.image)[outside], photo[outside])
    assert np.asarray(result.mask).any()


def test_identity_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(MobileFaceNet().state_dict(), tmp_path / "mobilefacenet.pt")
    result = restored(noise(), identity=tmp_path)
    scores = [face.identity_before_after for face in result.faces]
    assert all(pair is not None and pair[0] == 1.0 and -1.0 <= pair[1] <= 1.0 for pair in scores)
    same = restored(noise(), identity=tmp_path, strength=0.0)
    assert [pair[1] for f in same.faces if (pair := f.identity_before_after)] == pytest.approx(
        [1.0, 1.0], abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upscale": 0.5}, r"`upscale` is 0\.5, expected 1\.\.16"),
        ({"feather": 0.0}, r"`feather` is 0\.0, expected 0\.001\.\.1"),
        ({"paste_mode": "glue"}, "`paste_mode` is 'glue', expected one of residual, replace"),
        ({"color_fix": "sepia"}, "`color_fix` is 'sepia'"),
        ({"strength": 1.5}, r"`strength` is 1\.5, expected 0\.\.1"),
        ({"effort": "heroic"}, "`effort` is 'heroic'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        restored(noise(), **options)


def test_wrong_detector(portraits: np.ndarray) -> None:
    with pytest.raises(OptionError, match="`detector` is 'oracle'"):
        restore_photo(Painter(), portraits, detector="oracle")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(3, 4),
    ],
)
def test_wrong_photos(photo: Any) -> None:
    with pytest.raises(ImageError, match="photo has shape"):
        restore_photo(Painter(), photo)  # type: ignore[arg-type]


GIANT = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from test_photo import FACES, Painter, restore_photo
from osdface_core.faces import detect
torch.set_num_threads(1)
restore_photo(Painter(), np.zeros((600, 600, 3), np.uint8), detector="mtcnn")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
photo = np.full((4500, 6000, 3), 90, np.uint8)
result = restore_photo(Painter(), photo, detector="mtcnn")
photo[:] = np.asarray(result.image)
result = restore_photo(Painter(), photo, faces=FACES)
assert (np.asarray(result.mask) > 0).any()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux' units")
def test_memory_grows_with_the_photo_alone() -> None:
    """27 megapixels: 81 MB of pixels and a mask of 108 MB; the rest must not be many copies of them."""
    done = subprocess.run(
        [sys.executable, "-c", GIANT.format(tests=str(Path(__file__).parent))],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 700, f"{done.stdout} MB for a photo of 81 MB"

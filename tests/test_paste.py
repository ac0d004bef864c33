"""Pasting: an untouched crop leaves no trace, nothing changes outside the mask, no seam, any size."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osdface_core.errors import ImageError, OptionError
from osdface_core.faces import align, paste
from osdface_core.faces.geometry import homogeneous
from osdface_core.faces.paste import soft_mask
from tests.face_places import face_at

FACES = st.lists(
    st.tuples(st.floats(0.04, 0.9), st.floats(-180, 180), st.floats(0, 160), st.floats(0, 120)),
    min_size=1,
    max_size=3,
)
KINDS = st.sampled_from(["uint8", "uint16", "float32", "tensor"])
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def picture(kind: str, seed: int = 0, height: int = 120, width: int = 160):
    values = np.random.default_rng(seed).random((height, width, 3))
    if kind == "tensor":
        return torch.from_numpy(values).permute(2, 0, 1).float()
    return (values * {"uint8": 255, "uint16": 65535, "float32": 1}[kind]).astype(kind)


def as_array(image) -> np.ndarray:
    return image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image


@QUICK
@given(FACES, KINDS)
def test_untouched_crops_leave_no_trace(places, kind):
    photo = picture(kind)
    faces = [face_at(*place) for place in places]
    crops = align(photo, faces)
    for given_crops in (crops, None):
        image, _ = paste(photo, faces, crops, crops=given_crops)
        assert type(image) is type(photo) and image.dtype == photo.dtype
        assert np.array_equal(as_array(image), as_array(photo))


@QUICK
@given(FACES, KINDS, st.sampled_from(["residual", "replace"]), st.floats(0.05, 1), st.integers(0, 99))
def test_outside_the_mask_every_bit_stays(places, kind, mode, feather, seed):
    photo = picture(kind)
    before = as_array(photo).copy()
    faces = [face_at(*place) for place in places]
    restored = torch.rand(len(faces), 3, 512, 512, generator=torch.Generator().manual_seed(seed))
    image, mask = paste(photo, faces, restored, mode=mode, feather=feather)
    outside = np.squeeze(np.asarray(mask)) == 0
    assert np.array_equal(as_array(image)[outside], before[outside])
    assert np.array_equal(as_array(photo), before)  # the input is not modified
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1
    if kind in ("float32", "tensor"):
        assert float(image.min()) >= 0 and float(image.max()) <= 1


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_a_constant_change_arrives_where_the_mask_is_full(scale, mode):
    side = int(512 * scale)
    y, x = np.mgrid[:side, :side] / side
    photo = torch.from_numpy(np.stack((x, y, 1 - x)) * 0.5 + 0.2).float()
    face = face_at(scale, 17, side / 2, side / 2)
    image, mask = paste(photo, [face], align(photo, [face]) + 0.1, mode=mode)
    full = mask[0] > 0.999
    assert 0.2 < float(full.float().mean()) < 0.9
    assert torch.allclose((image - photo)[:, full], torch.tensor(0.1), atol=6e-3)
    assert float(((image - photo) - 0.1 * mask).abs().max()) < 6e-3


def test_the_change_lands_at_the_right_pixel():
    """A dot at a known crop pixel shows up at the photo pixel that the affine names."""
    photo = torch.zeros(3, 300, 300)
    face = face_at(0.5, 25, 150.3, 149.6)
    restored = torch.zeros(1, 3, 512, 512)
    restored[..., 198:203, 298:303] = 1.0  # middle at (300, 200)
    image, _ = paste(photo, [face], restored)
    weight = image[0].double()
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(300.0), indexing="ij")
    found = [float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())]
    expected = np.linalg.inv(homogeneous(face.matrix)) @ [300, 200, 1]
    assert np.allclose(found, expected[:2], atol=0.05)


@pytest.mark.parametrize("kind", ["uint8", "tensor"])
def test_a_photo_enlarged_meanwhile(kind):
    face = face_at(0.2, 10, 80, 60)
    small = torch.full((3, 120, 160), 0.4)
    large = torch.full((3, 250, 319), 0.4)
    if kind == "uint8":
        large = np.full((250, 319, 3), 102, np.uint8)
    restored = align(small, [face]) + 0.2
    image, mask = paste(large, [face], restored, scale=(319 / 160, 250 / 120))
    change = as_array(image).astype(float) - as_array(large)
    plane = np.squeeze(np.asarray(mask))
    rows, columns = np.nonzero(plane > 0.5)
    middle = ((80 + 0.5) * 319 / 160 - 0.5, (60 + 0.5) * 250 / 120 - 0.5)
    assert np.allclose([columns.mean(), rows.mean()], middle, atol=2.5)
    assert np.allclose(change[plane > 0.999], 51 if kind == "uint8" else 0.2, atol=1e-3)


def test_detail_finer_than_the_crop_survives_in_residual_mode():
    photo = picture("uint8", height=1500, width=1500)
    face = face_at(2.5, 5, 750, 750)
    crops = align(photo, [face])
    image, mask = paste(photo, [face], crops * 0.9, crops=crops)
    full = mask > 0.999
    kept = np.corrcoef(image[full].ravel().astype(float), photo[full].ravel().astype(float))[0, 1]
    replaced, _ = paste(photo, [face], crops * 0.9, mode="replace")
    lost = np.corrcoef(replaced[full].ravel().astype(float), photo[full].ravel().astype(float))[0, 1]
    assert kept > 0.98 and lost < 0.6


def test_overlapping_faces_share_without_doubling():
    photo = torch.full((3, 200, 260), 0.3)
    faces = [face_at(0.25, 0, 100, 100), face_at(0.25, 0, 150, 100)]
    restored = align(photo, faces)
    restored[0] += 0.2
    restored[1] += 0.4
    image, mask = paste(photo, faces, restored)
    change = (image - photo)[0]
    assert float(change.max()) < 0.401
    assert float(change[100, 80]) == pytest.approx(0.2, abs=2e-3)
    assert float(change[100, 170]) == pytest.approx(0.4, abs=2e-3)
    assert float(change[100, 125]) == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(paste(photo, faces[::-1], restored.flip(0))[0], image, atol=1e-6)
    twice, _ = paste(photo, [faces[0]] * 2, restored[:1].repeat(2, 1, 1, 1))
    assert torch.allclose(twice, paste(photo, faces[:1], restored[:1])[0], atol=1e-6)
    assert float(mask.max()) == 1


def test_tiles_leave_no_seam(monkeypatch):
    module = sys.modules[soft_mask.__module__]
    photo = picture("tensor", height=300, width=310)
    faces = [face_at(0.5, 33, 150, 140), face_at(0.2, -5, 260, 250)]
    restored = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    whole = paste(photo, faces, restored)
    monkeypatch.setattr(module, "TILE", 64)
    parts = paste(photo, faces, restored)
    assert torch.allclose(whole[0], parts[0], atol=2e-4) and torch.allclose(whole[1], parts[1], atol=1e-4)


def test_mask_is_soft_and_ends_inside_the_crop():
    weight, share = soft_mask(np.eye(3), (0, 0, 512, 512), 0.2, torch.device("cpu"))
    border = torch.cat(
        (weight[0, :3].ravel(), weight[0, -3:].ravel(), weight[0, :, :3].ravel(), weight[0, :, -3:].ravel())
    )
    assert float(border.max()) == 0 and float(weight[0, 256, 256]) == 1
    assert float(weight[0, 465, 256]) > 0.9  # the chin
    step = max(float(weight.diff(dim=1).abs().max()), float(weight.diff(dim=2).abs().max()))
    assert step < 0.05
    assert bool(((share > 0) <= (weight > 0)).all())


def test_values_beyond_one_stay():
    photo = np.full((120, 160, 3), 1.75, np.float32)
    face = face_at(0.2, 0, 80, 60)
    image, _ = paste(photo, [face], align(photo, [face]) * 0.5)
    assert image.max() == 1.75 and image.min() == pytest.approx(1.25, abs=1e-3)


def test_no_faces_and_faces_elsewhere():
    photo = picture("uint8")
    image, mask = paste(photo, [], torch.zeros(0, 3, 512, 512))
    assert np.array_equal(image, photo) and image is not photo and mask.shape == (120, 160) and not mask.any()


def test_refuses_nonsense():
    photo = picture("uint8")
    face = face_at(0.2, 0, 80, 60)
    crop = torch.zeros(1, 3, 512, 512)
    for options, word in (
        ({"mode": "glue"}, "mode"),
        ({"feather": 0}, "feather"),
        ({"feather": 1.5}, "feather"),
    ):
        with pytest.raises(OptionError, match=word):
            paste(photo, [face], crop, **options)
    with pytest.raises(ImageError, match="one crop per face"):
        paste(photo, [face, face], crop)
    with pytest.raises(ImageError, match="expected the same"):
        paste(photo, [face], crop, crops=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ImageError, match="expected"):
        paste(photo, [face], torch.zeros(3, 512, 512))

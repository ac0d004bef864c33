"""Similarity fit and warp against closed forms: where each crop pixel comes from, and no aliasing."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osdface_core.errors import ImageError
from osdface_core.faces import Face, align
from osdface_core.faces.align import fit_similarity
from osdface_core.faces.geometry import inverse
from osdface_core.faces.sharpness import measure, sharpness
from osdface_core.photo_array import PhotoArray
from tests.face_places import TEMPLATE, face_at, place

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(st.floats(0.02, 20), st.floats(-180, 180), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_fit_recovers_an_exact_similarity(scale, degrees, x, y):
    to_photo = place(scale, degrees, x, y)
    points = TEMPLATE @ to_photo[:, :2].T + to_photo[:, 2]
    assert np.allclose(fit_similarity(points), inverse(to_photo), rtol=1e-6, atol=1e-5)


def test_fit_is_the_least_squares_optimum():
    """No small change of the four parameters lowers the error, and Umeyama's formula gives the same."""
    points = TEMPLATE * 0.3 + np.random.default_rng(1).normal(0, 5, (5, 2)) + 40
    best = fit_similarity(points)

    def error(matrix: np.ndarray) -> float:
        return float(((points @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE) ** 2).sum())

    source, target = points - points.mean(0), TEMPLATE - TEMPLATE.mean(0)
    u, d, vt = np.linalg.svd(target.T @ source / 5)
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(d) @ sign) / source.var(axis=0).sum()
    umeyama = np.column_stack((scale * rotation, TEMPLATE.mean(0) - scale * rotation @ points.mean(0)))
    assert np.allclose(best, umeyama)
    for step in np.random.default_rng(2).normal(0, 1e-3, (50, 4)):
        a, b, x, y = step
        assert error(best + np.array([[a, -b, x], [b, a, y]])) >= error(best)


def test_fit_never_mirrors_and_refuses_a_point():
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(fit_similarity(mirrored)[:, :2]) > 0
    for bad in (np.ones((5, 2)), np.full((5, 2), np.nan)):
        with pytest.raises(ImageError, match="landmarks"):
            fit_similarity(bad)


@QUICK
@given(st.floats(0.1, 2.0), st.floats(-180, 180), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_each_crop_pixel_comes_from_its_place(scale, degrees, dx, dy):
    """A photo whose red is x and green is y: the crop must hold the coordinates that the affine names."""
    side = int(512 * scale * 1.6) + 40
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    photo = torch.from_numpy(np.stack((x, y, x * 0)))
    face = face_at(scale, degrees, side / 2 + dx, side / 2 + dy)
    crop = align(photo, [face])[0].double().numpy()
    v, u = np.mgrid[:512:37, :512:37]
    to_photo = inverse(face.matrix)
    expected = to_photo @ np.stack((u.ravel(), v.ravel(), np.ones(u.size)))
    got = crop[:2, v.ravel(), u.ravel()] * side
    assert np.abs(got - expected).max() < 0.08 * max(scale, 1)  # torch's cubic bends ramps by 0.05 px


def test_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    photo = np.random.default_rng(0).random((300, 300, 3)).astype(np.float32)
    photo = cv2.GaussianBlur(photo, (0, 0), 4)
    face = face_at(0.4, 20, 150, 148)
    ours = align(photo, [face])[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(photo, face.matrix, (512, 512), flags=cv2.INTER_CUBIC)
    assert np.abs(ours - theirs)[20:-20, 20:-20].max() < 5e-3


def test_large_faces_do_not_alias():
    noise = np.random.default_rng(0).random((1800, 1800, 1)).repeat(3, axis=2).astype(np.float32)
    face = face_at(3.0, 10, 900, 900)
    crop = align(noise, [face])[0]
    assert float(crop.std()) < 0.45 * noise.std()  # an ideal filter leaves about a third
    assert abs(float(crop.mean()) - 0.5) < 0.01


def test_all_kinds_of_photo_give_the_same_crop():
    base = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
    face = face_at(0.3, -15, 110, 100)
    reference = align(base, [face])
    tensor = torch.from_numpy(base).permute(2, 0, 1).float() / 255
    for photo in (base.astype(np.uint16) * 257, (base / 255).astype(np.float32), tensor):
        assert torch.allclose(align(photo, [face]), reference, atol=1e-5)
    frozen = base.copy()
    frozen.flags.writeable = False
    assert torch.equal(align(frozen, [face]), reference)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (219, 100), (-40, 100), (110, 260)])
def test_no_black_beyond_the_border(x, y):
    photo = np.full((200, 220, 3), 0.6, np.float32)
    crop = align(photo, [face_at(0.3, 30, x, y)])
    assert torch.allclose(crop, torch.full_like(crop, 0.6), atol=1e-4)


def test_tiny_photos_and_no_faces():
    assert align(np.zeros((1, 1, 3), np.uint8), []).shape == (0, 3, 512, 512)
    assert align(np.zeros((1, 1, 3), np.uint8), [face_at(0.01, 0, 0, 0)]).shape == (1, 3, 512, 512)
    assert align(np.zeros((9, 9, 3), np.uint8), [face_at(0.02, 0, 4, 4)], size=64).shape == (1, 3, 64, 64)


def test_refuses_wrong_layouts():
    face = face_at(0.2, 0, 50, 50)
    for bad in (
        np.zeros((9, 9), np.uint8),
        torch.zeros(9, 9, 3),
        np.zeros((9, 9, 3), np.int32),
        torch.zeros(3, 9, 9).int(),
    ):
        with pytest.raises(ImageError, match="expected a"):
            align(bad, [face])
    with pytest.raises(ImageError, match="outside"):
        align(np.zeros((100, 100, 3), np.uint8), [face_at(0.1, 0, 5000, 5000)])


def test_sharpness_orders_by_resolution():
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft2(random.normal(size=(512, 512)))
    fy, fx = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]
    natural = np.fft.irfft2(spectrum / np.maximum(np.hypot(fx, fy), 1 / 512), (512, 512))
    natural = (natural - natural.min()) / np.ptp(natural)
    crop = torch.from_numpy(natural).float().expand(1, 3, 512, 512)
    values = []
    for side in (512, 256, 128, 64):
        small = torch.nn.functional.interpolate(crop, (side, side), mode="area")
        values.append(float(sharpness(torch.nn.functional.interpolate(small, (512, 512), mode="bicubic"))))
    assert values[0] > 0.8 and values == sorted(values, reverse=True) and values[2] < 0.2
    assert float(sharpness(crop * 0.2 + 0.3)) == pytest.approx(values[0], rel=0.05)
    assert float(sharpness(torch.full((1, 3, 512, 512), 0.5))) == 0
    face = face_at(1.0, 0, 255.5, 255.5)
    photo = PhotoArray.of(crop[0])
    assert measure(photo, [face], torch.device("cpu"))[0] == pytest.approx(values[0], rel=1e-3)


@QUICK
@given(st.floats(0.05, 4), st.floats(-180, 180), st.floats(1, 5), st.floats(1, 5))
def test_scaled_face_maps_the_resized_photo_onto_the_same_crop(scale, degrees, sx, sy):
    face = face_at(scale, degrees, 300, 200)
    moved = face.scaled(sx, sy)
    point = np.array([123.0, 45.0])
    new = (point + 0.5) * (sx, sy) - 0.5
    assert np.allclose(moved.matrix @ [*new, 1], face.matrix @ [*point, 1], atol=1e-6)
    assert np.allclose(moved.points, (face.points + 0.5) * (sx, sy) - 0.5)
    assert face.scaled(1.0) == face or np.allclose(face.scaled(1.0).matrix, face.matrix)


def test_face_is_plain_json():
    import json

    face = face_at(0.5, 12, 100, 90)
    again = Face.from_dict(json.loads(json.dumps(face.to_dict() | {"later": 1})))
    assert again == face and hash(again) == hash(face)

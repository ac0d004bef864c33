"""Detection on a real photo that scikit-image ships: any pose, size, type; the border, crowds, nothing."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from osdface_core.errors import DetectorError, ImageError, OptionError
from osdface_core.faces import detect
from osdface_core.faces import mtcnn as mtcnn_module
from osdface_core.faces.detect import load_detector
from osdface_core.faces.mtcnn import Mtcnn, cut_patches, patch_levels, square
from osdface_core.faces.nms import drop_shadowed, nms
from osdface_core.faces.search import PATCH, turned_quarter
from osdface_core.faces.views import View, spans, tiles, turned, whole
from osdface_core.photo_array import PhotoArray

EYES = ((200.5, 98.5), (245.0, 101.5))
"""Left and right eye in the photo, read off by hand [px]."""
CPU = torch.device("cpu")


@functools.cache
def astronaut() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


def find(photo, **options):
    return detect(photo, "mtcnn", **options)


def eyes(face) -> np.ndarray:
    return face.points[:2]


def test_finds_the_face_with_its_eyes():
    faces = find(astronaut())
    assert len(faces) == 1
    face = faces[0]
    assert np.abs(eyes(face) - EYES).max() < 4
    assert face.score > 0.95 and 80 < face.size < 150 and 0 < face.sharpness <= 1
    assert face.points[2, 1] < face.points[3, 1]  # the nose is above the mouth
    assert np.abs(face.matrix @ [*face.points[0], 1] - [193, 240]).max() < 20


@pytest.mark.parametrize("kind", ["uint16", "float32", "tensor", "grey", "strided"])
def test_kinds_of_photo_agree(kind):
    photo = astronaut()
    variant = {
        "uint16": photo.astype(np.uint16) * 257,
        "float32": (photo / 255).astype(np.float32),
        "tensor": torch.from_numpy(photo).permute(2, 0, 1) / 255,
        "grey": photo.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8),
        "strided": np.repeat(photo, 2, axis=1)[:, ::2],
    }[kind]
    faces = find(variant)
    assert len(faces) == 1
    assert np.abs(faces[0].points - find(photo)[0].points).max() < (6 if kind == "grey" else 1.0)


@pytest.mark.parametrize("degrees", [30, 60, 90, 135, 180, 225, 270, 320])
def test_tilted_heads_are_found_upright(degrees):
    photo = astronaut()[:300, 80:380]
    turned = Image.fromarray(photo).rotate(
        -degrees, expand=True, fillcolor=(90, 90, 90), resample=Image.BICUBIC
    )
    faces = find(np.asarray(turned))
    assert len(faces) == 1
    angle = np.radians(degrees)
    middle, new = np.array([149.5, 149.5]), np.array([(turned.width - 1) / 2, (turned.height - 1) / 2])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = (np.array(EYES) - [80, 0] - middle) @ turn.T + new
    assert np.abs(eyes(faces[0]) - expected).max() < 9


@pytest.mark.parametrize(
    "cut", [np.s_[:, 197:], np.s_[:, :252], np.s_[95:], np.s_[:145], np.s_[68:168, 178:266]]
)
def test_faces_over_the_border_and_close_ups(cut):
    photo = astronaut()[cut]
    assert len(find(photo)) == 1
    large = np.asarray(Image.fromarray(photo).resize((photo.shape[1] * 4, photo.shape[0] * 4), Image.BICUBIC))
    assert len(find(large)) == 1


def test_a_small_face_in_a_large_photo():
    photo = np.full((2250, 3000, 3), 110, np.uint8)
    small = Image.fromarray(astronaut()[:300, 100:400]).resize((110, 110), Image.LANCZOS)
    photo[1500:1610, 2500:2610] = np.asarray(small)
    expected = (np.array(EYES) - [100, 0] + 0.5) * 110 / 300 - 0.5 + [2500, 1500]
    for options in ({}, {"min_face": 25}):
        faces = find(photo, **options)
        assert len(faces) == 1 and np.abs(eyes(faces[0]) - expected).max() < 3
    assert find(photo, min_face=80) == []


def test_a_crowd_of_more_than_sixty_without_duplicates():
    photo = np.full((1100, 1500, 3), 120, np.uint8)
    head = np.asarray(Image.fromarray(astronaut()[:220, 120:340]).resize((100, 100), Image.LANCZOS))
    for row in range(8):
        for column in range(11):
            photo[10 + row * 134 : 110 + row * 134, 10 + column * 134 : 110 + column * 134] = head
    faces = find(photo, min_face=24)
    assert len(faces) == 88
    middles = np.array([face.points.mean(axis=0) for face in faces])
    grid = np.round((middles - middles.min(axis=0)) / 134).astype(int)
    assert len({tuple(cell) for cell in grid.tolist()}) == 88


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 600), (40, 40)])
def test_nothing_in_tiny_photos(shape):
    assert find(np.zeros((*shape, 3), np.uint8)) == []
    assert find(torch.rand(3, *shape)) == []


def test_nothing_in_noise():
    assert find(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)) == []


def test_refuses_nonsense():
    photo = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(OptionError, match="expected one of auto"):
        detect(photo, "yolo")
    with pytest.raises(OptionError, match="`effort`"):
        detect(photo, "mtcnn", effort="most")
    with pytest.raises(ImageError, match="expected a"):
        find(np.zeros((20, 20), np.uint8))


def test_missing_and_damaged_weights_are_named(monkeypatch, tmp_path):
    whole = mtcnn_module.WEIGHTS.read_bytes()
    path = tmp_path / "mtcnn.safetensors"
    monkeypatch.setattr(mtcnn_module, "WEIGHTS", path)
    save_file({"pnet.features.0.bias": torch.zeros(10)}, tmp_path / "other.safetensors")
    for data in (None, b"broken", whole[: len(whole) // 2], (tmp_path / "other.safetensors").read_bytes()):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(
            DetectorError, match=r"mtcnn\.safetensors cannot be read.*install OSDFace"
        ) as caught:
            Mtcnn.load()
        assert "\n" not in str(caught.value)


def test_auto_without_retinaface_weights_is_mtcnn(monkeypatch, tmp_path):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    assert isinstance(load_detector("auto", tmp_path, CPU), Mtcnn)
    assert load_detector("mtcnn", None, CPU) is load_detector("mtcnn", None, CPU)


def test_a_batch_equals_single_images():
    net = load_detector("mtcnn", None, CPU)
    photo = torch.from_numpy(astronaut()[:256, 80:336]).permute(2, 0, 1) / 255
    batch = torch.stack((photo, torch.zeros_like(photo), photo.flip(2)))
    results = net(batch, 20)
    assert [len(rows) for rows in results] == [1, 0, 1]
    for rows, image in zip(results, batch, strict=True):
        assert np.allclose(rows, net(image[None], 20)[0], atol=0.05)


def test_patches_are_cut_like_an_average_over_each_cell():
    """Against plain slicing, on boxes that lie on whole pixels."""
    image = torch.rand(1, 3, 96, 96)
    boxes = torch.tensor([[0.0, 0, 96, 96], [24, 48, 48, 72]])
    patches = cut_patches(patch_levels(image), torch.zeros(2, dtype=torch.long), boxes, 24)
    inside = torch.nn.functional.avg_pool2d(image[:, :, 47:73, 23:49], 3, stride=1)[0]
    assert float((patches[1] - image[0, :, 48:72, 24:48]).abs().mean()) < 0.15
    assert float((patches[1] - inside).abs().mean()) < 0.15
    whole_box = torch.nn.functional.avg_pool2d(image, 4)[0]
    assert float((patches[0] - whole_box).abs().mean()) < 0.05
    assert square(torch.tensor([[0.0, 0, 10, 20]])).tolist() == [[-5, 0, 15, 20]]


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(100, 100, 20), (101, 100, 20), (997, 100, 25), (5, 9, 2)]
)
def test_spans_cover_with_overlap(length, side, overlap):
    pieces = spans(length, side, overlap)
    assert pieces[0][0] == 0 and pieces[-1][1] == length
    for (_, end), (start, _) in pairwise(pieces):
        assert end - start >= overlap
    assert all(end - start == min(side, length) for start, end in pieces)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "tensor"])
def test_views_know_their_place(kind):
    """A photo that holds its own coordinates: every view pixel must map to where it came from."""
    y, x = np.mgrid[:700, :900].astype(np.float32)
    ramp = np.stack((x / 900, y / 700, x * 0), axis=2)
    photo = {"uint8": (ramp * 255).astype(np.uint8), "uint16": (ramp * 65535).astype(np.uint16)}.get(kind)
    photo = PhotoArray.of(torch.from_numpy(ramp).permute(2, 0, 1) if photo is None else photo)
    for view in [whole(photo, 200, CPU), *tiles(photo, 0.4, 128, 32, CPU)]:
        height, width = view.image.shape[-2:]
        u, v = width // 2, height // 3
        expected = view.to_photo @ [u, v, 1]
        got = view.image[:2, v, u].numpy() * [900, 700]
        assert np.abs(got - expected[:2]).max() < 4.5


def test_merging_keeps_neighbours_and_drops_duplicates():
    def row(x: float, y: float, size: float, score: float) -> np.ndarray:
        points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]) * size + [x, y]
        return np.array([x, y, x + size, y + size, score, *points.ravel()])

    rows = np.stack([row(0, 0, 50, 0.9), row(3, 2, 48, 0.99), row(40, 10, 50, 0.95), row(10, 10, 30, 0.8)])
    merged = nms([rows[:2], rows[2:]])
    assert [round(value, 2) for value in merged[:, 4]] == [0.99, 0.95]
    assert len(nms([np.full((1, 15), np.nan)])) == 0 and nms([]).shape == (0, 15)
    assert len(drop_shadowed(np.stack([row(0, 0, 50, 0.99), row(30, 0, 50, 0.9)]), 0.97)) == 1
    assert len(drop_shadowed(np.stack([row(0, 0, 50, 0.99), row(30, 0, 50, 0.98)]), 0.97)) == 2


def test_group_photos(shared):
    """Counts of clearly visible faces, from looking at the pictures."""
    for name, least, most in (
        ("group_04_3-steps-team", 4, 4),
        ("group_08_sba-execs-legos", 5, 7),
        ("group_00_roth-selfie", 33, 45),
    ):
        photo = np.asarray(Image.open(shared / "faces" / "group" / f"{name}.jpg").convert("RGB"))
        assert least <= len(find(photo)) <= most


@pytest.mark.parametrize("turn", range(4))
def test_a_patch_is_turned_without_resampling(turn: int) -> None:
    pixels = torch.rand(3, PATCH, PATCH, generator=torch.Generator().manual_seed(turn))
    patch = View(pixels, np.diag([2, 2, 1.0]))
    exact, resampled = turned_quarter(patch, turn), turned(patch, 90 * turn)
    assert exact.image.flatten().sort().values.equal(patch.image.flatten().sort().values)
    assert (exact.image - resampled.image).abs().max() < 1e-3
    np.testing.assert_allclose(exact.to_photo, resampled.to_photo, atol=1e-9)

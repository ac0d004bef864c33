"""A batch as a clip: pasted faces stay put on the moving head, tracks survive and scene cuts reset them."""

import json

import pytest
import torch

from tests.comfy_stub import install, load_pack

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.frames as frames_module  # type: ignore[import-not-found]  # noqa: E402

from osdface_core.faces import FFHQ_TEMPLATE, Face  # noqa: E402
from osdface_core.faces.align import affine_rows, fit_similarity  # noqa: E402

SIZE, HEAD, STEP, COUNT = (
    200,
    120.0,
    3,
    24,
)  # frame side [px], crop side in the photo [px], pan [px/frame], frames
NOISE = 1.0  # of the detector's landmarks [px]


def face_at(x: float, y: float, generator: torch.Generator | None = None, noise: float = NOISE) -> Face:
    """A face whose 512 crop has its corner at (x, y) in the photo, landmarks trembling by `noise`."""
    points = torch.tensor(FFHQ_TEMPLATE, dtype=torch.float64) * (HEAD / 512) + torch.tensor(
        [x, y], dtype=torch.float64
    )
    if generator is not None:
        points = points + noise * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    array = points.numpy()
    box = (array[:, 0].min() - 20, array[:, 1].min() - 25, array[:, 0].max() + 20, array[:, 1].max() + 20)
    landmarks = tuple((float(a), float(b)) for a, b in array)
    return Face(tuple(map(float, box)), landmarks, 0.99, affine_rows(fit_similarity(array)))  # type: ignore[arg-type]


def pan(monkeypatch, noise: float = NOISE, missing: tuple[int, ...] = ()) -> torch.Tensor:
    """Flat IMAGE (COUNT, SIZE, SIZE, 3) with a face that moves STEP px a frame and a trembling detector."""
    generator = torch.Generator().manual_seed(7)
    found = [
        [face_at(10.0 + STEP * i, 40.0, generator, noise)] if i not in missing else [] for i in range(COUNT)
    ]
    answers = iter(found)
    monkeypatch.setattr(frames_module, "detect", lambda *args, **options: next(answers))
    return torch.full((COUNT, SIZE, SIZE, 3), 0.5)


def jitter(pasted: torch.Tensor) -> float:
    """Mean change between neighbouring frames once the pan is undone, where the face is."""
    held = [frame[:, STEP * i : STEP * i + SIZE - STEP * (COUNT - 1)] for i, frame in enumerate(pasted)]
    stacked = torch.stack(held)
    return float((stacked[1:] - stacked[:-1]).abs().mean())


@pytest.fixture(autouse=True)
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


DETECT = {
    "detector": "mtcnn", "selection": "all", "indices": "", "order": "size",
    "min_face": 0, "max_face": 0, "max_faces": 0,
}  # fmt: skip


def detect(image, **options):
    return NODES["OSDFaceDetectFaces"]().detect(image=image, **(DETECT | options))


def paste(image, faces):
    """Stripes instead of restored faces: any movement shows."""
    stripes = ((torch.arange(512) // 32) % 2).float()
    crop = (stripes[:, None] + stripes[None]).expand(1, 3, 512, 512).permute(0, 2, 3, 1) / 2
    crops = crop.repeat(len(faces), 1, 1, 1)
    return NODES["OSDFacePasteBack"]().paste(
        image=image, faces=faces, crops=crops, feather=0.2, mode="replace"
    )[0]


def test_paste_jitter_is_at_most_a_third(monkeypatch):
    measured = {}
    for kind in ("photos", "clip"):
        image = pan(monkeypatch)
        measured[kind] = jitter(paste(image, detect(image, frames=kind)[0]))
    still = jitter(
        paste(pan(monkeypatch, noise=0.0), detect(pan(monkeypatch, noise=0.0), frames="photos")[0])
    )
    print(measured, "without any noise", still)
    assert still < 0.1 * measured["photos"], "the measure sees more than jitter"
    assert measured["clip"] <= measured["photos"] / 3


def test_smoothed_face_follows_the_pan(monkeypatch):
    image = pan(monkeypatch)
    faces = detect(image, frames="clip")[0]
    for i, (face,) in enumerate(faces.frames):
        true = face_at(10.0 + STEP * i, 40.0)
        assert abs(face.points - true.points).max() < 2 * NOISE, f"frame {i} lags behind"


def test_one_person_keeps_one_number(monkeypatch):
    image = pan(monkeypatch)
    faces, crops, count, _, text = detect(image, frames="clip")
    assert count == len(crops) == COUNT and {n for numbers in faces.numbers for n in numbers} == {0}
    assert {entry["number"] for entry in json.loads(text)["faces"]} == {0}


def test_a_face_missed_for_two_frames_does_not_flash(monkeypatch):
    image = pan(monkeypatch, missing=(9, 10))
    faces = detect(image, frames="clip")[0]
    assert all(len(found) == 1 for found in faces.frames)
    image = pan(monkeypatch, missing=(9, 10))
    assert [len(f) for f in detect(image, frames="photos")[0].frames].count(0) == 2


def test_scene_cut_starts_new_numbers(monkeypatch):
    image = pan(monkeypatch)
    image[COUNT // 2 :] = 0.05
    image[COUNT // 2 :, : SIZE // 2] = 1.0
    faces = detect(image, frames="clip")[0]
    first, second = set(sum(faces.numbers[: COUNT // 2], ())), set(sum(faces.numbers[COUNT // 2 :], ()))
    assert first == {0} and second == {1}


def test_selection_by_number_follows_one_person(monkeypatch):
    """Two people who change places: number 0 stays the one who started left."""
    generator = torch.Generator().manual_seed(1)
    left, right = 5.0, 225.0
    answers = iter(
        [
            [face_at(left + 9.5 * i, 10.0, generator, 0.2), face_at(right - 9.5 * i, 150.0, generator, 0.2)]
            for i in range(COUNT)
        ]
    )
    monkeypatch.setattr(frames_module, "detect", lambda *args, **options: next(answers))
    image = torch.full((COUNT, 300, 360, 3), 0.5)
    faces = detect(image, frames="clip", selection="indices", indices="0", order="left_to_right")[0]
    ys = [found[0].center[1] for found in faces.frames]
    assert len(ys) == COUNT and max(ys) < 120, "number 0 jumped to the other person"


@pytest.mark.parametrize("options", [{}, {"frames": "photos"}])
def test_variations_of_one_scene_are_no_clip(monkeypatch, options):
    """Six pictures that look alike, their face moved by up to 60 px: no landmark is touched."""
    places = (0, 4, 60, 20, 45, 9)
    answers = [[face_at(10.0 + x, 40.0)] for x in places]
    found = iter(answers)
    monkeypatch.setattr(frames_module, "detect", lambda *args, **options: next(found))
    faces = detect(torch.full((6, SIZE, SIZE, 3), 0.5), **options)[0]
    assert [list(faces) for faces in faces.frames] == answers


def test_restore_photo_takes_a_batch_for_photos():
    spec = NODES["OSDFaceRestorePhoto"].INPUT_TYPES()["optional"]["frames"]
    assert spec[0] == ["photos", "clip"] and spec[1]["default"] == "photos"

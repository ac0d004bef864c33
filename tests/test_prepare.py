"""From photos to training faces: filters, duplicates, people, hold-out, resuming; one run really detects."""

import argparse
import base64
import csv
import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core.errors import CheckpointError, ConfigError, ImageError
from osdface_core.faces import Face
from osdface_trainer.data.check import check_face
from osdface_trainer.data.dataset import FaceDataset
from osdface_trainer.data.degrade_ops import real_jpeg
from osdface_trainer.data.sources import list_faces
from osdface_trainer.prepare import cli
from osdface_trainer.prepare import photos as photos_module
from osdface_trainer.prepare import run as prepare_module
from osdface_trainer.prepare.photos import FaceRecord, PhotoRecord, PrepareOptions
from osdface_trainer.prepare.run import prepare
from osdface_trainer.prepare.selection import of_person
from osdface_trainer.prepare.similarity import like_hashes, linked_groups, perceptual_hash

CELL = 120  # px: side of one stand-in face in a photo


def texture(seed: int, side: int = CELL) -> np.ndarray:
    """A picture with strong large shapes and fine detail, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse).astype(int) + rng.integers(-40, 41, (side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_photo(path: Path, *seeds: int) -> None:
    """A photo whose faces are the textures of `seeds`, side by side; none: a grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [texture(seed) for seed in seeds] or [np.full((CELL, CELL, 3), 128, dtype=np.uint8)]
    Image.fromarray(np.concatenate(cells, 1)).save(path)


class StandIn:
    """Instead of a detector: every textured cell of a photo is a face. Counts its calls; may be killed."""

    def __init__(self) -> None:
        self.calls, self.stop_after = 0, 10**9

    def __call__(self, photo: np.ndarray, detector: str = "auto", **options) -> list[Face]:
        if self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        faces = []
        for x in range(0, photo.shape[1] - CELL + 1, CELL):
            if photo[:, x : x + CELL].std() > 5:
                scale = 512 / CELL
                half = (scale - 1) / 2  # pixel centres are at whole numbers
                affine = ((scale, 0.0, half - scale * x), (0.0, scale, half))
                points = tuple(
                    (x + CELL * a, CELL * b)
                    for a, b in ((0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.7, 0.7))
                )
                faces.append(Face((float(x), 0.0, float(x + CELL), float(CELL)), points, 0.9, affine))
        return faces


@pytest.fixture
def detector(monkeypatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(photos_module, "detect", stand_in)
    monkeypatch.setattr(prepare_module, "detect", stand_in)
    return stand_in


@pytest.fixture(autouse=True)
def no_weights_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(6):
        write_photo(folder / "album" / f"{number}.png", number)
    write_photo(folder / "group.png", 20, 21)
    write_photo(folder / "wall.png")
    shutil.copy(folder / "album" / "1.png", folder / "same.png")
    Image.open(folder / "album" / "2.png").save(folder / "again.jpg", quality=80)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (folder / "notes.txt").write_text("no photo")
    return folder


def rows(dst: Path) -> list[dict[str, str]]:
    with (dst / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(src: Path, dst: Path, **options):
    options = {"min_face": 80, "min_sharpness": 0.0, "size": 128, "progress": False, **options}
    single = {key: options.pop(key) for key in list(options) if key in PrepareOptions.__dataclass_fields__}
    return prepare(src, dst, PrepareOptions(**single), **options)


def test_every_photo_is_accounted_for(photos, tmp_path, detector):
    dst = tmp_path / "faces"
    summary = run(photos, dst)
    assert summary.photos == 11
    assert summary.faces == summary.train + summary.val == 8
    assert summary.rejected == {"no face": 1, "same file": 1, "duplicate": 1}
    assert [photo for photo, _ in summary.unreadable] == ["broken.jpg"]
    assert any("broken.jpg" in line for line in summary.lines())
    listed = rows(dst)
    assert {row["file"] for row in listed} == {p.relative_to(dst).as_posix() for p in dst.rglob("*.png")}
    for row in listed:
        data = (dst / row["file"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["source_sha256"] == hashlib.sha256((photos / row["source"]).read_bytes()).hexdigest()
        assert int(row["size"]) == CELL
        assert len(row["landmarks"].split()) == 10
    assert json.loads((dst / "report.json").read_text("utf-8"))["faces"] == 8


def test_the_result_is_a_data_set(photos, tmp_path, detector):
    dst = tmp_path / "faces"
    summary = run(photos, dst, holdout=0.3)
    assert summary.split_by == "identity"
    assert len(list_faces(dst, split="train")) == summary.train
    assert len(list_faces(dst, split="val")) == summary.val > 0
    dataset = FaceDataset(dst, 128)
    assert all(hashlib.sha256(item.read()).hexdigest() == item.sha256 for item in dataset.parts[0])
    assert len(dataset) == 8
    assert dataset.parts[0][0].size == CELL
    first = dataset.parts[0][0].name
    source = next(row["source"] for row in rows(dst) if row["file"] == first)
    expected = np.asarray(Image.open(photos / source).resize((128, 128), Image.Resampling.BICUBIC)).astype(
        int
    )
    assert np.abs(dataset[0].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6


def test_people_are_the_albums_and_stay_on_one_side(photos, tmp_path, detector):
    dst = tmp_path / "faces"
    run(photos, dst, holdout=0.4, seed=3)
    by_person: dict[str, set[str]] = {}
    for row in rows(dst):
        by_person.setdefault(row["identity"], set()).add(row["split"])
    assert by_person.keys() == {"album", "again.jpg", "group.png"} or by_person.keys() == {
        "album",
        "group.png",
    }
    assert all(len(sides) == 1 for sides in by_person.values())


NAMES = {
    "emoji": "\U0001f600" * 61 + ".png",  # 248 bytes, 65 characters
    "long": "x" * 251 + ".png",  # 255 bytes
    "latin1": os.fsdecode(b"caf\xe9.png"),  # no UTF-8
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_photo_of_any_name_becomes_a_face(tmp_path, detector, name):
    write_photo(tmp_path / "photos" / "a.png", 1)
    write_photo(tmp_path / "photos" / name, 2)
    summary = run(tmp_path / "photos", tmp_path / "faces")
    assert (summary.faces, summary.unreadable) == (2, ())
    assert (tmp_path / "faces" / "report.json").read_text("utf-8")
    listed = rows(tmp_path / "faces")
    assert {row["source"] for row in listed} == {"a.png", name.encode(errors="backslashreplace").decode()}
    for row in listed:
        with Image.open(tmp_path / "faces" / row["file"]) as face:
            assert face.size == (128, 128)
    assert [check_face(file) for file in list_faces(tmp_path / "faces")] == ["", ""]
    again = run(tmp_path / "photos", tmp_path / "faces")
    assert again.resumed == 2 and rows(tmp_path / "faces") == listed


def test_a_name_that_the_disk_refuses_costs_that_photo_only(tmp_path, detector, monkeypatch):
    for number in range(2):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
    monkeypatch.setattr(photos_module, "NAME_BYTES", 300)
    long = "y" * 251 + ".png"
    write_photo(tmp_path / "photos" / long, 3)
    summary = run(tmp_path / "photos", tmp_path / "faces")
    assert summary.faces == 2
    assert summary.unreadable == ((long, "its faces cannot be written: File name too long"),)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
def test_a_pipe_is_no_photo(tmp_path, detector):
    write_photo(tmp_path / "photos" / "a.png", 1)
    os.mkfifo(tmp_path / "photos" / "b.png")
    summary = run(tmp_path / "photos", tmp_path / "faces")
    assert summary.faces == 1
    ((name, reason),) = summary.unreadable
    assert name == "b.png" and reason.endswith("is no file: a pipe, a device or a link to nothing")


def test_unreadable_photos_are_counted_and_no_failure(tmp_path, photos, detector, capsys):
    def command(source: Path) -> int:
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        words = (source, tmp_path / "out", "--min-face", "80", "--min-sharpness", "0", "--quiet")
        return cli.run(parser.parse_args(list(map(str, words))))

    assert command(photos) == 0
    printed = capsys.readouterr().out
    assert "left out, unreadable: 1\nunreadable: broken.jpg: " in printed
    (tmp_path / "bad").mkdir()
    shutil.copy(photos / "broken.jpg", tmp_path / "bad")
    assert command(tmp_path / "bad") == 1


def test_one_person_is_split_by_photo(tmp_path, detector):
    for number in range(5):
        write_photo(tmp_path / "photos" / "me" / f"{number}.png", number)
    summary = run(tmp_path / "photos", tmp_path / "faces", holdout=0.2)
    assert (summary.identities, summary.split_by, summary.val) == (1, "photo", 1)
    assert run(tmp_path / "photos", tmp_path / "faces", holdout=0.0).val == 0


def test_a_killed_run_continues_and_ends_the_same(photos, tmp_path, detector):
    run(photos, tmp_path / "whole")
    calls, detector.calls, detector.stop_after = detector.calls, 0, 4
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "faces")
    assert not (tmp_path / "faces" / "manifest.csv").exists()
    journal = tmp_path / "faces" / ".prepare.jsonl"
    journal.write_text(journal.read_text() + '{"source": "album/5.png", "sha')  # cut off in a line
    (tmp_path / "faces" / "faces" / "album" / ".5-01234567-0.77.partial.png").write_bytes(b"half")
    detector.stop_after = 10**9
    summary = run(photos, tmp_path / "faces")
    assert detector.calls == calls
    assert summary.resumed == 4
    for name in [row["file"] for row in rows(tmp_path / "whole")] + ["manifest.csv"]:
        assert (tmp_path / "faces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "faces").rglob("*partial*"))


def test_only_changed_photos_are_done_again(photos, tmp_path, detector):
    dst = tmp_path / "faces"
    run(photos, dst)
    before, detector.calls = {row["source"]: row["file"] for row in rows(dst)}, 0
    run(photos, dst, holdout=0.5, seed=9)
    assert detector.calls == 0
    write_photo(photos / "album" / "0.png", 50)  # edited
    write_photo(photos / "new.png", 51)
    (photos / "album" / "3.png").unlink()
    run(photos, dst)
    assert detector.calls == 2
    after = {row["source"]: row["file"] for row in rows(dst)}
    assert after.keys() == before.keys() - {"album/3.png"} | {"new.png"}
    assert after["album/0.png"] != before["album/0.png"]
    assert {p.relative_to(dst).as_posix() for p in dst.rglob("*.png")} == {row["file"] for row in rows(dst)}
    run(photos, dst, min_face=90)  # another filter looks at every photo again
    assert detector.calls > 8


def test_a_deleted_face_and_a_rehabilitated_duplicate_come_back(photos, tmp_path, detector):
    dst = tmp_path / "faces"
    run(photos, dst)
    first = dst / rows(dst)[0]["file"]
    content = first.read_bytes()
    first.unlink()
    run(photos, dst)
    assert first.read_bytes() == content
    assert run(photos, dst, duplicates=-1).faces == 9
    assert len(list(dst.rglob("*.png"))) == 9


def test_foreign_files_in_the_target_survive(photos, tmp_path, detector):
    own = tmp_path / "faces" / "faces" / "my_own.png"
    write_photo(own, 7)
    run(photos, tmp_path / "faces")
    assert own.is_file()


def test_target_below_the_photos_is_not_a_source(photos, detector):
    first = run(photos, photos / "out")
    assert run(photos, photos / "out").photos == first.photos == 11


@pytest.mark.parametrize(
    ("policy", "faces", "reason"),
    [("all", 2, None), ("largest", 1, "not the largest"), ("skip", 0, "several faces")],
)
def test_policies_for_several_faces(tmp_path, detector, policy, faces, reason):
    write_photo(tmp_path / "photos" / "group.png", 20, 21)
    summary = run(tmp_path / "photos", tmp_path / "faces", multi_faces=policy)
    assert summary.faces == faces
    assert set(summary.rejected) == ({reason} if reason else set())


def test_filters_name_their_reason(tmp_path, detector):
    write_photo(tmp_path / "photos" / "one.png", 1)
    blurry = Image.fromarray(texture(2)).resize((10, 10)).resize((CELL, CELL), Image.Resampling.BICUBIC)
    blurry.save(tmp_path / "photos" / "two.png")
    assert run(tmp_path / "photos", tmp_path / "a", min_sharpness=0.15).rejected == {"blurry": 1}
    assert run(tmp_path / "photos", tmp_path / "b", min_face=121).rejected == {"too small": 2}


def test_faces_beyond_the_border_are_left_out(tmp_path, monkeypatch):
    write_photo(tmp_path / "photos" / "one.png", 1)
    half_out = Face(
        (-100.0, 0.0, 100.0, 200.0),
        ((0.0, 0.0),) * 5,
        0.9,
        ((512 / CELL, 0.0, 256.0), (0.0, 512 / CELL, 0.0)),
    )
    monkeypatch.setattr(photos_module, "detect", lambda *_, **__: [half_out])
    assert run(tmp_path / "photos", tmp_path / "faces").rejected == {"beyond the border": 1}
    summary = run(tmp_path / "photos", tmp_path / "faces", min_coverage=0.4)
    assert summary.faces == 1
    assert float(rows(tmp_path / "faces")[0]["coverage"]) == pytest.approx(0.5, abs=0.02)


def test_jpeg_faces_and_bad_options(photos, tmp_path, detector):
    run(photos, tmp_path / "faces", format="jpg")
    assert all(row["file"].endswith(".jpg") for row in rows(tmp_path / "faces"))
    assert Image.open(tmp_path / "faces" / rows(tmp_path / "faces")[0]["file"]).size == (128, 128)
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({"holdout": 1.0}, "holdout"),
        ({"size": 10}, "at least 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(photos, tmp_path / "x", **options)
    with pytest.raises(ConfigError, match="no photos below"):
        run(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(ConfigError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "x")


def test_hash_tells_copies_from_other_pictures():
    faces = (
        torch.stack([torch.from_numpy(texture(seed, 256)).permute(2, 0, 1) for seed in range(12)]).float()
        / 255
    )
    smaller = torch.nn.functional.interpolate(faces, size=(150, 150), mode="bilinear", antialias=True)
    copies = torch.stack([real_jpeg(face, 70) for face in smaller]) * 0.9 + 0.03
    looks = [[int(look, 16) for look in perceptual_hash(pictures)] for pictures in (faces, copies)]
    distance = torch.tensor([[(a ^ b).bit_count() for b in looks[1]] for a in looks[0]]).float()
    assert distance.diagonal().max() <= 16
    assert (distance + 999 * torch.eye(12)).min() > 50


@pytest.mark.parametrize("tolerance", [0, 3, 16, 60, 255])
def test_hashes_in_buckets_equal_a_comparison_of_all(tolerance):
    drawn = random.Random(tolerance)
    looks = [drawn.getrandbits(255) << 1 for _ in range(30)]
    for _ in range(90):  # copies of copies, just within and just beyond the tolerance
        flips = drawn.sample(range(1, 256), min(255, tolerance + drawn.randrange(3)))
        looks.append(drawn.choice(looks) ^ sum(1 << bit for bit in flips))
    expected = list(range(120))
    for _ in range(120):
        expected = [
            min(name for b, name in zip(looks, expected, strict=True) if (a ^ b).bit_count() <= tolerance)
            for a in looks
        ]
    assert like_hashes([f"{look:064x}" for look in looks], tolerance) == expected
    assert tolerance == 255 or 1 < len(set(expected)) < 120


def test_linked_groups_equal_a_search_by_hand():
    vectors = torch.nn.functional.normalize(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    groups = linked_groups(vectors, 0.97)
    expected = list(range(60))
    changed = True
    while changed:  # propagate the smallest label along links until nothing moves
        changed = False
        for a in range(60):
            for b in range(60):
                if a != b and float(vectors[a] @ vectors[b]) >= 0.97 and expected[b] < expected[a]:
                    expected[a], changed = expected[b], True
    assert groups == expected
    assert 1 < len(set(groups)) < 60


@pytest.fixture
def two_people(tmp_path, detector, monkeypatch) -> Path:
    """Two albums with the same two people, and a stand-in for the network that knows both."""
    for album in ("a", "b"):
        for person in range(2):
            write_photo(tmp_path / "photos" / album / f"{person}.png", 10 * (album == "b") + person)
    people = {tuple(np.round(texture(10 * (a == "b") + p).mean((0, 1)))): p for a in "ab" for p in range(2)}

    def embed(faces: torch.Tensor) -> torch.Tensor:
        means = faces.mean((2, 3)) * 255
        nearest = [
            min(people, key=lambda key: sum((k - v) ** 2 for k, v in zip(key, m, strict=True)))
            for m in means.tolist()
        ]
        return torch.eye(4)[[people[key] for key in nearest]]

    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "mobilefacenet.pt").touch()
    monkeypatch.setattr(prepare_module, "_embedder", lambda weights, device: embed if weights else None)
    return tmp_path


def test_embeddings_group_faces_by_person(two_people):
    """The network's vectors decide, not the folders; its weights are those of the cache."""
    summary = run(two_people / "photos", two_people / "faces", holdout=0.5)
    assert summary.identities == 2
    assert not any("told apart by folder" in line for line in summary.lines())
    sides = {
        row["identity"]: {r["split"] for r in rows(two_people / "faces") if r["identity"] == row["identity"]}
        for row in rows(two_people / "faces")
    }
    assert sorted(map(tuple, sides.values())) == [("train",), ("val",)]


def test_one_person_alone_is_kept(two_people):
    portrait = two_people / "me.png"
    write_photo(portrait, 11)  # album b, second person
    summary = run(two_people / "photos", two_people / "faces", person=[portrait], holdout=0.5)
    assert (summary.split_by, summary.train, summary.val) == ("photo", 1, 1)
    assert {Path(row["source"]).name for row in rows(two_people / "faces")} == {"1.png"}
    assert (summary.faces, summary.rejected) == (2, {"another person": 2})
    assert run(two_people / "photos", two_people / "faces").faces == 4, "others come back without --person"


def test_faces_that_others_link_to_the_portrait_are_kept():
    """Angles from the portrait: the second face is like the first only, the last two are somebody else."""
    chosen = []
    for angle in (0.5, 1.2, 2.5, 3.1):
        vector = np.array([np.cos(angle), np.sin(angle)], dtype=np.float16)
        face = FaceRecord(
            f"{angle}", "", (), (), 1.0, 512, 1.0, 1.0, "", base64.b64encode(vector.tobytes()).decode()
        )
        chosen.append((PhotoRecord("photo", ""), face))
    portrait = torch.tensor([[1.0, 0.0]])
    kept = of_person(chosen, portrait, same_person=0.65)  # the cosine of .86
    assert [face.file for _, face in kept] == ["0.5", "1.2"]
    assert of_person([], portrait, 0.65) == []


def test_what_a_person_needs(two_people):
    nobody = two_people / "grey.png"
    write_photo(nobody)
    with pytest.raises(ImageError, match=r"grey\.png: no face"):
        run(two_people / "photos", two_people / "faces", person=[nobody])
    (two_people / "hub" / "checkpoints" / "mobilefacenet.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mobilefacenet\.pt"):
        run(two_people / "photos", two_people / "faces", person=[nobody])
    summary = run(two_people / "photos", two_people / "faces")
    assert any("told apart by folder and photo only" in line for line in summary.lines())


def test_real_photo_with_the_real_detector(tmp_path):
    data = pytest.importorskip("skimage.data")
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(data.astronaut())
    photo.save(tmp_path / "photos" / "astronaut.png")
    photo.resize((460, 460), Image.Resampling.LANCZOS).save(tmp_path / "photos" / "smaller.jpg", quality=85)
    summary = prepare(
        tmp_path / "photos",
        tmp_path / "faces",
        PrepareOptions(min_face=60, min_sharpness=0.05, min_coverage=0.7),
        progress=False,
    )
    assert summary.faces == 1
    assert summary.rejected["duplicate"] == 1
    row = rows(tmp_path / "faces")[0]
    assert row["source"] == "astronaut.png"  # the larger of the two
    eye_left, eye_right = row["landmarks"].split()[:2], row["landmarks"].split()[2:4]
    assert np.hypot(float(eye_left[0]) - 204, float(eye_left[1]) - 106) < 15
    assert 20 < float(eye_right[0]) - float(eye_left[0]) < 70
    assert Image.open(tmp_path / "faces" / row["file"]).size == (512, 512)

"""Training data of millions: bytes for each face, streamed shards, several sources in ratios."""

import io
import itertools
import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core.errors import ConfigError, ImageError
from osdface_trainer.data import order
from osdface_trainer.data.check import CheckedFiles, find_broken, without_broken
from osdface_trainer.data.dataset import Batches, FaceDataset
from osdface_trainer.data.order import epoch_order
from osdface_trainer.data.shards import StreamedFaces
from osdface_trainer.data.sources import list_faces, read_manifest
from osdface_trainer.recipe.config import check_resumable, load_recipe

MANY = 20_000
PER_SHARD = 4


def write_index(folder: Path, shards: int, faces: int = PER_SHARD) -> Path:
    """Shards of faces of 16 px whose red says which face it is, and their index."""
    folder.mkdir()
    rows = []
    for shard in range(shards):
        name = f"faces-{shard:03}.tar"
        with tarfile.open(folder / name, "w") as archive:
            for face in range(faces):
                png = io.BytesIO()
                Image.new("RGB", (16, 16), (shard * faces + face, 90, 120)).save(png, "png")
                member = tarfile.TarInfo(f"{shard:03}{face:03}.png")
                member.size = png.tell()
                archive.addfile(member, io.BytesIO(png.getvalue()))
        rows.append({"url": name, "nsamples": faces})
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": rows}))
    return folder / "index.json"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six shards of four faces behind fsspec, and an empty cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return write_index(tmp_path / "far", 6).as_uri()


def fetched(home: Path) -> int:
    return len(list((home / ".cache/osdface/shards").glob("*.tar")))


def shown(batches: Batches, count: int) -> list[list[int]]:
    """Which faces the pixels of `count` batches show."""
    return [(batch.hq[:, 0, 0, 0] * 255).round().int().tolist() for batch in itertools.islice(batches, count)]


def test_a_face_of_a_manifest_takes_a_few_bytes(tmp_path: Path) -> None:
    row = "faces/{0:08}/photo-{0:08}-0.png,{0:064x},person-{0:08},train,400\n"
    text = "file,sha256,identity,split,size\n" + "".join(map(row.format, range(MANY)))
    (tmp_path / "manifest.csv").write_text(text)
    tracemalloc.start()
    faces = list_faces(tmp_path, split="train")
    order = FaceDataset(faces).order(8, 0)
    order.index(0)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / MANY < 20, "eight where it begins, eight for its place in the epoch; objects took 932"
    assert faces[MANY - 1].name == f"faces/{MANY - 1:08}/photo-{MANY - 1:08}-0.png"
    assert faces[7].identity == "person-00000007" and int(faces[7].sha256, 16) == 7


def test_a_face_of_a_shard_takes_a_few_bytes(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_index(tmp_path / "near", 2, 2000)
    tracemalloc.start()
    faces = list_faces(f"{tmp_path}/near/*.tar")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / len(faces) < 16, "eight where it begins; objects took 285"
    assert faces[2001].name == "faces-001.tar/001001.png"


def test_a_checked_face_takes_a_few_bytes(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_bytes(b"")
    faces, notes = list_faces(tmp_path), tmp_path / "run" / "checked.npy"
    broken = find_broken(faces, CheckedFiles(notes), workers=2)
    assert [faces[at].name for at in broken] == ["5.png"]
    assert len(np.load(notes)) == 39 and np.load(notes).dtype == np.uint64
    assert "5.png" not in {face.name for face in without_broken(faces, broken, "skip", "data.train")}


def test_rows_out_of_order_and_of_several_lines_are_read(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    rows = '\ufefffile,tags\r\nb.png,"one\r\ntwo, three"\r\n\r\na.png,four\r\nc.png\r\n'
    manifest.write_bytes(rows.encode())
    found = [(face.name, face.tags) for face in read_manifest(manifest)]
    assert found == [("a.png", "four"), ("b.png", "one\r\ntwo, three"), ("c.png", "")]


def test_a_stream_shows_each_face_once_a_pass(index: str) -> None:
    batches = Batches(FaceDataset(index, 16), 3, seed=3)
    seen = np.array(shown(batches, 16))
    assert sorted(seen[:8].ravel()) == sorted(seen[8:].ravel()) == list(range(24))
    assert not np.array_equal(seen[:8], seen[8:])
    assert all(len(set(lane // PER_SHARD)) == 2 for lane in seen.T), "a stream has shards of its own"


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_fetches_its_own_shards_only(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    whole = shown(Batches(FaceDataset(index, 16), 6, seed=1), 9)
    parts = []
    for rank in range(world):
        monkeypatch.setenv("HOME", str(tmp_path / str(rank)))
        own = Batches(FaceDataset(index, 16), 6 // world, seed=1, rank=rank, world_size=world)
        parts.append(shown(own, 9))
        assert fetched(tmp_path / str(rank)) == 6 // world
    merged = [
        [face for lane in zip(*step, strict=True) for face in lane] for step in zip(*parts, strict=True)
    ]
    assert merged == whole, "as one process sees them"


def test_shards_come_while_training_runs(index: str, tmp_path: Path) -> None:
    dataset = FaceDataset(index, 16)
    assert len(dataset) == 24 and fetched(tmp_path) == 0, "the index alone says how many faces there are"
    batches = iter(Batches(dataset, 1, seed=0, prefetch=0))
    next(batches)
    part = dataset.parts[0]
    assert isinstance(part, StreamedFaces)
    part._pool.shutdown()
    assert fetched(tmp_path) == 2, "the shard at hand and the next one"


def test_a_stream_resumes_and_goes_on_with_less_disk(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shown(Batches(FaceDataset(index, 16), 2, seed=5), 30)
    assert fetched(tmp_path) == 6
    monkeypatch.setenv("HOME", str(tmp_path / "small"))
    small = FaceDataset(list_faces(index, limit=25_000), 16)  # two shards of 10,240 bytes
    assert shown(Batches(small, 2, seed=5, start_step=4), 26) == whole[4:]
    part = small.parts[0]
    assert isinstance(part, StreamedFaces)
    part._pool.shutdown()
    assert fetched(tmp_path / "small") < 6, "those in use, and what was fetched before a shard was passed"


def test_fetched_shards_stay_within_their_limit(index: str, tmp_path: Path) -> None:
    faces = list_faces(index, limit=0)
    assert isinstance(faces, StreamedFaces)
    for shard in (0, 1):
        faces.fetch(shard)
        faces[shard * PER_SHARD]
        faces.leave(shard)
        faces[shard * PER_SHARD + 1]  # threads decode a little later than shards are passed
    faces.leave(1)
    assert fetched(tmp_path) == 0
    for face in range(24):
        faces[face]
    assert fetched(tmp_path) == 1, "read in any order, without streams"


def test_a_streamed_face_that_is_broken_is_replaced_or_stops(index: str, tmp_path: Path) -> None:
    shard = tmp_path / "far" / "faces-002.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        data[archive.getmembers()[1].offset_data] = 0
    shard.write_bytes(data)
    with pytest.raises(ImageError, match=r"faces-002\.tar/002001\.png|[0-9a-f]+\.tar/002001\.png"):
        FaceDataset(index, 16)[9]
    assert FaceDataset(index, 16, skip=True)[9][0, 0, 0] == 10


def test_an_index_that_does_not_fit_is_one_line(index: str, tmp_path: Path) -> None:
    table = json.loads((tmp_path / "far" / "index.json").read_text())
    table["shardlist"][0]["nsamples"] = 5
    (tmp_path / "far" / "index.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="has 4 pictures, 5 in the index"):
        FaceDataset(index, 16)[0]
    (tmp_path / "far" / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r'expected \{"shardlist"'):
        list_faces(index)
    with pytest.raises(ConfigError, match="cannot be read"):
        list_faces((tmp_path / "none.json").as_uri())
    with pytest.raises(ConfigError, match=r"data\.cache"):
        FaceDataset(write_index(tmp_path / "near", 1), 16, cache="cpu")


def two_sources(tmp_path: Path) -> FaceDataset:
    for name, faces in (("one", 7), ("two", 5)):
        (tmp_path / name).mkdir()
        for face in range(faces):
            Image.new("RGB", (16, 16), (face + 100 * (name == "two"), 0, 0)).save(
                tmp_path / name / f"{face}.png"
            )
    return FaceDataset(tmp_path / "one", 16, more=[list_faces(tmp_path / "two")], ratios=[3, 1])


def test_sources_are_mixed_in_their_ratio(tmp_path: Path) -> None:
    dataset = two_sources(tmp_path)
    assert dataset.fingerprint() != FaceDataset(tmp_path / "one", 16).fingerprint()
    steps = shown(Batches(dataset, 2, seed=4), 4 * 35)
    counts = Counter(face for step in steps for face in step)
    assert sum(n for face, n in counts.items() if face >= 100) == 2 * 35, "a quarter, exactly"
    assert {counts[face] for face in range(7)} == {30} and {counts[100 + face] for face in range(5)} == {14}
    assert shown(Batches(dataset, 2, seed=4, start_step=57), 9) == steps[57:66], "exact after a resume"
    ranks = [shown(Batches(dataset, 1, seed=4, rank=rank, world_size=2), 9) for rank in range(2)]
    assert [[a[0], b[0]] for a, b in zip(*ranks, strict=True)] == steps[:9]
    named = [batch.indices.tolist() for batch in itertools.islice(Batches(dataset, 2, seed=4), 9)]
    assert [[face - 93 if face >= 100 else face for face in step] for step in steps[:9]] == named
    assert torch.equal(dataset[11], dataset.get([11])[0])


def test_an_epoch_of_a_source_is_shuffled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where places of the batch come to its end in different steps: it takes seconds for millions."""
    mixed, calls = two_sources(tmp_path).order(2, 4), Counter[tuple[int, int]]()
    monkeypatch.setattr(order, "epoch_order", lambda *a: calls.update([a[:2]]) or epoch_order(*a))
    for counter in range(4 * 35 * 2):
        mixed.index(counter)
    assert {calls[7, epoch] for epoch in range(30)} == {calls[5, epoch] for epoch in range(14)} == {1}


def test_a_recipe_names_several_sources(tmp_path: Path) -> None:
    two = load_recipe("smoke", ['data.sources=[{path="ffhq",ratio=2},{path="ffhqr"}]'])
    assert [(source.path, source.ratio) for source in two.data.training] == [("ffhq", 2), ("ffhqr", 1)]
    moved = load_recipe("smoke", ['data.sources=[{path="a",ratio=2},{path="b"}]'])
    assert check_resumable(two, moved, "vre", tmp_path) == []
    other = load_recipe("smoke", ['data.sources=[{path="a"},{path="b"}]'])
    with pytest.raises(ConfigError, match=r"data\.sources"):
        check_resumable(two, other, "vre", tmp_path)
    with pytest.raises(ConfigError, match="one of train and sources"):
        load_recipe("smoke", ["data.train=a", 'data.sources=[{path="b"}]'])
    with pytest.raises(ConfigError, match="ratio"):
        load_recipe("smoke", ['data.sources=[{path="b",ratio=0}]'])

"""Sources of faces, the order of training, batches across processes, augmentation, preview."""

import csv
import functools
import hashlib
import http.server
import io
import itertools
import json
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core.errors import ConfigError, ImageError
from osdface_trainer.data.augment import Augmentation, augment, flips
from osdface_trainer.data.dataset import Batches, FaceDataset
from osdface_trainer.data.order import epoch_order
from osdface_trainer.data.preview import preview_grid
from osdface_trainer.data.sources import data_hash, hold_out, list_faces


def pixels(index: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven faces in two sub-folders, PNG, 32 px (number 3: 16 px), plus a text file."""
    for index in range(11):
        file = tmp_path / "faces" / ("a" if index % 2 else "b") / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(index, 16 if index == 3 else 32)).save(file)
    (tmp_path / "faces" / "notes.txt").write_text("no image")
    return tmp_path / "faces"


def write_manifest(folder: Path, name: str = "manifest.csv") -> list[dict[str, str]]:
    rows = []
    for file in sorted(folder.rglob("*.png")):
        index = int(file.stem)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        rows.append(
            {
                "file": file.relative_to(folder).as_posix(),
                "sha256": digest,
                "identity": f"p{index // 3}",
                "split": "val" if index < 3 else "train",
                "size": "400",
            }
        )
    if name.endswith(".csv"):
        with (folder / name).open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (folder / name).write_text(json.dumps({"faces": rows}))
    return rows


def write_shards(folder: Path, out: Path) -> None:
    out.mkdir()
    files = sorted(folder.rglob("*.png"))
    for number, part in enumerate((files[:6], files[6:])):
        with tarfile.open(out / f"faces-{number:03}.tar", "w") as archive:
            for file in part:
                archive.add(file, f"{file.stem}.png")
                info = tarfile.TarInfo(f"{file.stem}.json")
                info.size = 2
                archive.addfile(info, io.BytesIO(b"{}"))


def test_folder_is_listed_in_name_order_and_decoded(folder):
    dataset = FaceDataset(folder, 32)
    assert [item.name for item in dataset.parts[0]] == sorted(item.name for item in dataset.parts[0])
    assert len(dataset) == 11
    for index in (0, 7):
        number = int(Path(dataset.parts[0][index].name).stem)
        if number != 3:
            assert np.array_equal(dataset[index].permute(1, 2, 0).numpy(), pixels(number))
    assert FaceDataset(folder, 24)[3].shape == (3, 24, 24)
    assert len(FaceDataset(list_faces(folder)[:4], 32)) == 4


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.json"])
def test_manifest_carries_identity_split_and_hash(folder, name):
    rows = write_manifest(folder, name)
    items = list_faces(folder)  # a folder with a manifest means the manifest
    assert {item.sha256 for item in items} == {row["sha256"] for row in rows}
    assert len(list_faces(folder / name, split="val")) == 3
    assert len(list_faces(folder / name, split="train")) == 8
    assert items[0].size == 400
    assert FaceDataset(folder, 32)[0].shape == (3, 32, 32)


@pytest.mark.parametrize("form", ["faces-{000..001}.tar", "faces-*.tar", "file://"])
def test_shards_give_the_faces_of_the_folder(folder, tmp_path, form):
    pytest.importorskip("webdataset")
    write_shards(folder, tmp_path / "shards")
    pattern = f"{tmp_path}/shards/{form}"
    if form == "file://":
        pattern = f"file://{tmp_path}/shards/faces-{{000..001}}.tar"
    shards, plain = FaceDataset(pattern, 32), FaceDataset(folder, 32)
    assert len(shards) == 11
    assert torch.equal(shards.get(range(11)), plain.get(range(11)))


def test_remote_shards_are_fetched_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip("webdataset")
    write_shards(folder, tmp_path / "shards")
    url = f"pipe:cat {tmp_path}/shards/faces-000.tar"
    first = FaceDataset(url, 32)
    (tmp_path / "shards" / "faces-000.tar").unlink()
    again = FaceDataset(url, 32)
    assert len(first) == len(again) == 6
    kept = tmp_path / ".cache/osdface/shards"
    assert sorted(file.suffix for file in kept.iterdir()) == [".lock", ".tar"]
    monkeypatch.setattr("osdface_trainer.data.shards._PAUSES", (0.0, 0.0))
    with pytest.raises(ConfigError, match="cannot be fetched"):
        list_faces(f"pipe:echo x >> {tmp_path}/asked; cat {tmp_path}/none.tar")
    assert (tmp_path / "asked").read_text().count("x") == 3
    assert not list(kept.glob("*.part"))
    second = f"test -f {tmp_path}/late && cat {tmp_path}/shards/faces-001.tar"
    assert len(list_faces(f"pipe:{second} || (touch {tmp_path}/late; exit 1)")) == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset fetches http shards with curl")
def test_shards_come_over_http(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip("webdataset")
    write_shards(folder, tmp_path / "shards")
    handler = functools.partial(Quiet, directory=str(tmp_path / "shards"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        far = FaceDataset(f"{base}/faces-{{000..001}}.tar", 32)
        monkeypatch.setattr("osdface_trainer.data.shards._PAUSES", ())
        with pytest.raises(ConfigError, match=r"none\.tar cannot be fetched \(exit \d+\)") as caught:
            list_faces(f"{base}/none.tar")
        server.shutdown()
    assert "\n" not in str(caught.value)
    assert torch.equal(far.get(range(11)), FaceDataset(folder, 32).get(range(11)))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and tells nobody."""

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_cached_faces_equal_decoded_ones(folder):
    plain = FaceDataset(folder, 32)
    for cache in ("cpu", "device"):
        kept = FaceDataset(folder, 32, cache=cache, workers=3)
        assert kept.cached
        assert torch.equal(kept.get([4, 0, 10]), plain.get([4, 0, 10]))


def test_epoch_is_a_permutation_that_changes_with_seed_and_epoch():
    one = epoch_order(101, 0, 5)
    assert sorted(one.tolist()) == list(range(101))
    assert np.array_equal(one, epoch_order(101, 0, 5))
    assert not np.array_equal(one, epoch_order(101, 1, 5))
    assert not np.array_equal(one, epoch_order(101, 0, 6))
    # every face follows every other equally often: no leftover of the file order
    follows = np.mean([np.mean(np.diff(epoch_order(50, epoch, 0)) == 1) for epoch in range(200)])
    assert follows < 0.04


def test_order_is_pinned_across_versions():
    assert epoch_order(8, 3, 42).tolist() == [5, 7, 3, 0, 1, 2, 6, 4]


def take(batches: Batches, count: int):
    return list(itertools.islice(batches, count))


def test_batches_resume_in_the_middle(folder):
    dataset = FaceDataset(folder, 32)
    whole = take(Batches(dataset, 4, seed=9), 7)  # crosses two epoch borders
    resumed = take(Batches(dataset, 4, seed=9, start_step=5), 2)
    for before, after in zip(whole[5:], resumed, strict=True):
        assert before.step == after.step
        assert torch.equal(before.hq, after.hq)
        assert torch.equal(before.seeds, after.seeds)
        assert torch.equal(before.indices, after.indices)
    seen = torch.cat([batch.indices for batch in whole])[:22]
    assert sorted(seen[:11].tolist()) == sorted(seen[11:].tolist()) == list(range(11))
    assert len({seed for batch in whole for seed in batch.seeds.tolist()}) == 28


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batch(folder, world):
    dataset = FaceDataset(folder, 32)
    single = take(Batches(dataset, 2 * world, seed=1), 9)
    ranks = [take(Batches(dataset, 2, seed=1, rank=rank, world_size=world), 9) for rank in range(world)]
    for step, batch in enumerate(single):
        parts = [ranks[rank][step] for rank in range(world)]
        for name in ("hq", "seeds", "indices"):
            merged = torch.stack([getattr(part, name) for part in parts], 1).flatten(0, 1)
            assert torch.equal(merged, getattr(batch, name))


def test_batches_do_not_depend_on_cache_or_workers(folder):
    plain = take(Batches(FaceDataset(folder, 32, workers=1), 3, seed=2, prefetch=0), 5)
    threads = take(Batches(FaceDataset(folder, 32, workers=5), 3, seed=2, prefetch=4), 5)
    cached = take(Batches(FaceDataset(folder, 32, cache="cpu"), 3, seed=2), 5)
    for a, b, c in zip(plain, threads, cached, strict=True):
        assert torch.equal(a.hq, b.hq)
        assert torch.equal(a.hq, c.hq)
        assert a.hq.dtype == torch.float32
        assert 0 <= a.hq.min() < a.hq.max() <= 1


def test_hold_out_keeps_people_together(folder):
    write_manifest(folder)
    items = list_faces(folder)
    train, held = hold_out(items, 0.3, seed=4)
    assert len(train) + len(held) == 11
    assert not {item.identity for item in train} & {item.identity for item in held}
    assert (train, held) == hold_out(items, 0.3, seed=4)
    assert {item.identity for item in held} != {
        i.identity for s in range(5) for i in hold_out(items, 0.3, s)[1]
    }
    assert len({i.identity for i in hold_out(items, 0.0)[1]}) == 1
    with pytest.raises(ConfigError, match="two people"):
        hold_out(items[:1], 0.5)


def test_fingerprint_follows_the_content(folder):
    write_manifest(folder)
    before = FaceDataset(folder, 32).fingerprint()
    assert before == data_hash(list_faces(folder))
    assert before != FaceDataset(list_faces(folder)[:10], 32).fingerprint()


def test_bad_sources_say_what_to_do(folder, tmp_path):
    cases = {
        tmp_path / "nowhere": "no folder, manifest",
        "": "set data.train",
        tmp_path / "none.tar": "cannot be read as an uncompressed tar",
    }
    for source, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            list_faces(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no images"):
        list_faces(tmp_path / "empty")
    (tmp_path / "bad.csv").write_text("name,size\nx,1\n")
    with pytest.raises(ConfigError, match=r"row 1: no `file`"):
        list_faces(tmp_path / "bad.csv")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        list_faces(tmp_path / "bad.json")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ImageError, match=r"broken.png: no readable image"):
        FaceDataset(folder, 32, cache="cpu")
    (folder / "broken.png").unlink()
    Image.new("RGB", (60, 40)).save(folder / "photo.png")
    with pytest.raises(ImageError, match=r"photo.png is 60x40.*osdface prepare"):
        take(Batches(FaceDataset(folder, 32), 12, 0), 1)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert torch.unique(FaceDataset(tmp_path, 20)[0]).tolist() == [40_000 >> 8]


def test_augment_mirrors_by_seed_alone():
    hq = torch.rand(8, 3, 20, 20)
    seeds = list(range(100, 108))
    result = augment(hq, seeds)
    mirrored = flips(seeds)
    assert 0 < sum(mirrored) < 8
    for image, changed, flag in zip(hq, result, mirrored, strict=True):
        assert torch.equal(changed, image.flip(-1) if flag else image)
    assert torch.equal(result[3:5], augment(hq[3:5], seeds[3:5]))
    assert torch.equal(augment(hq, seeds, Augmentation(flip=0.0)), hq)
    assert 0.45 < np.mean(flips(range(3000))) < 0.55


def test_augment_colour_and_geometry():
    ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)[None].repeat(6, 1, 1, 1)
    still = Augmentation(flip=0.0)
    bright = augment(ramp, range(6), Augmentation(flip=0.0, brightness=0.2))
    factors = bright.mean((1, 2, 3)) / ramp.mean((1, 2, 3))
    assert factors.min() > 0.8 and factors.max() < 1.2 and factors.std() > 0.02
    flat = augment(ramp, range(6), Augmentation(flip=0.0, contrast=0.2))
    assert torch.allclose(flat.mean((1, 2, 3)), ramp.mean((1, 2, 3)), atol=1e-5)
    tinted = augment(ramp, range(6), Augmentation(flip=0.0, tint=0.2))
    assert (tinted.mean((2, 3)).std(1) > 0.005).any()
    moved = augment(ramp, range(6), Augmentation(flip=0.0, shift=0.1, geometry_prob=1.0))
    offsets = (moved[:, :, 20:44, 20:44] - ramp[:, :, 20:44, 20:44]).mean((1, 2, 3)) / (0.4 / 63)
    assert 0.5 < offsets.abs().max() <= 6.6  # px; a shift of at most 10 % of 64
    assert torch.equal(augment(ramp, range(6), still), ramp)
    some = augment(ramp, range(6), Augmentation(flip=0.0, rotate=10, geometry_prob=0.5))
    unchanged = [torch.equal(a, b) for a, b in zip(some, ramp, strict=True)]
    assert 0 < sum(unchanged) < 6
    with pytest.raises(ConfigError, match="seeds"):
        augment(ramp, [1])


def test_preview_shows_every_profile():
    hq = torch.rand(2, 3, 48, 48)
    sheet = preview_grid(hq, ["mild", "severe"], 1, repeats=2, side=40)
    assert sheet.size == (40 * 5, 40 * 2 + 22)
    assert np.array_equal(
        np.asarray(sheet), np.asarray(preview_grid(hq, ["mild", "severe"], 1, repeats=2, side=40))
    )
    columns = [np.asarray(sheet)[22:, i * 40 : (i + 1) * 40].astype(float) for i in range(5)]
    assert columns[0].std() > columns[1].std() > columns[3].std()
    assert preview_grid(hq, "mild", side=40).size == (80, 102)

"""The released three files to one and back, bit for bit; pickles that run code, and files of another kind."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from osdface_core.checkpoint import load_checkpoint
from osdface_core.cli.convert import convert_released, convert_to_released
from osdface_core.errors import CheckpointError
from osdface_core.released import (
    LORA_FILE,
    PROJECTION_FILE,
    RELEASED_FILES,
    VRE_FILE,
    is_released_folder,
    read_released,
    read_tensors,
)

KEPT = {
    "vqvae_LQ.encoder.conv_in.weight": torch.randn(8, 3, 3, 3),
    "vqvae_LQ.quant_conv.bias": torch.randn(5),
    "vqvae_LQ.quantize.embedding.weight": torch.randn(7, 5),
}
IGNORED = {
    "vqvae_HQ.encoder.conv_in.weight": torch.randn(8, 3, 3, 3),
    "vqvae_LQ.decoder.conv_in.weight": torch.randn(2),
    "vqvae_LQ.post_quant_conv.bias": torch.randn(2),
    "loss.discriminator.main.0.weight": torch.randn(2),
    "logit_scale": torch.tensor(1.0),
}
PROJECTION = {"conv1.weight": torch.randn(4, 5, 1), "conv1.bias": torch.randn(4)}
LORA = {
    "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.randn(2, 8),
    "unet.down_blocks.0.attentions.0.proj_in.lora_B.weight": torch.randn(8, 2),
    "unet.mid_block.resnets.0.conv1.lora.down.weight": torch.randn(2, 8, 3, 3),
    "unet.mid_block.resnets.0.conv1.lora.up.weight": torch.randn(8, 2, 1, 1).half(),
}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder in the released layout, with a few small tensors of every kind."""
    folder = tmp_path / "released"
    folder.mkdir()
    torch.save({"state_dict": KEPT | IGNORED, "epoch": 3}, folder / VRE_FILE)
    torch.save(PROJECTION, folder / PROJECTION_FILE)
    save_file(LORA, folder / LORA_FILE)
    return folder


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and a[k].equal(b[k]) for k in a)


def test_tensors_that_share_their_memory(released: Path, tmp_path: Path) -> None:
    memory = torch.randn(8)
    tied = {"conv1.weight": memory, "conv1.bias": memory, "conv2.bias": memory[2:5]}
    torch.save(tied, released / PROJECTION_FILE)
    convert_released(released, tmp_path / "one.safetensors")
    assert same(load_checkpoint(tmp_path / "one.safetensors").part("projection"), tied)


def test_bit_for_bit_there_and_back(released: Path, tmp_path: Path) -> None:
    convert_released(released, tmp_path / "one.safetensors")
    one = load_checkpoint(tmp_path / "one.safetensors")
    assert same({f"vqvae_LQ.{k}": v for k, v in one.part("vre").items()}, KEPT)
    assert same(one.part("projection"), PROJECTION)
    assert same({f"unet.{k}": v for k, v in one.part("lora").items()}, LORA)
    assert one.config.arch == "lora"
    assert one.config.vre.input_range == (-3.0, 1.0)
    assert one.config.lora is not None
    assert one.config.lora.rank == 2
    assert set(one.config.lora.targets) == {"proj_in", "conv1"}

    convert_to_released(tmp_path / "one.safetensors", tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(RELEASED_FILES)
    assert same(read_tensors(tmp_path / "back" / VRE_FILE), KEPT)
    assert same(read_tensors(tmp_path / "back" / PROJECTION_FILE), PROJECTION)
    assert same(load_file(tmp_path / "back" / LORA_FILE), LORA)
    assert read_released(tmp_path / "back").config == one.config


def test_recognised_by_any_of_its_files(released: Path, tmp_path: Path) -> None:
    assert is_released_folder(released)
    (released / LORA_FILE).unlink()
    assert is_released_folder(released)
    assert not is_released_folder(tmp_path)


@pytest.mark.parametrize("name", RELEASED_FILES)
def test_a_missing_file_is_named(released: Path, name: str) -> None:
    (released / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        read_released(released)


@pytest.mark.parametrize("keep", [0, 10, 0.6])
@pytest.mark.parametrize("name", RELEASED_FILES)
def test_a_truncated_file_is_named(released: Path, name: str, keep: float) -> None:
    data = (released / name).read_bytes()
    (released / name).write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=name) as error:
        read_released(released)
    assert "\n" not in str(error.value)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pickled_code_ran",)


@pytest.mark.parametrize("name", [VRE_FILE, PROJECTION_FILE])
def test_code_in_a_pickle_is_refused(released: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(released)
    for write in (
        lambda: torch.save({"state_dict": Payload()}, name),
        lambda: Path(name).write_bytes(pickle.dumps(Payload())),
    ):
        write()
        with pytest.raises(CheckpointError, match=name) as error:
            read_released(released)
        assert "\n" not in str(error.value)
    assert not (released / "pickled_code_ran").exists()


def test_an_unexpected_tensor_is_named(released: Path) -> None:
    torch.save({"state_dict": KEPT | {"vqvae_XQ.w": torch.ones(1)}}, released / VRE_FILE)
    with pytest.raises(CheckpointError, match=r"unexpected tensor vqvae_XQ\.w"):
        read_released(released)


def test_a_checkpoint_without_the_lq_branch(released: Path) -> None:
    torch.save({"state_dict": IGNORED}, released / VRE_FILE)
    with pytest.raises(CheckpointError, match="has no vqvae_LQ"):
        read_released(released)


def test_a_lora_that_lost_a_half(released: Path) -> None:
    save_file({k: v for k, v in LORA.items() if not k.endswith("lora_B.weight")}, released / LORA_FILE)
    with pytest.raises(CheckpointError, match="has only its down factor"):
        read_released(released)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.ones(2), {0: torch.ones(2)}, {"state_dict": {}}])
def test_a_pickle_without_named_tensors(released: Path, content: object) -> None:
    for name in (PROJECTION_FILE, VRE_FILE):
        torch.save(content, released / name)
        with pytest.raises(CheckpointError, match=f"{name} holds no tensors by name"):
            read_released(released)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1).expand(1000, 1000), "names more numbers than it holds"),
        (torch.ones(2, 2).to_sparse(), "holds no plain numbers under conv1.weight"),
        (torch.ones(2, 2, device="meta"), "holds no plain numbers under conv1.weight"),
    ],
)
def test_tensors_that_are_not_there(released: Path, value: torch.Tensor, message: str) -> None:
    torch.save(PROJECTION | {"conv1.weight": value}, released / PROJECTION_FILE)
    with pytest.raises(CheckpointError, match=message):
        read_released(released)


def test_a_pickle_that_unpacks_to_more_than_it_is(released: Path) -> None:
    """Gigabytes of zeros fit into a megabyte that is packed, which torch.save never does."""
    with zipfile.ZipFile(released / PROJECTION_FILE) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(released / PROJECTION_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content + bytes(10_000) * name.endswith("data.pkl"))
    with pytest.raises(CheckpointError, match="unpacks to more than its own size"):
        read_released(released)


def test_only_a_lora_model_has_the_released_layout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no LoRA"):
        convert_to_released(tiny_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_released(released, tmp_path / "one.safetensors")

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert_to_released(tmp_path / "one.safetensors", tmp_path / "back")
    assert not list((tmp_path / "back").iterdir())

"""From names and paths to models: what loads, what is refused, and with which line."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.memory import peak_bytes
from osdface_core import loading
from osdface_core.checkpoint import save_checkpoint
from osdface_core.config import CodecConfig, OSDFaceConfig
from osdface_core.errors import CheckpointError, OptionError
from osdface_core.loading import load_model, read_model, resolve
from osdface_core.models.tiny_codec import TinyCodec, load_taesd
from osdface_core.released import RELEASED_FILES
from tests.tiny_training import save_taesd

Tensors = dict[str, torch.Tensor]


def test_names_and_paths(tmp_path: Path) -> None:
    assert resolve("mini") == loading.MINI
    assert resolve(tmp_path / "x") == tmp_path / "x"
    assert resolve("~/x.safetensors") == Path.home() / "x.safetensors"


def test_everything_is_loaded(
    tiny_checkpoint: Path, tiny_tensors: Tensors, tiny_config: OSDFaceConfig
) -> None:
    loaded = load_model(tiny_checkpoint)
    assert loaded.config == tiny_config
    assert loaded.training == {"recipe": "random", "steps": 0}
    backbone: Any = loaded.backbone
    parts: dict[str, Any] = {
        "vre": loaded.prompt_encoder.vre,
        "projection": loaded.prompt_encoder.projection,
        "unet": backbone.predictor.unet,
        "codec": backbone.codec,
    }
    state = {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}
    assert set(state) == set(tiny_tensors)
    assert all(state[k].equal(v) for k, v in tiny_tensors.items())
    assert not any(p.requires_grad for module in parts.values() for p in module.parameters())


def test_the_absent_embedded_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MINI", tmp_path / "mini.safetensors")
    with pytest.raises(CheckpointError, match=r"embedded checkpoint is missing at .*; install osdface again"):
        load_model("mini")


def test_the_embedded_checkpoint() -> None:
    assert loading.MINI.stat().st_size <= 40_000_000
    loaded = load_model("mini")
    backbone: Any = loaded.backbone
    assert loaded.config.arch == "full"
    assert sum(p.numel() for p in backbone.predictor.unet.parameters()) <= 20_000_000


@pytest.mark.parametrize("name", ["associate_2.ckpt", "embedding_change_weights.pth"])
def test_one_of_the_released_files(tmp_path: Path, name: str) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is one of the released files; give its folder"):
        read_model(tmp_path / name)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer and not the file itself; run git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in", "is a web page; download the file itself"),
        (b'{"error": "Repository not found"}', "is a JSON text, perhaps a server's error message"),
        (b"", "is truncated: it is empty; download it again"),
        (b"\x89PNG\r\n\x1a\n", "is a picture"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "GFPGANv1.4.pth", "associate_2.ckpt"])
def test_a_file_that_is_no_model_at_all(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} {message}") as error:
        read_model(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"params_ema": {"stylegan_decoder.style_mlp.1.weight": torch.zeros(1)}}, "is a GFPGAN model"),
        ({"params_ema": {"position_emb": torch.zeros(1)}}, "is a CodeFormer model"),
        (
            {"params": {"conv_first.weight": torch.zeros(1)}},
            "is an upscaling model; it goes to `upscale",
        ),
        ({"state_dict": {"vqvae_LQ.encoder.conv_in.weight": torch.zeros(1)}}, "released OSDFace files; give"),
        ({"fc.weight": torch.zeros(1)}, "is a PyTorch file of another program; give an OSDFace"),
    ],
)
def test_a_model_of_another_program(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"x.pth .*{message}"):
        read_model(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.diffusion_model.out.2.weight", "is a Stable Diffusion checkpoint; `base` takes 2.1-base"),
        ("unet.down_blocks.0.attentions.0.lora_A.weight", "is a LoRA without the rest of OSDFace"),
        ("fc.weight", "is no OSDFace checkpoint"),
    ],
)
def test_a_safetensors_file_of_another_program(tmp_path: Path, tensor: str, message: str) -> None:
    save_file({tensor: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_model(tmp_path / "x.safetensors")


def test_a_base_in_the_place_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a Stable Diffusion folder; it goes to `base`"):
        read_model(tmp_path)


def test_pointers_in_a_released_folder(tmp_path: Path) -> None:
    for name in RELEASED_FILES:
        (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"associate_2\.ckpt is a Git LFS pointer"):
        read_model(tmp_path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks associate_2\.ckpt"):
        read_model(tmp_path)


def test_a_file_of_stage_1(tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "stage1.safetensors"
    save_checkpoint(path, {k: v for k, v in tiny_tensors.items() if k.startswith("vre.")}, tiny_config)
    with pytest.raises(CheckpointError, match="lacks projection, unet, codec: a file of stage 1"):
        load_model(path)
    assert (
        read_model(path)
        .part("vre")["quantize.embedding.weight"]
        .equal(tiny_tensors["vre.quantize.embedding.weight"])
    )


@pytest.mark.parametrize("part", ["vre", "projection", "unet", "codec"])
def test_missing_extra_and_misshapen_tensors(
    tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "bad.safetensors"
    name = next(k for k, v in tiny_tensors.items() if k.startswith(part + ".") and v.ndim > 1)
    short = name.removeprefix(part + ".")
    cases = {
        f"1 tensors missing, first {short}": {k: v for k, v in tiny_tensors.items() if k != name},
        "1 unexpected tensors, first wings": tiny_tensors | {f"{part}.wings": torch.ones(1)},
        f"{short} is": tiny_tensors | {name: tiny_tensors[name][:1].clone()},
    }
    for message, tensors in cases.items():
        save_checkpoint(path, tensors, tiny_config)
        with pytest.raises(CheckpointError) as error:
            load_model(path)
        assert message in str(error.value)
        assert f"bad.safetensors: {part}" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_config_that_builds_nothing(
    tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "a.safetensors", tiny_tensors, dataclasses.replace(tiny_config, unet=None))
    with pytest.raises(CheckpointError, match="needs unet and a tiny codec"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": 1000}, "`timestep` is 1000, expected 0..999"),
        ({"vre": {"norm_groups": 3}}, "must be divisible by num_groups"),
        (
            {"vre": {"resolution": 1024, "channel_multipliers": (1,)}},
            "attends to 1024x1024 cells, expected at most",
        ),
        ({"projection": {"out": 64}}, r"projection: conv2.weight is .*, expected \(64, "),
        ({"unet": {"block_out_channels": (8, 16, 16)}}, "unet: 3 widths, 2 attention flags"),
        ({"unet": {"attention_head_dim": 5}}, r"proj_in.weight is \(16, 16\), expected \(15, 16\)"),
        ({"vre": {"base_channels": 16384, "norm_groups": 1}}, "vre: .* expected"),
    ],
)
def test_numbers_that_give_no_model(
    tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Found without memory for the model that they describe: the last is one of 60 GB."""
    parts = {
        name: dataclasses.replace(getattr(tiny_config, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    save_checkpoint(tmp_path / "a.safetensors", tiny_tensors, dataclasses.replace(tiny_config, **parts))
    before = peak_bytes(torch.device("cpu"))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
    assert peak_bytes(torch.device("cpu")) - before < 256 << 20


@pytest.mark.parametrize("error", [ImportError("x"), AttributeError("no 'xpu'"), RuntimeError("a\nno 'xpu'")])
def test_a_diffusers_that_cannot_be_imported(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error

    monkeypatch.setitem(sys.modules, "diffusers", Broken("diffusers"))
    with pytest.raises(
        CheckpointError, match=r"diffusers cannot be imported beside PyTorch .*<0\.36"
    ) as caught:
        load_model(tiny_checkpoint)
    assert "\n" not in str(caught.value)


def lora_checkpoint(path: Path, tiny_config: OSDFaceConfig, tiny_tensors: Tensors) -> Path:
    config = dataclasses.replace(OSDFaceConfig(), vre=tiny_config.vre, projection=tiny_config.projection)
    tensors = {k: v for k, v in tiny_tensors.items() if k.startswith(("vre.", "projection."))}
    tensors |= {"lora.x.lora_A.weight": torch.ones(1, 2), "lora.x.lora_B.weight": torch.ones(2, 1)}
    save_checkpoint(path, tensors, config)
    return path


def test_a_lora_needs_its_base(tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = lora_checkpoint(tmp_path / "lora.safetensors", tiny_config, tiny_tensors)
    with pytest.raises(
        CheckpointError, match="is a LoRA for stable-diffusion-2-1-base: give that model with `base`"
    ):
        load_model(path)
    with pytest.raises(CheckpointError, match="no base model at"):
        load_model(path, base=tmp_path / "nowhere")
    with pytest.raises(OptionError, match="`lora` is 'melted', expected one of merged, live"):
        load_model(path, base=tmp_path, lora="melted")


def taesd_files(folder: Path) -> TinyCodec:
    """Random weights under the names of TAESD's two files, and the codec they make."""
    codec = TinyCodec(CodecConfig(kind="tiny"))
    save_taesd(codec, folder)
    return codec


def test_taesd_takes_the_place_of_the_bases_codec(
    tiny_config: OSDFaceConfig, tiny_tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lora_checkpoint(tmp_path / "lora.safetensors", tiny_config, tiny_tensors)
    base = load_model(path_of_tiny(tmp_path, tiny_config, tiny_tensors)).backbone
    monkeypatch.setattr(loading, "load_base", lambda path: base)
    monkeypatch.setattr(loading, "merge_lora", lambda *arguments: None)
    monkeypatch.setattr(loading, "map_base", lambda path: {})
    assert load_model(path, base="b").backbone.codec is base.codec
    expected = taesd_files(tmp_path)
    loaded = load_model(path, base="b", codec="taesd", codec_dir=tmp_path)
    signed = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = expected.encode(signed)
    assert loaded.backbone.predictor is base.predictor
    assert loaded.backbone.codec.encode(signed).equal(latent)
    assert loaded.backbone.codec.decode(latent, signed).equal(expected.decode(latent))
    assert loaded.config.codec.kind == "tiny"
    (tmp_path / "taesd_decoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"TAESD weights not found at .*get taesd_decoder\.safetensors"):
        load_model(path, base="b", codec="taesd", codec_dir=tmp_path)
    with pytest.raises(OptionError, match="`codec` is 'vae', expected one of own, taesd"):
        load_model(path, base="b", codec="vae")


def test_a_self_contained_model_keeps_its_codec(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="a small codec of its own; leave `codec` taesd out"):
        load_model(tiny_checkpoint, codec="taesd")


def path_of_tiny(folder: Path, config: OSDFaceConfig, tensors: Tensors) -> Path:
    save_checkpoint(folder / "tiny.safetensors", tensors, config)
    return folder / "tiny.safetensors"


@pytest.mark.shared
def test_taesd_keeps_a_face(shared: Path, portraits: np.ndarray) -> None:
    load_taesd(codec := TinyCodec(CodecConfig(kind="tiny")), shared / "weights")
    face = torch.from_numpy(portraits[:296, :296].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        back = codec.decode(codec.encode(face)).clamp(-1, 1)
    assert -10 * ((back - face) / 2).square().mean().log10() > 25

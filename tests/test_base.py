"""Stable Diffusion 2.1-base from a diffusers folder and from one file, and every model that is not it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from osdface_core.errors import CheckpointError
from osdface_core.models import sd21
from osdface_core.models.backbone import Backbone
from osdface_core.models.lora import Factors, MergedLoRA, by_module, merge_lora
from osdface_core.models.sd21 import V_PREDICTION_PROBE, find_variant, load_base, map_base

UNET: dict[str, Any] = sd21.UNET | {
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (1, 2),
}
VAE: dict[str, Any] = sd21.VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def build(prompt_width: int = 1024, channels: int = 4) -> tuple[Any, Any]:
    """SD 2.1's structure with two levels and few channels."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET | {"in_channels": channels, "cross_attention_dim": prompt_width})
    vae = AutoencoderKL(**VAE)
    return unet.eval(), vae.eval()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd21, "UNET", UNET)
    monkeypatch.setattr(sd21, "VAE", VAE)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return build()


@pytest.fixture(scope="module")
def folder(models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sd")
    models[0].save_pretrained(root / "unet")
    models[1].save_pretrained(root / "vae")
    return root


def unet_name(name: str) -> str:
    """diffusers' name of a UNet tensor -> the original one, for two levels of one layer."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0": "output_blocks.1.1",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
    }
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    stem = max((s for s in fixed if name == s or name.startswith(s + ".")), key=len)
    rest = name[len(stem) :]
    if ".resnets." in stem:
        rest = re.sub(r"^\.(\w+)", lambda m: "." + inner[m[1]], rest)
    return f"model.diffusion_model.{fixed[stem]}{rest}"


def vae_name(name: str) -> str:
    """diffusers' name of a VAE tensor -> the original one."""
    rules = [
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_(\w)", r"mid.attn_1.\1"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return f"first_stage_model.{name}"


def original_layout(unet: Any, vae: Any) -> dict[str, torch.Tensor]:
    tensors = {unet_name(k): v.contiguous() for k, v in unet.state_dict().items()}
    for key, value in vae.state_dict().items():
        name = vae_name(key)
        # The original autoencoder's attention is made of 1x1 convolutions.
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[name] = (value[..., None, None] if square else value).contiguous()
    return tensors


@pytest.fixture(scope="module")
def single_file(models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "v2-1_512-ema-pruned.safetensors"
    text_encoder = {"cond_stage_model.model.ln_final.weight": torch.ones(3)}
    save_file(original_layout(*models) | text_encoder, path)
    return path


def answers(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=draw) * 2 - 1
    prompt = torch.randn(1, 77, 1024, generator=draw)
    with torch.inference_mode():
        latent = backbone.codec.encode(image)
        eps = backbone.predictor(latent, 399, prompt)
        return latent, eps, backbone.codec.decode(latent)


def test_folder_and_single_file_are_one_model(
    models: tuple[Any, Any], folder: Path, single_file: Path
) -> None:
    unet, vae = models
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=draw) * 2 - 1
    prompt = torch.randn(1, 77, 1024, generator=draw)
    with torch.inference_mode():
        latent = vae.encode(image).latent_dist.mode() * 0.18215
        expected = latent, unet(latent, 399, prompt).sample, vae.decode(latent / 0.18215).sample
    for source in (folder, single_file):
        for ours, theirs in zip(answers(load_base(source)), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5), source


def test_half_precision_files(models: tuple[Any, Any], tmp_path: Path) -> None:
    halves = {k: v.half() for k, v in original_layout(*models).items()}
    save_file(halves, tmp_path / "half.safetensors")
    latent, _, _ = answers(load_base(tmp_path / "half.safetensors"))
    assert latent.dtype == torch.float32


@pytest.mark.parametrize("kind", ["folder", "half", "single"])
def test_a_merged_lora_is_turned_without_a_file_bit_for_bit(
    models: tuple[Any, Any], folder: Path, single_file: Path, tmp_path: Path, kind: str
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    if kind == "half":
        halves = {k: v.half() for k, v in original_layout(*models).items()}
        own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
        save_file(halves, own)
    elif kind == "single":
        shutil.copy(single_file, own := tmp_path / "own.safetensors")
        other = tmp_path / "other.safetensors"
    else:
        shutil.copytree(folder, own)
    (shutil.copy if own.is_file() else shutil.copytree)(own, other)
    layers = {
        "mid_block.resnets.0.conv1": (128, 3, 3),
        "mid_block.attentions.0.proj_in": (128,),
        "vae.encoder.mid_block.attentions.0.to_q": (32,),
    }
    draw = torch.Generator().manual_seed(1)
    adapters = {
        name: Factors(
            torch.randn(2, *shape, generator=draw),
            torch.randn(shape[0], 2, *[1] * (len(shape) - 1), generator=draw),
        )
        for name, shape in layers.items()
    }
    backbone = load_base(own)
    for module, part in by_module(backbone, adapters):
        merge_lora(module, part, 4.0, 1.0)
    lora = MergedLoRA(adapters, 4.0, map_base(own))
    shutil.rmtree(own) if own.is_dir() else own.unlink()
    for strength in (0.3, -2.0, 0.0, 1.0):
        lora.merge(backbone, strength)
        fresh = load_base(other)
        for module, part in by_module(fresh, adapters):
            merge_lora(module, part, 4.0, strength)
        for turned, expected in ((backbone.codec, fresh.codec), (backbone.predictor, fresh.predictor)):
            pairs = zip(turned.state_dict().values(), expected.state_dict().values(), strict=True)  # type: ignore[attr-defined]
            assert all(value.equal(other) for value, other in pairs), strength


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_base(path)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "no base model at")
    refused(tmp_path, r"has no unet/config\.json; use a Stable Diffusion 2\.1-base")
    (tmp_path / "sd.ckpt").write_bytes(b"")
    refused(tmp_path / "sd.ckpt", r"must be \.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    refused(tmp_path / "empty.safetensors", "is truncated: it is empty; download it again")


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_folder_that_holds_a_variant_only(models: tuple[Any, Any], tmp_path: Path, variant: str) -> None:
    for module, part in zip(models, ("unet", "vae"), strict=True):
        copy = type(module).from_config(module.config)
        copy.load_state_dict(module.state_dict())
        copy.half().save_pretrained(tmp_path / part, variant=variant)
    loaded: Any = load_base(tmp_path)
    for module, own in zip((loaded.predictor.unet, loaded.codec.vae), models, strict=True):
        expected = {name: value.half().float() for name, value in own.state_dict().items()}
        assert all(value.dtype == torch.float32 for value in module.state_dict().values())
        assert all(value.equal(expected[name]) for name, value in module.state_dict().items())


def test_old_names_of_the_vaes_attention(models: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2.1-base as it was published; diffusers has renamed the layers since."""
    (tmp_path / "unet").symlink_to(folder / "unet")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_bytes((folder / "vae" / "config.json").read_bytes())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        tensors[name] = value
    save_file(tensors, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert not any("to_q" in name for name in tensors)
    loaded: Any = load_base(tmp_path)
    assert all(v.equal(models[1].state_dict()[k]) for k, v in loaded.codec.vae.state_dict().items())


def changed(folder: Path, target: Path, part: str, **values: Any) -> Path:
    """A copy of a diffusers folder with other numbers in the config of a part."""
    shutil.copytree(folder, target)
    config = target / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return target


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"layers_per_block": 10**9}, "layers_per_block = 1000000000; use a Stable Diffusion 2.1"),
        ("unet", {"block_out_channels": [64] * 17}, r"block_out_channels = \[64, "),
        ("unet", {"block_out_channels": [65536, 131072]}, r"asks for \d.* numbers, the weights are"),
        ("unet", {"class_embed_type": "identity"}, "gives no model"),
        ("unet", {"out_channels": 3}, "gives no model"),
        ("unet", {"attention_head_dim": None}, "cannot read the base model in"),
        ("unet", {"cross_attention_dim": [1024, 1024]}, "looks like another model"),
        ("vae", {"latent_channels": 8}, "asks for|gives no model"),
        ("vae", {"scaling_factor": "x"}, "scaling_factor is 'x'"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0"),
        ("vae", {"block_out_channels": 32}, "cannot read the base model in"),
    ],
)
def test_numbers_that_give_no_base(
    folder: Path, tmp_path: Path, part: str, values: dict[str, Any], message: str
) -> None:
    refused(changed(folder, tmp_path / "sd", part, **values), message)


def test_a_folder_whose_weights_lack_a_tensor(folder: Path, tmp_path: Path) -> None:
    """diffusers fills it with random numbers."""
    path = shutil.copytree(folder, tmp_path / "sd") / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    removed = tensors.pop("conv_in.weight")
    save_file(tensors | {"filler": torch.zeros(removed.numel())}, path)
    refused(tmp_path / "sd", "1 tensors missing, first conv_in.weight")
    save_file(tensors | {"conv_in.weight": torch.full_like(removed, float("nan"))}, path)
    refused(tmp_path / "sd", "conv_in.weight holds NaN")


def test_weights_outside_of_the_folder(folder: Path, tmp_path: Path) -> None:
    vae = shutil.copytree(folder, tmp_path / "sd") / "vae"
    index = {"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "sd", "names files outside of its folder")


@pytest.mark.parametrize("content", ["[1]", "[" * 100_000, "3", '{"prediction_type": '])
def test_configs_that_are_no_tables(folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(folder, tmp_path / "sd")
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        path = tmp_path / "sd" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        refused(tmp_path / "sd", f"cannot read .*{path.name}")
        path.unlink()


def test_which_variant_is_taken(tmp_path: Path) -> None:
    def among(*files: str) -> str | None:
        for old in tmp_path.iterdir():
            old.unlink()
        for name in files:
            (tmp_path / f"diffusion_pytorch_model{name}").touch()
        return find_variant(tmp_path)

    assert among(".safetensors", ".fp16.safetensors") is None
    assert among(".non_ema.safetensors", ".fp16.safetensors", ".bin") == "fp16"
    assert among(".non_ema.safetensors") == "non_ema"
    assert among(".fp16-00001-of-00002.safetensors", ".fp16-00002-of-00002.safetensors") == "fp16"
    assert among("-00001-of-00002.fp16.safetensors", "-00002-of-00002.fp16.safetensors") == "fp16"
    assert among("-00001-of-00002.safetensors", "-00002-of-00002.safetensors") is None
    assert among(".fp16.bin") == "fp16"
    with pytest.raises(CheckpointError, match=r"has no diffusion_pytorch_model\*\.safetensors"):
        among()


def test_pointers_in_a_folder_are_named(folder: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes((folder / part / "config.json").read_bytes())
        (tmp_path / part / "diffusion_pytorch_model.fp16.safetensors").write_bytes(POINTER)
    refused(tmp_path, r"diffusion_pytorch_model\.fp16\.safetensors is a Git LFS pointer .*run git lfs pull")


def test_a_truncated_single_file(single_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(single_file.read_bytes()[:-1000])
    refused(tmp_path / "cut.safetensors", "truncated")


def test_a_v_prediction_folder(folder: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "scheduler").mkdir()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"prediction_type": "epsilon"}))
    load_base(tmp_path)
    config.write_text(json.dumps({"prediction_type": "v_prediction"}))
    refused(tmp_path, r"predicts v_prediction, expected epsilon")
    config.write_text("{")
    refused(tmp_path, "cannot read .*scheduler_config")


def test_a_v_prediction_file(single_file: Path, tmp_path: Path) -> None:
    tensors, path = load_file(single_file), tmp_path / "v2-1_768.safetensors"
    save_file(tensors, path, {"modelspec.prediction_type": "v"})
    refused(path, "is a v-prediction model")
    save_file(tensors | {f"model.diffusion_model.{V_PREDICTION_PROBE}": torch.randn(320)}, path)
    refused(path, "is a v-prediction model")


@pytest.mark.parametrize(
    ("width", "family"), [(768, r"Stable Diffusion 1\.x"), (2048, "SDXL"), (96, "another model")]
)
def test_other_families(width: int, family: str, tmp_path: Path) -> None:
    unet, vae = build(prompt_width=width)
    unet.save_pretrained(tmp_path / "unet")
    vae.save_pretrained(tmp_path / "vae")
    refused(tmp_path, f"looks like {family}")
    save_file(original_layout(unet, vae), tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", f"looks like {family}")


def test_sdxl_by_its_text_encoders(single_file: Path, tmp_path: Path) -> None:
    save_file(
        load_file(single_file) | {"conditioner.embedders.0.x": torch.ones(1)}, tmp_path / "xl.safetensors"
    )
    refused(tmp_path / "xl.safetensors", "looks like SDXL")


def test_an_inpainting_model(tmp_path: Path) -> None:
    unet, vae = build(channels=9)
    save_file(original_layout(unet, vae), tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "takes 9 latent channels")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("model.diffusion_model.", "holds no Stable Diffusion UNet"),
        ("first_stage_model.", "holds no VAE"),
        ("model.diffusion_model.middle_block.0.in_layers.2.weight", "incomplete"),
        ("first_stage_model.decoder.mid.block_1.conv1.weight", "incomplete"),
        ("first_stage_model.encoder.down.0.downsample.conv.bias", "1 tensors missing"),
    ],
)
def test_incomplete_files(single_file: Path, tmp_path: Path, prefix: str, message: str) -> None:
    save_file(
        {k: v for k, v in load_file(single_file).items() if not k.startswith(prefix)},
        tmp_path / "x.safetensors",
    )
    refused(tmp_path / "x.safetensors", message)

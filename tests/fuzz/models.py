"""Model files of every kind that is loaded, tiny and random, and damaged ones made of them by number."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load, load_file, save, save_file

from osdface_core import OSDFacePipeline, released
from osdface_core.checkpoint import save_checkpoint
from osdface_core.cli.convert import convert_released
from osdface_core.cli.info import as_text, describe
from osdface_core.config import LoRAConfig, OSDFaceConfig, ProjectionConfig
from osdface_core.errors import LONGEST, OSDFaceError
from osdface_core.loading import load_model
from osdface_core.models import sd21
from osdface_core.models.identity import embed, load_identity
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_core.models.vre import VRE, Projection
from osdface_core.released import LORA_FILE, PROJECTION_FILE, VRE_FILE
from tests import test_base as single
from tests.fuzz.pickle_files import written
from tests.fuzz.weight_files import JUNK, change
from tests.tiny_model import write_tiny
from tests.tiny_training import TINY_VRE, UNET, VAE

Files = dict[str, bytes]
PLAIN = ProjectionConfig(hidden=16)
FOLDERS = ("released", "base")
WEIGHTS = "diffusion_pytorch_model"
LINEAR, CONVOLUTION = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.resnets.0.conv1",
)
Measure = Callable[[str, Callable[[], object], Callable[[object], int]], object]


def seeds(folder: Path) -> dict[str, Files]:
    """Make the whole models: their files by path, by kind."""
    torch.manual_seed(0)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**UNET)
    vae: Any = AutoencoderKL(**VAE)
    unet.save_pretrained(folder / "base/unet")
    vae.save_pretrained(folder / "base/vae")
    (folder / "base/scheduler").mkdir()
    (folder / "base/scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    write_tiny(folder / "model.safetensors")
    config = OSDFaceConfig(
        vre=TINY_VRE,
        projection=ProjectionConfig(hidden=16, positions=256),
        lora=LoRAConfig(rank=2, alpha=2.0),
    )
    encoder = {"vre": VRE(config.vre), "projection": Projection(config.vre.z_channels, config.projection)}
    tensors = {f"{part}.{k}": v for part, module in encoder.items() for k, v in module.state_dict().items()}
    factors = adapters(unet)
    save_checkpoint(
        folder / "lora.safetensors", tensors | {f"lora.{k}": v for k, v in factors.items()}, config
    )
    vre, plain = VRE(TINY_VRE), Projection(TINY_VRE.z_channels, PLAIN)
    (folder / "released").mkdir()
    state = {f"vqvae_LQ.{k}": v.half() for k, v in vre.state_dict().items()}
    state["logit_scale"] = torch.ones(())
    torch.save({"state_dict": state, "epoch": 3}, folder / "released" / VRE_FILE)
    torch.save(plain.state_dict(), folder / "released" / PROJECTION_FILE)
    save_file({f"unet.{k}": v for k, v in factors.items()}, folder / "released" / LORA_FILE)
    halves = {k: v.half() for k, v in single.original_layout(*single.build()).items()}
    base = files_of(folder, "base")
    return {
        "own": {"model.safetensors": (folder / "model.safetensors").read_bytes()},
        "lora": {"model.safetensors": (folder / "lora.safetensors").read_bytes(), **base},
        "released": {**files_of(folder, "released"), **base},
        "base": base,
        "single": {"model.safetensors": save(halves)},
        "identity": {"model.pt": written(MobileFaceNet().state_dict())},
    }


def adapters(unet: Any) -> dict[str, torch.Tensor]:
    """Factors of rank 2 for a linear layer, in peft's style, and for a convolution, in diffusers'."""
    outputs, inputs = unet.get_submodule(LINEAR).weight.shape
    out_channels, channels, *kernel = unet.get_submodule(CONVOLUTION).weight.shape
    return {
        f"{LINEAR}.lora_A.weight": torch.randn(2, inputs), f"{LINEAR}.lora_B.weight": torch.randn(outputs, 2),
        f"{CONVOLUTION}.lora.down.weight": torch.randn(2, channels, *kernel),
        f"{CONVOLUTION}.lora.up.weight": torch.randn(out_channels, 2, 1, 1),
    }  # fmt: skip


def files_of(folder: Path, name: str) -> Files:
    paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def mutant(number: int, whole: dict[str, Files]) -> tuple[str, Files]:
    """Make damaged model `number`: that and its kind, and its files; the same ones for the same number."""
    draw = random.Random(number)
    torch.manual_seed(number)
    kind = list(whole)[number % len(whole)]
    files = dict(whole[kind])
    for _ in range(draw.choice((1, 1, 1, 2))):
        names = [name for name in files if kind == "base" or not name.startswith("base/")]
        if not names:
            break
        name = draw.choice(names)
        if kind in FOLDERS and draw.random() < 0.25:
            moved(files, name, draw)
        elif files[name] not in JUNK:
            try:
                files[name] = change(name, files[name], draw)
            except Exception:  # a second change of what the first one made unreadable
                files[name] = files[name][: len(files[name]) // 2]
    return f"{number}-{kind}", files


def moved(files: Files, name: str, draw: random.Random) -> None:
    """Take a file away, give it another's content, or the layout of another publisher."""
    data = files.pop(name)
    stem, way = name.removesuffix(".safetensors"), draw.random()
    if way < 0.15:
        return
    if way < 0.25 or not name.endswith(f"{WEIGHTS}.safetensors"):
        files[name] = draw.choice(list(files.values()))
    elif way < 0.45:
        variants = (".fp16", ".non_ema", ".bf16", "-old", "-00001-of-00002", ".fp16-00001-of-00001")
        files[f"{stem}{draw.choice(variants)}.safetensors"] = data
    elif way < 0.6:
        files[f"{stem}.bin"] = written(load(data), draw)
    else:
        names = sorted(tensors := load(data))
        half = len(names) // 2
        shards = {
            f"{WEIGHTS}-0000{n}-of-00002.safetensors": part
            for n, part in ((1, names[:half]), (2, names[half:]))
        }
        folder = name.rpartition("/")[0]
        files |= {f"{folder}/{shard}": save({k: tensors[k] for k in part}) for shard, part in shards.items()}
        where = {
            k: draw.choice(("", "../../seeds/") if way > 0.9 else ("",)) + s
            for s, part in shards.items()
            for k in part
        }
        index = f'{{"metadata": {{}}, "weight_map": {where!s}}}'.replace("'", '"')
        if way > 0.65:
            files[f"{stem}.safetensors.index.json"] = index.encode()


def put(folder: Path, label: str, files: Files) -> Path:
    """Write the files of one model."""
    for name, data in files.items():
        path = folder / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / label).mkdir(exist_ok=True)
    return folder / label


def clear(folder: Path) -> None:
    """Remove what a try left."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check(path: Path, measure: Measure) -> str:
    """Describe, load and run a model.

    Args:
        measure: (step, action, result -> bytes it may take half of) -> the action's result.
    Returns:
        "loaded: " and its kind, or "refused: " and why.
    Raises:
        AssertionError: what was loaded is not what the file holds, or a message is not one line.
    """
    kind = path.name.rpartition("-")[2]
    size = 2 * sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        measure(kind, lambda: KINDS[kind](path), lambda result: size)
    except OSDFaceError as error:
        return _refusal(error)
    return f"loaded: {kind}"


def _own(path: Path) -> None:
    file = path / "model.safetensors"
    assert len(as_text(describe(file)).splitlines()) < 30
    loaded: Any = load_model(file)
    parts = {
        "vre": loaded.prompt_encoder.vre, "projection": loaded.prompt_encoder.projection,
        "unet": loaded.backbone.predictor.unet, "codec": loaded.backbone.codec,
    }  # fmt: skip
    state = {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}
    expected = load_file(file)
    assert state.keys() == expected.keys() and all(v.equal(expected[k].float()) for k, v in state.items())
    _restore(file, None)


def _lora(path: Path) -> None:
    describe(path / "model.safetensors")
    _restore(path / "model.safetensors", path / "base")


def _released(path: Path) -> None:
    small = partial(OSDFaceConfig, vre=TINY_VRE, projection=PLAIN)  # what released folders are read with
    with mock.patch.object(released, "OSDFaceConfig", small):
        describe(path / "released")
        convert_released(path / "released", path / "converted.safetensors")
        _restore(path / "released", path / "base")


def _restore(file: Path, base: Path | None) -> None:
    pipeline = OSDFacePipeline.from_pretrained(file, base=base, device="cpu", dtype="fp32", engine="eager")
    faces = torch.rand(1, 3, 64, 64)
    restored = pipeline.restore(faces)
    assert restored.shape == faces.shape and not restored.isnan().any()


def _load_base(path: Path) -> None:
    small = {"UNET": single.UNET, "VAE": single.VAE}  # what single files are read with
    with mock.patch.multiple(sd21, **small):
        backbone = sd21.load_base(path / "base" if (path / "base").is_dir() else path / "model.safetensors")
    with torch.inference_mode():
        latent = backbone.codec.encode(torch.zeros(1, 3, 64, 64))
        assert backbone.predictor(latent, 399, torch.zeros(1, 77, 1024)).shape == latent.shape


def _identity(path: Path) -> None:
    with torch.inference_mode():
        assert embed(load_identity(path / "model.pt"), torch.rand(1, 3, 64, 64)).shape == (1, 128)


KINDS = {
    "own": _own, "lora": _lora, "released": _released, "base": _load_base, "single": _load_base,
    "identity": _identity,
}  # fmt: skip


def _refusal(error: OSDFaceError) -> str:
    """A refusal without names and numbers, to count by."""
    text = str(error)
    assert text.isprintable() and 20 < len(text) <= LONGEST, repr(text)
    kinds = (
        "Git LFS", "web page", "is empty", "JSON text", "a picture", "GGUF", "an archive", "truncated",
        "not opened", "no tensors by name", "no plain numbers", "more numbers", "tensors missing",
        "unexpected tensor", "gives no model", "a file of stage 1", "NaN", "floating point", "update osdface",
        "damaged", "factor", "lacks", "no base model", "looks like", "base model has no layer",
        "no known face", "cannot read", "asks for", "is incomplete", "of another", "expected",
        "use a Stable Diffusion 2.1-base", "no OSDFace checkpoint",
    )  # fmt: skip
    return "refused: " + next((kind for kind in kinds if kind in text), re.sub(r"\d+", "#", text)[-90:])

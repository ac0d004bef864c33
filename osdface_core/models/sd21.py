"""Load a Stable Diffusion 2.1-base: UNet and VAE only, from a diffusers folder or one .safetensors file.

No text encoder and no network: the prompt comes from the VRE, and the configuration stands here.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import load_strict
from ..errors import CheckpointError
from ..file_kinds import kind_of_file
from ..pickles import refuse_packed
from ..weights import unusable
from .backbone import Backbone, KLCodec, UNetPredictor, try_shapes

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
PROMPT_WIDTH = 1024  # SD 2.x; SD 1.x has 768, SDXL 2048
WEIGHTS = "diffusion_pytorch_model"
# .safetensors, .fp16.safetensors, .fp16-00001-of-00002.safetensors, -00001-of-00002.fp16.safetensors
VARIANT = re.compile(r"(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
WHERE = (
    "use a Stable Diffusion 2.1-base (512 px, epsilon prediction): "
    "a diffusers folder or v2-1_512-ema-pruned.safetensors"
)
# The 768-px model predicts v with the same shapes; the spread of this layer's bias tells the two apart
# (the rule ComfyUI uses in supported_models.SD20).
V_PREDICTION_PROBE = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_PREDICTION_SPREAD = 0.09
# The published unet/config.json and vae/config.json: 865.9 M and 83.7 M parameters.
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


def load_base(path: str | Path) -> Backbone:
    """Load the base model's codec and predictor, float32 on the CPU.

    Args:
        path: a diffusers folder (`unet/`, `vae/`, optional `scheduler/`) or a single-file .safetensors.
    Raises:
        CheckpointError: missing or truncated files, a v-prediction model, SD 1.x, SDXL, or a pickle.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise CheckpointError(f"no base model at {path}; {WHERE}")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name}: a single-file base must be .safetensors; {WHERE}")
    return _load_single_file(path)


def map_base(path: str | Path) -> dict[str, Tensor]:
    """Map the tensors of a base that `load_base` takes: the file's own, read when they are used.

    Returns:
        tensors by diffusers' names, of the file's type, the VAE's after `vae.`; none from .bin files.
    """
    path = Path(path).expanduser()
    if path.is_file():
        from diffusers.loaders.single_file_utils import (
            convert_ldm_unet_checkpoint,
            convert_ldm_vae_checkpoint,
        )

        tensors = _read_tensors(path)
        vae = convert_ldm_vae_checkpoint(tensors, VAE)
        return {**convert_ldm_unet_checkpoint(tensors, UNET), **{f"vae.{k}": v for k, v in vae.items()}}
    parts = ((find_weight_files(path / part), stem) for part, stem in (("unet", ""), ("vae", "vae.")))
    files = ((file, stem) for found, stem in parts for file in found if file.suffix == ".safetensors")
    return {f"{stem}{name}": tensor for file, stem in files for name, tensor in load_file(file).items()}


def random_base() -> Backbone:
    """Build a Stable Diffusion 2.1-base with random weights, for counts and timings."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return _backbone(UNet2DConditionModel(**UNET), AutoencoderKL(**VAE))


def _load_folder(folder: Path) -> Backbone:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for part in ("unet", "vae"):
        if not (folder / part / "config.json").is_file():
            raise CheckpointError(f"{folder} has no {part}/config.json; {WHERE}")
    _refuse_v_prediction(folder)
    config = _read_json(folder / "unet" / "config.json")
    _check_widths(config.get("cross_attention_dim"), config.get("in_channels"), str(folder))
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    unet, vae = (_build_part(cls, folder / part) for part, cls in kinds.items())
    try:
        with torch.no_grad():
            try_shapes(Backbone(KLCodec(vae, 1.0), UNetPredictor(unet)), PROMPT_WIDTH)
    except Exception as error:  # as many kinds as there are layers
        raise CheckpointError(f"{folder} gives no model ({_first_line(error)}); {WHERE}") from error
    return _backbone(*(_load_part(cls, folder / part) for part, cls in kinds.items()))


def _build_part(cls: Any, folder: Path) -> Any:
    """Build a part of a diffusers folder on the meta device: shapes, no memory.

    Raises:
        CheckpointError: its config gives no model, or one that asks for more memory than its files are worth.
    """
    config = _read_json(folder / "config.json")
    _check_numbers(config, f"{folder}/config.json")
    for index in folder.glob("*.index.json"):  # of weights in several files
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise CheckpointError(f"{index} names files outside of its folder; download it again")
    files = find_weight_files(folder)
    try:
        with torch.device("meta"):
            part = cls.from_config(config)
        held = sum(map(_count_numbers, files))
    except Exception as error:  # diffusers checks little of a config: every layer fails in its own way
        raise _unreadable(folder, error) from error
    if (needed := sum(p.numel() for p in part.parameters())) > held:
        raise CheckpointError(
            f"{folder}: config.json asks for {needed:,} numbers, the weights are {held:,}; download it again"
        )
    return part


def _check_numbers(config: dict[str, Any], where: str) -> None:
    """Refuse what takes years to build: more than 16 layers or levels, more than 131,072 of anything."""
    for key, value in config.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        most = 16 if "layers" in key else 1 << 17
        if len(numbers) > 16 or any(isinstance(n, (int, float)) and not -most <= n <= most for n in numbers):
            raise CheckpointError(f"{where} has {key} = {value!r}; {WHERE}")


def _count_numbers(file: Path) -> int:
    """How many numbers a weight file holds; of a pickle, at most."""
    if file.suffix != ".safetensors":
        return file.stat().st_size
    with safe_open(file, framework="pt") as content:
        return sum(math.prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118


def _load_part(cls: Any, folder: Path) -> Any:
    """Load a part of a diffusers folder in float32, from whichever of its weight files is there."""
    variant = find_variant(folder)
    try:
        for file in _weight_files(folder):
            if file.suffix == ".bin":
                refuse_packed(file)
        how = {"variant": variant, "local_files_only": True, "low_cpu_mem_usage": False}
        part, told = cls.from_pretrained(folder, output_loading_info=True, **how)
    except Exception as error:  # diffusers and safetensors raise their own kinds for damaged files
        raise _unreadable(folder, error) from error
    if missing := told["missing_keys"]:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors missing, first {missing[0]}; download it again"
        )
    if problems := unusable(dict(part.named_parameters())):
        raise CheckpointError(f"{folder}: {problems[0]}; download it again")
    return part


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    kinds = (f"{file.name} is {kind}" for file in _weight_files(folder) if (kind := kind_of_file(file)))
    return CheckpointError(f"cannot read the base model in {folder}: {next(kinds, _first_line(error))}")


def find_weight_files(folder: Path) -> list[Path]:
    """List the weight files of a part that `load_base` reads: of one variant, all shards.

    Raises:
        CheckpointError: no weights are there.
    """
    variant = find_variant(folder)
    return [file for file in _weight_files(folder) if _variant_of(file) == variant]


def find_variant(folder: Path) -> str | None:
    """Name the variant of the weights in a part of a diffusers folder.

    Returns:
        None for the plain file; else `fp16` before others, and `non_ema` last: adapters are trained on the
        averaged weights.
    Raises:
        CheckpointError: no weights are there.
    """
    names = {_variant_of(file) for file in _weight_files(folder)}
    if not names:
        raise CheckpointError(f"{folder} has no {WEIGHTS}*.safetensors; {WHERE}")
    return None if None in names else min(names, key=lambda name: (name == "non_ema", name != "fp16", name))


def _weight_files(folder: Path) -> list[Path]:
    """List the .safetensors of a part, or its .bin files where it has no others."""
    found = (sorted(folder.glob(f"{WEIGHTS}*.{suffix}")) for suffix in ("safetensors", "bin"))
    return next((files for files in found if files), [])


def _variant_of(file: Path) -> str | None:
    match = VARIANT.fullmatch(file.name.removeprefix(WEIGHTS))
    return match["variant"] if match else None


def _refuse_v_prediction(folder: Path) -> None:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        kind = _read_json(scheduler).get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise CheckpointError(f"{folder} predicts {kind}, expected epsilon (the 768-px model?); {WHERE}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: it holds no table; download it again")
    return content


def _backbone(unet: Any, vae: Any) -> Backbone:
    scaling = vae.config.scaling_factor
    if not isinstance(scaling, (int, float)) or not 1e-3 <= scaling <= 100:
        raise CheckpointError(f"the VAE's scaling_factor is {scaling!r}, expected 0.18215; {WHERE}")
    vae, unet = (part.eval().requires_grad_(False) for part in (vae, unet))
    return Backbone(KLCodec(vae, float(scaling)), UNetPredictor(unet))


def _check_widths(prompt_width: Any, in_channels: Any, where: str) -> None:
    if prompt_width != PROMPT_WIDTH:
        family = {"768": "Stable Diffusion 1.x", "2048": "SDXL"}.get(str(prompt_width), "another model")
        raise CheckpointError(
            f"{where} looks like {family} (prompt width {prompt_width}, expected 1024); {WHERE}"
        )
    if in_channels != 4:
        raise CheckpointError(
            f"{where} takes {in_channels} latent channels, expected 4 (inpainting?); {WHERE}"
        )


def _load_single_file(path: Path) -> Backbone:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    tensors = _read_tensors(path)
    first = tensors.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    context = [v for k, v in tensors.items() if k.endswith("attn2.to_k.weight") and k.startswith(UNET_PREFIX)]
    if first is None or not context or first.ndim < 2 or context[0].ndim < 2:
        raise CheckpointError(
            f"{path.name} holds no Stable Diffusion UNet (no {UNET_PREFIX}* tensors); {WHERE}"
        )
    _check_widths(context[0].shape[1], first.shape[1], path.name)
    if not any(name.startswith(VAE_PREFIX) for name in tensors):
        raise CheckpointError(f"{path.name} holds no VAE (no {VAE_PREFIX}* tensors); {WHERE}")
    try:
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        unet_tensors = convert_ldm_unet_checkpoint(tensors, UNET)
        vae_tensors = convert_ldm_vae_checkpoint(tensors, VAE)
    except Exception as error:  # names that lead nowhere, in as many ways as there are layers
        raise CheckpointError(f"{path.name} is incomplete: {_first_line(error)}; {WHERE}") from error
    for part, module, found in (("unet", unet, unet_tensors), ("vae", vae, vae_tensors)):
        given = {name: value for name, value in found.items() if value is not None}  # None: not in the file
        load_strict(module, given, f"{path.name}: {part}")
    return _backbone(unet, vae)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [k for k in file.keys() if k.startswith((UNET_PREFIX, VAE_PREFIX))]  # noqa: SIM118
            metadata = file.metadata() or {}
            if any(k.startswith("conditioner.") for k in file.keys()):  # noqa: SIM118
                raise CheckpointError(f"{path.name} looks like SDXL; {WHERE}")
            tensors = {k: file.get_tensor(k) for k in names}
    except (SafetensorError, OSError) as error:
        known = kind_of_file(path)
        raise CheckpointError(
            f"{path.name} is {known or f'truncated or no safetensors file: {_first_line(error)}'}"
        ) from error
    probe = tensors.get(UNET_PREFIX + V_PREDICTION_PROBE)
    says_v = metadata.get("modelspec.prediction_type", "epsilon").startswith("v")
    if says_v or (probe is not None and probe.float().std().item() > V_PREDICTION_SPREAD):
        raise CheckpointError(f"{path.name} is a v-prediction model (the 768-px one); {WHERE}")
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

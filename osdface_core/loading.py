"""From a name or a path to the four modules of a pipeline, strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import nn

from .checkpoint import Checkpoint, load_checkpoint, load_strict
from .choices import Codec, LoRAMode, check_choice
from .config import CodecConfig, OSDFaceConfig
from .errors import CheckpointError, OptionError
from .file_kinds import kind_of_weights
from .models.backbone import Backbone, UNetPredictor, try_shapes
from .models.full import build_full
from .models.lora import MergedLoRA, attach_lora, by_module, merge_lora, parse_lora
from .models.sd21 import load_base, map_base
from .models.vre import VRE, Projection, PromptEncoder
from .one_step import alpha_bar

MINI = Path(__file__).parent / "assets" / "mini.safetensors"


class Loaded(NamedTuple):
    """What a pipeline is made of, float32 on the CPU."""

    config: OSDFaceConfig
    prompt_encoder: PromptEncoder
    backbone: Backbone
    training: dict[str, Any]
    lora: MergedLoRA | None = None


def resolve(source: str | Path) -> Path:
    """Find the file or folder that a model name or path means."""
    return MINI if str(source) == "mini" else Path(source).expanduser()


def read_model(source: str | Path) -> Checkpoint:
    """Read a checkpoint file, or a released folder as one.

    Raises:
        CheckpointError: nothing there, or nothing that is a model.
    """
    path = resolve(source)
    if path == MINI and not path.is_file():
        raise CheckpointError(
            f"the embedded checkpoint is missing at {path}; install osdface again, or give a `source`"
        )
    if not path.is_dir():
        if path.suffix in {".ckpt", ".pth", ".pt"} and path.is_file():
            _refuse_pickle(path)
        return load_checkpoint(path)
    from .released import read_released

    return read_released(path)


def _refuse_pickle(path: Path) -> NoReturn:
    """Say what a .pth is that stands where a model should."""
    from .released import RELEASED_FILES

    if known := kind_of_weights(path):
        raise CheckpointError(f"{path.name} is {known}; give an OSDFace model here")
    if path.name in RELEASED_FILES:
        raise CheckpointError(f"{path.name} is one of the released files; give its folder")
    raise CheckpointError(
        f"{path.name} is a PyTorch file of another program; give an OSDFace .safetensors or a released folder"
    )


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    lora_scale: float = 1.0,
    lora: LoRAMode = "merged",
    codec: Codec = "own",
    codec_dir: str | Path | None = None,
) -> Loaded:
    """Read, validate and build; see `OSDFacePipeline.from_pretrained` for the arguments and errors."""
    check_choice("lora", lora, LoRAMode)
    check_choice("codec", codec, Codec)
    if not -100.0 <= lora_scale <= 100.0:
        raise OptionError("lora_scale", lora_scale, "-100..100")
    checkpoint = read_model(source)
    check_diffusers()
    name = resolve(source).name
    if checkpoint.missing_parts:
        raise CheckpointError(
            f"{name} lacks {', '.join(checkpoint.missing_parts)}: a file of stage 1; train the restorer on it"
        )
    parts = build_empty(checkpoint.config, name)
    for part, module in parts.items():
        load_strict(module, checkpoint.part(part), f"{name}: {part}")
    prompt_encoder = PromptEncoder(cast(VRE, parts["vre"]), cast(Projection, parts["projection"]))
    merged = None
    if checkpoint.config.arch == "full":
        backbone = Backbone(cast(Any, parts["codec"]), UNetPredictor(parts["unet"]))
    else:
        backbone, merged = _adapted_base(checkpoint, name, base, lora_scale, lora)
    config = checkpoint.config
    if codec != "own":
        backbone, config = _with_codec(backbone, config, name, codec, codec_dir)
    for part in (prompt_encoder, backbone.codec, backbone.predictor):
        cast(nn.Module, part).requires_grad_(False)
    return Loaded(config, prompt_encoder, backbone, checkpoint.training, merged)


def _with_codec(
    backbone: Backbone, config: OSDFaceConfig, name: str, codec: str, folder: str | Path | None
) -> tuple[Backbone, OSDFaceConfig]:
    """The model with TAESD in place of Stable Diffusion's autoencoder: a fourteenth of the arithmetic."""
    if config.codec.kind == "tiny":
        raise CheckpointError(f"{name} was trained with a small codec of its own; leave `codec` {codec} out")
    if config.lora and config.lora.encoder:
        raise CheckpointError(f"{name} adapts the base's own encoder; leave `codec` {codec} out")
    from .models.tiny_codec import TinyCodec, load_taesd

    config = replace(config, codec=CodecConfig(kind="tiny"))
    small = TinyCodec(config.codec).requires_grad_(False)
    load_taesd(small, folder)
    return Backbone(small, backbone.predictor), config


def check_diffusers() -> None:
    """Import diffusers; newer ones fail beside older PyTorch or transformers with errors that tell nothing.

    Raises:
        CheckpointError: it cannot be imported.
    """
    try:
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"diffusers cannot be imported beside PyTorch {torch.__version__} or transformers ({reason}); "
            "pip install 'diffusers<0.36', or update PyTorch to 2.6 and transformers to 4.48"
        ) from error


def load_prompt_encoder(checkpoint: Checkpoint, name: str) -> PromptEncoder:
    """Build the prompt side of a complete checkpoint."""
    parts = build_empty(checkpoint.config, name)
    for part in ("vre", "projection"):
        load_strict(parts[part], checkpoint.part(part), f"{name}: {part}")
    return PromptEncoder(cast(VRE, parts["vre"]), cast(Projection, parts["projection"]))


def build_empty(config: OSDFaceConfig, name: str) -> dict[str, nn.Module]:
    """Build the modules that a config describes on the meta device: shapes, and no memory.

    Returns:
        vre and projection; of a self-contained model unet and codec too.
    Raises:
        CheckpointError: the numbers give no modules, or none that fit each other.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            vre, projection = VRE(config.vre), Projection(config.vre.z_channels, config.projection)
            alpha_bar(config)
            PromptEncoder(vre, projection)(torch.zeros(1, 3, 512, 512))
            parts: dict[str, nn.Module] = {"vre": vre, "projection": projection}
            if config.arch == "full":
                backbone = build_full(config)
                try_shapes(backbone, config.projection.out)
                unet = cast(UNetPredictor, backbone.predictor).unet
                parts |= {"unet": unet, "codec": cast(nn.Module, backbone.codec)}
    except CheckpointError:
        raise
    except Exception as error:  # as many kinds as there are layers
        raise CheckpointError(f"{name}: its config gives no model ({error}); get the file again") from error
    return parts


def _adapted_base(
    checkpoint: Checkpoint,
    name: str,
    base: str | Path | None,
    scale: float,
    mode: LoRAMode,
) -> tuple[Backbone, MergedLoRA | None]:
    if base is None:
        raise CheckpointError(
            f"{name} is a LoRA for {checkpoint.config.base}: give that model with `base` "
            "(a diffusers folder or v2-1_512-ema-pruned.safetensors)"
        )
    backbone = load_base(base)
    width = cast(Any, backbone.predictor).unet.config.cross_attention_dim
    if (out := checkpoint.config.projection.out) != width:
        raise CheckpointError(
            f"{name} gives prompts of width {out}, the base takes {width}; give its own base"
        )
    adapters = parse_lora(checkpoint.part("lora"))
    alpha = checkpoint.config.lora.alpha if checkpoint.config.lora else 16.0
    for module, own in by_module(backbone, adapters):
        (attach_lora if mode == "live" else merge_lora)(module, own, alpha, scale)
    if mode == "live":
        return backbone, None
    mapped = map_base(base)
    known = all(f"{adapted}.weight" in mapped for adapted in adapters)
    return backbone, MergedLoRA(adapters, alpha, mapped) if known else None

"""What stage 2 starts from: a base model, released files, one of our checkpoints, or TAESD weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.checkpoint import Checkpoint, load_strict, missing_parts, read_header
from osdface_core.config import CodecConfig, OSDFaceConfig, VREConfig
from osdface_core.console import complain
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.loading import read_model, resolve
from osdface_core.models.backbone import Backbone, UNetPredictor
from osdface_core.models.full import build_full
from osdface_core.models.lora import attach_lora, by_module, parse_lora
from osdface_core.models.sd21 import load_base
from osdface_core.models.text import TextPrompts, load_text, text_files
from osdface_core.models.tiny_codec import load_taesd
from osdface_core.models.vre import VRE, Projection, PromptEncoder

from ..losses.diffusion_discriminator import copy_unet, trunk
from ..recipe.config import Recipe
from ..recipe.restorer import RestorerTraining
from ..weight_files import NO_BASE, NO_CODEC, own_vre
from .adapters import add_lora, encoder_layers
from .generator import Generator

UNUSED_VRE = VREConfig(
    base_channels=32, channel_multipliers=(1,) * 6, res_blocks=1, z_channels=32, codebook_size=77
)


class Initial(NamedTuple):
    """Generator on the CPU with `requires_grad` set; network of the diffusion discriminator; their origin.

    `text` encodes tags where the prompt comes from them. `twin` is the UNet once more, for VSD; `negative`,
    (1, 77, D), is what its frozen side is led away from.
    """

    generator: Generator
    trunk: nn.Module | None
    parent: str
    text: TextPrompts | None = None
    twin: nn.Module | None = None
    negative: Tensor | None = None


def build_initial(recipe: Recipe) -> Initial:
    """Read everything and put it together.

    Raises:
        ConfigError: the recipe names no base, or parts that do not fit each other.
        CheckpointError: a file is missing or of another model.
    """
    cfg = recipe.restorer
    start = read_model(cfg.init) if cfg.init else None
    whole = start if start is not None and not start.missing_parts else None
    if whole is not None and whole.config.arch != cfg.mode:
        raise ConfigError(f"restorer.init holds a {whole.config.arch} model, restorer.mode is {cfg.mode}")
    if cfg.train == "codec" and whole is None:
        raise ConfigError("restorer.train codec: all else stays, so restorer.init must be a whole model")
    vre = _vre(recipe, start)
    config = model_config(cfg, whole.config if whole else None, vre.cfg)
    if cfg.mode == "full":
        return assemble(cfg, config, vre, whole, _full_backbone(cfg, config, whole))
    if not cfg.base:
        raise ConfigError(NO_BASE)
    backbone = load_base(cfg.base)
    if recipe.run.precision == "bf16":
        halve(backbone)
    initial = assemble(cfg, config, vre, whole, backbone)
    guided = initial.twin is not None and cfg.gan.vsd.cfg != 1
    return initial._replace(negative=_negative(cfg, initial.text)) if guided else initial


def halve(backbone: Backbone) -> None:
    """Cast frozen networks to bfloat16: half the memory; autocast runs them in it anyway."""
    cast(nn.Module, backbone.codec).bfloat16()
    cast(nn.Module, backbone.predictor).bfloat16()


def assemble(
    cfg: RestorerTraining, config: OSDFaceConfig, vre: VRE, whole: Checkpoint | None, backbone: Backbone
) -> Initial:
    """Put prompt, adapters and gradients around a backbone; `whole` is the model to start from, if any."""
    unet = cast(UNetPredictor, backbone.predictor).unet
    judge = None
    if cfg.gan.diffusion.weight > 0:
        judge = trunk(unet, share=cfg.gan.diffusion.train == "lora")
        if cfg.gan.diffusion.train == "all":
            judge.float().requires_grad_(True)
    twin = copy_unet(unet, share=True) if cfg.gan.vsd.weight > 0 else None
    choose_trained(cfg, config, backbone, whole)
    text = load_text(cfg.text_encoder or cfg.base) if cfg.prompt == "text" else None
    prompt = _prompt(cfg, config, vre, whole, text)
    generator = Generator(config, prompt, backbone, cfg.posterior)
    return Initial(generator, judge, Path(cfg.init or cfg.base).name, text, twin)


def _negative(cfg: RestorerTraining, text: TextPrompts | None) -> Tensor | None:
    """Encode what VSD's frozen UNet is led away from; None where the base comes without a text encoder."""
    place = cfg.text_encoder or cfg.base
    if text is None:
        try:
            text_files(place)
        except CheckpointError as error:
            complain(f"restorer.gan.vsd.cfg is not used: {error}")
            return None
        text = load_text(place)
    return text([cfg.gan.vsd.negative])


def model_config(cfg: RestorerTraining, known: OSDFaceConfig | None, vre: VREConfig) -> OSDFaceConfig:
    """Build the config of what will be exported; `known` is that of the whole model to start from."""
    projection = cfg.projection if known is None or cfg.prompting.fresh else known.projection
    if cfg.prompt != "vre":
        projection = replace(projection, learned=vre.tokens)
    common: dict[str, Any] = {
        "name": cfg.name, "vre": vre, "timestep": cfg.timestep, "projection": projection,
    }  # fmt: skip
    if known is not None:
        return replace(known, codec=_dialled(cfg, known.codec), **common)
    if cfg.mode == "full":
        codec = _dialled(cfg, cfg.codec)
        return OSDFaceConfig(arch="full", unet=cfg.unet, codec=codec, lora=None, base="", **common)
    return OSDFaceConfig(arch="lora", lora=cfg.lora, **common)


def _dialled(cfg: RestorerTraining, codec: CodecConfig) -> CodecConfig:
    """Note in the codec's config whether its decoder learns to do with less of its guide, or without."""
    learns = cfg.train != "unet" and cfg.guide.dropout > 0
    return replace(codec, fidelity_dial=True) if learns else codec


def known_config(cfg: RestorerTraining) -> OSDFaceConfig | None:
    """Read the config of the whole model that `restorer.init` names from its header; None without one."""
    path = resolve(cfg.init)
    if cfg.init and path.is_file():
        config, _, names = read_header(path)
        return None if missing_parts(config, names) else config
    return OSDFaceConfig() if cfg.init and cfg.mode == "lora" else None  # a folder holds released files


def _vre(recipe: Recipe, start: Checkpoint | None) -> VRE:
    """The frozen VRE: `restorer.vre`, else `init`'s, else this run's stage 1."""
    cfg = recipe.restorer
    place = cfg.vre or cfg.init
    if start is not None and not cfg.vre and start.part("vre"):
        source = start
    elif cfg.vre:
        source = read_model(cfg.vre)
    else:
        try:
            place = str(own_vre(recipe))
        except ConfigError:
            if cfg.prompt == "vre":
                raise
            # The format has a VRE even where the prompt does not come from it.
            return VRE(UNUSED_VRE).requires_grad_(False).eval()
        source = read_model(place)
    vre = VRE(source.config.vre)
    load_strict(vre, source.part("vre"), f"{place}: vre")
    return vre.requires_grad_(False).eval()


def _full_backbone(cfg: RestorerTraining, config: OSDFaceConfig, whole: Checkpoint | None) -> Backbone:
    """Own UNet and tiny codec: from `init`, else TAESD and random weights."""
    backbone = build_full(config)
    unet = cast(UNetPredictor, backbone.predictor).unet
    if whole is not None:
        load_strict(unet, whole.part("unet"), f"{cfg.init}: unet")
        if not cfg.codec_init:
            load_strict(backbone.codec, whole.part("codec"), f"{cfg.init}: codec")
        if cfg.prompting.fresh:
            _renew_cross_attention(unet)
    if cfg.codec_init and cfg.codec_init != "random":
        load_taesd(backbone.codec, cfg.codec_init)
    elif not cfg.codec_init and whole is None:
        raise ConfigError(NO_CODEC)
    return backbone


def _renew_cross_attention(unet: nn.Module) -> None:
    """Draw queries, keys and values of the cross-attention anew: what they learned fits another prompt."""
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            for part in ("to_q", "to_k", "to_v"):
                nn.init.xavier_uniform_(module.get_submodule(part).get_parameter("weight"))


def choose_trained(
    cfg: RestorerTraining, config: OSDFaceConfig, backbone: Backbone, whole: Checkpoint | None = None
) -> None:
    """Set `requires_grad`: LoRA layers (lora), or the decoder, its fidelity branch and the UNet (full)."""
    codec, unet = cast(Any, backbone.codec), cast(UNetPredictor, backbone.predictor).unet
    codec.requires_grad_(False)
    unet.requires_grad_(False)
    if cfg.mode == "full":
        unet.requires_grad_(cfg.train != "codec")
        codec.decoder.requires_grad_(cfg.train != "unet")
        if codec.guide is not None:
            codec.guide.requires_grad_(cfg.train != "unet")
        return
    assert config.lora is not None
    if config.lora.encoder and cfg.needs_encodings:
        raise ConfigError("lora.encoder: set keep_latents to false; prompting, guide, preview to 0")
    if whole is not None:
        for module, adapters in by_module(backbone, parse_lora(whole.part("lora"))):
            attach_lora(module, adapters, config.lora.alpha)
    else:
        add_lora(unet, config.lora.rank, config.lora.alpha, config.lora.targets, "default")
        if config.lora.encoder:
            add_lora(codec, config.lora.rank, config.lora.alpha, encoder_layers(codec), "default")
    for name, parameter in (*unet.named_parameters(), *codec.named_parameters()):
        learns = ".lora_" in name
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()


def _prompt(
    cfg: RestorerTraining,
    config: OSDFaceConfig,
    vre: VRE,
    whole: Checkpoint | None,
    text: TextPrompts | None = None,
) -> PromptEncoder:
    """VRE and projection; free vectors for `learned`, zeros or the text's that stay for `none` and `text`."""
    learns = cfg.prompt in ("vre", "learned") and cfg.train != "codec"
    projection = Projection(config.vre.z_channels, config.projection).requires_grad_(learns)
    if cfg.prompt == "none":
        nn.init.zeros_(projection.vectors)
    elif cfg.prompt == "vre" and cfg.prompt_start == "spread":
        start_at_unit_spread(projection, vre.quantize.embedding.weight)
    if whole is not None and not cfg.prompting.fresh and whole.config.projection == config.projection:
        load_strict(projection, whole.part("projection"), f"{cfg.init}: projection")
    if text is not None:
        words = text([cfg.text])[0]
        if words.shape != projection.vectors.shape:
            sizes = f"{tuple(words.shape)}, the model takes {tuple(projection.vectors.shape)}"
            raise ConfigError(f"restorer.text_encoder gives prompts {sizes}; set restorer.projection.out")
        projection.vectors.data.copy_(words)
    return PromptEncoder(vre, projection)


@torch.no_grad()
def start_at_unit_spread(projection: Projection, codes: Tensor) -> None:
    """Scale both layers until their pre-activations have a standard deviation of 1 over a codebook.

    Biases start at zero and each weight is divided by the spread, mean removed, of what its layer gives.
    PyTorch's own start gives prompts a tenth of a text encoder's size, and a UNet that begins there never
    listens to them (docs/mini.md). Dividing by the root mean square instead of the spread would make one
    constant vector, the same for every face, most of the prompt.

    Args:
        codes: (K, D), the codebook of the VRE.
    """
    x = codes.t()[None]
    for layer in (projection.conv1, projection.conv2):
        nn.init.zeros_(layer.get_parameter("bias"))
        outputs = layer(x)
        layer.weight /= (outputs - outputs.mean(2, keepdim=True)).std()
        x = F.silu(layer(x))

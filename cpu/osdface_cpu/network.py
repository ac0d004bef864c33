"""From a model to its faster copy."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from .blocks import FusedResnet, FusedTinyBlock, FusedUpsample
from .half import HalfLayers
from .layers import Layers
from .library import check, halves
from .packed import PackedConv
from .weights import in_float32

Kind = TypeVar("Kind", bound=nn.Module)
LIVE = ("lora_A", "lora_B")  # of a live LoRA: peft looks at their weights


def prepare(module: Kind) -> Kind:
    """Return a copy of `module` that computes the same, without gradient, through compiled layers.

    The two hold the weights once (Winograd's kernels in float32 come on top). At its first pass the copy
    takes those that its kernels need in another layout and leaves the module's parameters empty; `give_back`
    returns them bit by bit. Until then only the copy may compute, and nobody may save, change or move the
    module.

    Results are float32, to rounding those of float32 arithmetic; half-precision weights are multiplied as
    such where `halves()`.

    Args:
        module: on the CPU; diffusers' blocks and plain layers below it are replaced, others are copied.
    Raises:
        OSError: the compiled kernels are missing.
        RuntimeError: another copy has the weights.
    """
    check()
    if any(p.shape == (0,) for p in module.parameters()):
        raise RuntimeError("another copy of this model has its weights: give_back(that copy) first")
    half = halves() and any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())
    return _copied(module, HalfLayers() if half else Layers(), chain=False)


def _copied(module: Any, layers: Layers | None, chain: bool) -> Any:
    """`layers`: None for no stand-ins. `chain`: blocks follow one another; nothing goes around them."""
    if layers and PackedConv.suits(module):
        return layers.conv(module)
    if layers and type(module) is nn.Linear:
        return layers.linear(module)
    copied = in_float32(module)
    inner = chain or _is_chain(module)
    for name, child in module._modules.items():
        if child is not None:
            copied._modules[name] = _copied(child, None if name in LIVE else layers, inner)
    return copied if layers is None else _block(module, copied, layers, chain)


def _is_chain(module: nn.Module) -> bool:
    from diffusers.models.autoencoders.vae import Decoder, Encoder

    return isinstance(module, (Encoder, Decoder))


def _block(module: Any, copied: Any, layers: Layers, chain: bool) -> Any:
    """`copied`, or what stands in for it."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
    from diffusers.models.upsampling import Upsample2D

    kind = type(module)
    if kind is Attention:
        layers.attention(copied)
    if kind is ResnetBlock2D and FusedResnet.suits(module):
        return FusedResnet(copied, last_use=chain)
    if kind is Upsample2D and FusedUpsample.suits(module):
        return FusedUpsample(copied)
    if kind is AutoencoderTinyBlock and FusedTinyBlock.suits(module):
        return FusedTinyBlock(copied)
    return copied

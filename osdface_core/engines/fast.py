"""The engine `fast`: the CPU does less, on the same weights, to the same pixels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..devices import cpu_has_bf16
from .arena import give_back, kept_memory
from .fused import FusedResnet, FusedTinyBlock, FusedUpsample
from .layers import Layers
from .packed import WORTHWHILE, PackedConv

LIVE = ("lora_A", "lora_B")  # of a live LoRA: peft looks at their weights


class KeptMemoryForward:
    """`OSDFacePipeline.forward` with freed memory kept for the next pass, until the pipeline is no more."""

    def __init__(self, forward: Any, largest: int) -> None:
        self.plain, self.largest = forward, largest
        weakref.finalize(self, give_back)

    def __call__(self, *arguments: Any) -> Any:
        with kept_memory(self.largest):
            return self.plain(*arguments)


def speed_up(module: nn.Module, dtype: torch.dtype, layers: Layers) -> torch.dtype:
    """Replace diffusers' blocks and layers below `module`, in place; unknown ones stay.

    Args:
        dtype: of its weights.
        layers: what comes in their place.
    Returns:
        The precision that it now takes and computes in. Winograd's transforms need float32's digits, so half
        precision remains that of the weights alone, unless the CPU multiplies it faster than float32.
    """
    from diffusers.models.attention_processor import Attention

    if dtype == torch.bfloat16 and cpu_has_bf16():
        _replace_layers(module, WORTHWHILE, PackedConv, lambda layer: layer)
        return dtype
    for child in module.modules():
        if type(child) is Attention:
            layers.attention(child)
    _replace_blocks(module, layers)
    _replace_layers(module, layers.worthwhile, layers.conv, layers.linear)
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    return torch.float32


def _replace_blocks(module: nn.Module, layers: Layers, chain: bool = False) -> None:
    """`chain`: the module's blocks follow one another, without connections around them."""
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
    from diffusers.models.upsampling import Upsample2D

    others = {Upsample2D: FusedUpsample, AutoencoderTinyBlock: FusedTinyBlock}
    for name, child in list(module.named_children()):
        other: Any = others.get(type(child))  # type: ignore[call-overload]
        if type(child) is ResnetBlock2D and FusedResnet.suits(child):
            setattr(module, name, FusedResnet(child, layers, last_use=chain))
        elif other is not None and other.suits(child):
            setattr(module, name, other(child, layers))
        else:
            _replace_blocks(child, layers, chain or isinstance(child, (Encoder, Decoder)))


def _replace_layers(
    module: nn.Module,
    least: int,
    conv: Callable[[nn.Conv2d], nn.Module],
    linear: Callable[[nn.Linear], nn.Module],
) -> None:
    """Layers of at least so many weights; nothing below a stand-in."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.numel() >= least:
            setattr(module, name, linear(child))
        elif type(child) is nn.Conv2d and PackedConv.suits(child) and child.weight.numel() >= least:
            setattr(module, name, conv(child))
        elif not isinstance(child, PackedConv) and name not in LIVE:
            _replace_layers(child, least, conv, linear)

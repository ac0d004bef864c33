"""The engine `fast`: the CPU does less, on the same weights, to the same pixels."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from ..devices import cpu_has_bf16
from .arena import give_back, kept_memory
from .fused import FusedResnet, FusedTinyBlock, FusedUpsample, MakeConv
from .packed import WORTHWHILE, PackedConv
from .stored import keep_stored


class KeptMemoryForward:
    """`OSDFacePipeline.forward` with freed memory kept for the next pass, until the pipeline is no more."""

    def __init__(self, forward: Any) -> None:
        self.plain = forward
        weakref.finalize(self, give_back)

    def __call__(self, *arguments: Any) -> Any:
        with kept_memory():
            return self.plain(*arguments)


def speed_up(module: nn.Module, dtype: torch.dtype, make: MakeConv) -> torch.dtype:
    """Replace diffusers' blocks and layers below `module`, in place; unknown ones stay.

    Args:
        dtype: of its weights.
        make: the Winograd convolution in a layer's place.
    Returns:
        The precision that it now takes and computes in. Winograd's transforms need float32's digits, so half
        precision remains that of the weights alone, unless the CPU multiplies it faster than float32.
    """
    if dtype == torch.bfloat16 and cpu_has_bf16():
        _replace_convs(module)
        return dtype
    _replace_blocks(module, make)
    if dtype == torch.float32:
        _replace_convs(module)
    else:
        keep_stored(module)
    return torch.float32


def _replace_blocks(module: nn.Module, make: MakeConv, chain: bool = False) -> None:
    """`chain`: the module's blocks follow one another, without connections around them."""
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
    from diffusers.models.upsampling import Upsample2D

    others = {Upsample2D: FusedUpsample, AutoencoderTinyBlock: FusedTinyBlock}
    for name, child in list(module.named_children()):
        other: Any = others.get(type(child))  # type: ignore[call-overload]
        if type(child) is ResnetBlock2D and FusedResnet.suits(child):
            setattr(module, name, FusedResnet(child, make, last_use=chain))
        elif other is not None and other.suits(child):
            setattr(module, name, other(child, make))
        else:
            _replace_blocks(child, make, chain or isinstance(child, (Encoder, Decoder)))


def _replace_convs(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Conv2d and PackedConv.suits(child) and child.weight.numel() >= WORTHWHILE:
            setattr(module, name, PackedConv(child))
        elif not isinstance(child, PackedConv):
            _replace_convs(child)

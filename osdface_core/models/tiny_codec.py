"""The small codec of self-contained models: TAESD's layout in SD's latent space, with a fidelity branch.

A small codec loses detail that a nearly good face already has. The fidelity branch hands the decoder
features of the low-quality face at every scale, as controllable feature wrapping does (StableSR, arXiv
2305.07015 §3.3), and a gate per pixel lets clean input through unchanged. All of it starts at zero, so an
untrained branch leaves the decoder's answer as it was.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny
from torch import Tensor, nn

from ..choices import Posterior
from ..config import CodecConfig
from ..weights import TAESD_SOURCE, find_weights, load_strictly, read_state_dict
from .backbone import dtype_of

GATE_START = -4.0  # sigmoid(-4) = 0.018: the decoder's own answer, with a gradient left for the gate


def zero_conv(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(torch.jit.annotate(Tensor, conv.bias))
    return conv


class GuideLevel(nn.Module):
    """One scale of the fidelity branch: a convolution (stride 2 below full size) and a residual pair."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1) if stride > 1 else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_in(x), inplace=True)
        if self.conv1 is None or self.conv2 is None:
            return x
        return F.relu(x + self.conv2(F.relu(self.conv1(x), inplace=True)), inplace=True)


class FidelityBranch(nn.Module):
    """Features of the low-quality face and the layers that mix them into the decoder."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.levels = nn.ModuleList(
            GuideLevel(a, b, stride=1 if i == 0 else 2)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.fuse = nn.ModuleList(zero_conv(channels + w, channels) for w in widths)
        self.gate = zero_conv(channels, 1, kernel=3)
        nn.init.constant_(torch.jit.annotate(Tensor, self.gate.bias), GATE_START)

    def forward(self, signed: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) in [-1, 1] to features at 1/1, 1/2, 1/4, 1/8."""
        return list(accumulate(self.levels, lambda x, level: level(x), initial=signed))[1:]

    def mix(self, x: Tensor, feature: Tensor, level: int, fidelity: float | Tensor) -> Tensor:
        """Add to decoder features `x` what the guide's features say, weighed by `fidelity`."""
        return x + fidelity * self.fuse[level](torch.cat((x, feature * fidelity), dim=1))


def convolve_doubled(x: Tensor, layer: nn.Module) -> Tensor:
    """Convolve `x`, doubled by repetition, with a 3 × 3 kernel: by four of 2 × 2, 4/9 of the arithmetic."""
    if not x.is_cpu or type(layer) is not nn.Conv2d or layer.bias is not None:  # not measured elsewhere
        return layer(F.interpolate(x, scale_factor=2.0))
    sums = x.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # place, pixel, row of the kernel
    kernels = torch.einsum("prk,qsl,dckl->pqdcrs", sums, sums, layer.weight).flatten(0, 2)
    seen, (h, w) = F.conv2d(x, kernels, padding=1).unflatten(1, (2, 2, -1)), x.shape[2:]
    strides = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    whole = torch.empty((len(x), len(layer.weight), 2 * h, 2 * w), dtype=x.dtype, memory_format=strides)
    for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
        whole[..., p::2, q::2] = seen[:, p, q, :, p : p + h, q : q + w]
    return whole


class TinyCodec(nn.Module):
    """`LatentCodec` of self-contained models.

    encode: (B, 3, H, W) in [-1, 1] to (B, 4, H/8, W/8), scaled latents of Stable Diffusion 1/2.
    decode: the way back, about [-1, 1]; sides that are no multiple of 8 are rounded down.
    """

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        widths = (cfg.channels,) * 4
        self.unshuffle = 2 ** (4 - len(cfg.encoder_blocks))  # side of the pixel blocks it starts on
        self.encoder = EncoderTiny(
            3 * self.unshuffle**2, cfg.latent_channels, num_blocks=cfg.encoder_blocks,
            block_out_channels=widths[: len(cfg.encoder_blocks)], act_fn="relu",
        )  # fmt: skip
        self.decoder = DecoderTiny(
            cfg.latent_channels, 3, num_blocks=cfg.decoder_blocks, block_out_channels=widths,
            upsampling_scaling_factor=2, act_fn="relu", upsample_fn="nearest",
        )  # fmt: skip
        for layer in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(layer, nn.ReLU):  # nobody else needs its input; at 512 px a copy of it takes 67 MB
                layer.inplace = True
        self.guide = FidelityBranch(cfg.guide_channels, cfg.channels) if cfg.guide_channels else None

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode deterministically: `posterior` and `generator` make no difference here."""
        signed = signed[..., : signed.shape[-2] // 8 * 8, : signed.shape[-1] // 8 * 8]
        return self.encoder(F.pixel_unshuffle(signed.to(dtype_of(self)), self.unshuffle))

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float | Tensor = 1.0) -> Tensor:
        """Decode (B, 4, h, w) to (B, 3, 8h, 8w).

        Args:
            guide: the low-quality face in [-1, 1], of the size of the result.
            fidelity: 0..1, as (B, 1, 1, 1) one for each picture: 0 leaves the branch out, between 0 and 1
                its features and its gate are scaled.
        """
        latent = latent.to(dtype_of(self))
        if self.guide is None or guide is None or (isinstance(fidelity, float) and fidelity == 0.0):
            return self.decoder(latent)
        guide = guide[..., : latent.shape[-2] * 8, : latent.shape[-1] * 8].to(latent.dtype)
        features = self.guide(guide)
        fidelity = fidelity.to(latent.dtype) if isinstance(fidelity, Tensor) else fidelity
        x = torch.tanh(latent / 3.0) * 3.0
        layers = list(self.decoder.layers)
        level, x = 3, self.guide.mix(layers[1](layers[0](x)), features[3], 3, fidelity)
        doubled = False
        for layer in layers[2:-1]:
            if isinstance(layer, nn.Upsample):
                doubled, level = True, level - 1
            elif doubled:
                doubled, x = False, convolve_doubled(x, layer)
                x = self.guide.mix(x, features[level], level, fidelity)
            else:
                x = layer(x)
        gate = fidelity * torch.sigmoid(self.guide.gate(x))
        decoded = layers[-1](x) * 2.0 - 1.0
        return decoded + gate * (guide - decoded)


def load_taesd(codec: Any, folder: str | Path | None) -> None:
    """Put TAESD's weights into a `TinyCodec`; its fidelity branch keeps its own start.

    Args:
        folder: with taesd_encoder.safetensors and taesd_decoder.safetensors; None is torch's cache.
    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    for name in ("encoder", "decoder"):
        path = find_weights(folder, f"taesd_{name}.safetensors", "TAESD", TAESD_SOURCE)
        # Layer 0 of TAESD's decoder is its clamp, which diffusers does outside of the list.
        shift = 1 if name == "decoder" else 0
        renamed = {}
        for key, value in read_state_dict(path, "TAESD", TAESD_SOURCE).items():
            number, _, rest = key.partition(".")
            renamed[f"layers.{int(number) - shift}.{rest}"] = value
        load_strictly(getattr(codec, name), renamed, path, "TAESD", TAESD_SOURCE)

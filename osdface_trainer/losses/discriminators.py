"""Discriminators on pixels: VQGAN's patch discriminator, and heads on frozen ImageNet features."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from osdface_core.errors import ConfigError

from .features import FrozenFeatures, Weights, backbone_spec


class PatchDiscriminator(nn.Module):
    """Five 4×4 convolutions that judge overlapping patches (receptive field 70 px).

    Args:
        width: channels of the first layer; doubled per layer up to 8 ×.
        layers: strided layers.
        norm: "batch" on all but the first and last convolution (the lineage), or "none".
        spectral: spectral normalisation of every convolution; usual together with norm="none".
    Initialised from N(0, 0.02), BatchNorm scales from N(1, 0.02).
    Source: pix2pix via taming-transformers
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 3,
        norm: Literal["batch", "none"] = "batch",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        widths = [3, *(width * min(2**level, 8) for level in range(layers + 1))]
        stack: list[nn.Module] = []
        for level in range(layers + 1):
            normed = norm == "batch" and level > 0
            stride = 2 if level < layers else 1
            stack.append(nn.Conv2d(widths[level], widths[level + 1], 4, stride, 1, bias=not normed))
            stack += [nn.BatchNorm2d(widths[level + 1])] if normed else []
            stack.append(nn.LeakyReLU(0.2))
        stack.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.stack = nn.Sequential(*stack)
        self.stack.apply(_normal_init)
        if spectral:
            for layer in self.stack:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, signed: Tensor) -> Tensor:
        """Judge (B, 3, H, W) signed: logits (B, 1, h, w); 512² gives 62²."""
        return self.stack(signed)


class FeatureDiscriminator(nn.Module):
    """Small trained heads on several levels of a frozen ImageNet network, which suits small data sets.

    The frozen network already knows textures and parts, so the heads cannot memorise a few thousand photos as
    a free network does. Each level's features are divided by their typical size (found at construction on a
    fixed 1/f noise picture), because spectral normalisation leaves no scale in the heads.

    Args:
        backbone: "squeezenet", "squeezenet1_1", "vgg16" or "vgg19".
        weights: torchvision's weight file, its folder, or None for torch's cache.
        levels: which of the backbone's taps get a head, shallow to deep; default: about one per resolution.
        width: channels inside the heads.
    Raises:
        CheckpointError, ConfigError: as `FrozenFeatures`.
    Source: Projected GAN (arXiv 2111.01007) for the idea; the heads are plain.
    """

    typical: Tensor

    def __init__(
        self,
        backbone: str = "squeezenet",
        weights: Weights = None,
        levels: tuple[int, ...] | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        taps = backbone_spec(backbone).taps
        if levels is None:
            levels = (0, 1, 3, 6) if len(taps) == 7 else tuple(range(len(taps)))
        if not levels or min(levels) < 0 or max(levels) >= len(taps):
            raise ConfigError(
                f"discriminator levels {levels}: expected indices below {len(taps)} for {backbone}"
            )
        self.features = FrozenFeatures(backbone, weights, [taps[level] for level in sorted(levels)])
        self.heads = nn.ModuleList(_head(channels, width) for channels in self.features.channels)
        self.register_buffer("typical", _typical_sizes(self.features), persistent=False)

    def forward(self, signed: Tensor) -> list[Tensor]:
        """Judge (B, 3, H, W) signed: one logit map (B, 1, h, w) per level, float32."""
        maps = self.features(signed)
        return [head(x / size).float() for head, x, size in zip(self.heads, maps, self.typical, strict=True)]


def shift_flip(
    *batches: Tensor, max_shift: float = 0.125, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Mirror and shift images at random (reflected edges): differentiable augmentation against over-fitting.

    Each batch gets the *same* draws, so that pairs of real and generated images stay pairs.

    Args:
        batches: each (B, C, H, W).
        max_shift: largest shift as a share of the side.
        generator: a CPU generator, for reproducible draws.
    """
    count, _, height, width = batches[0].shape
    flips = torch.rand(count, generator=generator) < 0.5
    reach = torch.tensor([int(height * max_shift), int(width * max_shift)])
    shifts = (torch.rand(count, 2, generator=generator) * (2 * reach + 1)).long() - reach
    rows = _reflected(height, shifts[:, 0])
    columns = _reflected(width, shifts[:, 1])
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    where = torch.arange(count)[:, None, None]
    moved = []
    for images in batches:
        index = [x.to(images.device) for x in (where, rows[:, :, None], columns[:, None, :])]
        moved.append(images.permute(0, 2, 3, 1)[tuple(index)].permute(0, 3, 1, 2))
    return tuple(moved)


def _reflected(size: int, shifts: Tensor) -> Tensor:
    """Compute (B, size) source indices of a shift with reflected edges."""
    index = (torch.arange(size)[None] + shifts[:, None]).abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _head(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 1, 1)),
    )


@torch.no_grad()
def _typical_sizes(features: FrozenFeatures, size: int = 256) -> Tensor:
    """Measure (levels,): root mean square of each level's features on a fixed 1/f noise picture."""
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None].square() + frequency[None].square()).sqrt().clamp(min=1 / size)
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    picture = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    picture = (0.4 * picture / picture.std()).clamp(-1, 1)
    return torch.stack([x.square().mean().sqrt() for x in features(picture)])


def _normal_init(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)

"""The three MTCNN networks in plain PyTorch.

Layer sizes: Zhang et al. 2016, figure 2, as the weights of the package `mtcnn` have them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Halve(nn.Module):
    """2x2 max pooling that keeps an odd last row or column; several times faster on CPUs than MaxPool2d."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, h, w) to (B, C, ceil(h/2), ceil(w/2))."""
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), value=-math.inf)
        rows = torch.maximum(x[..., 0::2, :], x[..., 1::2, :])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


class Stage(nn.Module):
    """One of the three nets: convolutions with PReLU and pooling, an optional dense layer, linear heads.

    Args:
        convs: (in, out, kernel, pool) per convolution; pool is (size, round up) or None.
        dense: (in, out) of the hidden dense layer, or None for the fully convolutional proposal net.
        heads: channels of each head; the last one is the two-way face probability.
    """

    def __init__(
        self,
        convs: Sequence[tuple[int, int, int, tuple[int, bool] | None]],
        dense: tuple[int, int] | None,
        heads: tuple[int, ...],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, pool in convs:
            layers += [nn.Conv2d(inputs, outputs, kernel), nn.PReLU(outputs)]
            if pool is not None:
                layers.append(Halve() if pool[0] == 2 else nn.MaxPool2d(pool[0], stride=2, ceil_mode=pool[1]))
        self.features = nn.Sequential(*layers)
        self.hidden = None if dense is None else nn.Sequential(nn.Linear(*dense), nn.PReLU(dense[1]))
        last = convs[-1][1] if dense is None else dense[1]
        make = (lambda n: nn.Conv2d(last, n, 1)) if dense is None else (lambda n: nn.Linear(last, n))
        self.heads = nn.ModuleList(make(count) for count in heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, h, w) in about [-1, 1] to one tensor per head, the last softmaxed over two classes."""
        # Channels-last convolutions are far faster on CPUs at these channel counts.
        x = self.features(images.contiguous(memory_format=torch.channels_last))
        if self.hidden is not None:
            # The dense weights were stored for maps flattened as width, height, channel.
            x = self.hidden(x.permute(0, 3, 2, 1).flatten(1))
        outputs = [head(x) for head in self.heads]
        outputs[-1] = outputs[-1].softmax(dim=1)
        return outputs


def proposal_net() -> Stage:
    """Build P-Net: box offsets (4) and face probability (2) for every 12 px window at stride 2."""
    return Stage([(3, 10, 3, (2, True)), (10, 16, 3, None), (16, 32, 3, None)], None, (4, 2))


def refinement_net() -> Stage:
    """Build R-Net: box offsets and face probability of 24 px patches."""
    convs = [(3, 28, 3, (3, True)), (28, 48, 3, (3, False)), (48, 64, 2, None)]
    return Stage(convs, (576, 128), (4, 2))


def output_net() -> Stage:
    """Build O-Net for 48 px patches: box offsets, five landmarks (x1..x5, y1..y5 in the box), probability."""
    convs = [(3, 32, 3, (3, True)), (32, 64, 3, (3, False)), (64, 64, 3, (2, True)), (64, 128, 2, None)]
    return Stage(convs, (1152, 256), (4, 10, 2))

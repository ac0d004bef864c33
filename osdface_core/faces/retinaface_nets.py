"""The RetinaFace network: a backbone, a feature pyramid, context modules and three heads per level.

Source: Deng et al., "RetinaFace: Single-shot Multi-level Face Localisation in the Wild" (CVPR 2020),
section 3; context modules: Najibi et al., "SSH: Single Stage Headless Face Detector" (ICCV 2017), figure 4.
The modules carry the names of the weight files that facexlib publishes, which load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ANCHORS_PER_CELL = 2
MOBILENET_STAGES = {
    "stage1": [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)],
    "stage2": [(64, 128, 2), *[(128, 128, 1)] * 5],
    "stage3": [(128, 256, 2), (256, 256, 1)],
}
"""Depthwise separable blocks of MobileNet v1 at a quarter of its width: channels in, channels out, stride."""


@dataclass(frozen=True)
class Variant:
    """What tells the two published networks apart.

    Attributes:
        taps: children of the body whose outputs, at strides 8, 16 and 32, enter the pyramid.
        channels: of those three outputs.
        width: channels of the pyramid.
    """

    taps: tuple[str, str, str]
    channels: tuple[int, int, int]
    width: int


VARIANTS = {
    "resnet50": Variant(("layer2", "layer3", "layer4"), (512, 1024, 2048), 256),
    "mobile0.25": Variant(("stage1", "stage2", "stage3"), (64, 128, 256), 64),
}


class Network(nn.Module):
    """RetinaFace without its decoding.

    Args:
        name: key of `VARIANTS`.
    """

    def __init__(self, name: str) -> None:
        from torchvision.models import resnet50  # late: a second of start-up
        from torchvision.models._utils import IntermediateLayerGetter

        super().__init__()
        variant = VARIANTS[name]
        width = variant.width
        body = resnet50(weights=None) if name == "resnet50" else _mobilenet()
        self.body = IntermediateLayerGetter(body, {name: name for name in variant.taps})
        self.fpn = Pyramid(variant.channels, width)
        self.ssh1, self.ssh2, self.ssh3 = Context(width), Context(width), Context(width)
        self.BboxHead = _heads(width, 4)
        self.ClassHead = _heads(width, 2)
        self.LandmarkHead = _heads(width, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict for every anchor.

        Args:
            images: (B, 3, H, W) BGR, 0..255 less the training mean.
        Returns:
            Box regressions (B, n, 4), probabilities of background and face (B, n, 2), landmark regressions
            (B, n, 10); anchors ordered by level, row, column, size.
        """
        levels = self.fpn(list(self.body(images).values()))
        levels = [
            module(level) for module, level in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)
        ]
        boxes, classes, points = (
            torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], dim=1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, classes.softmax(dim=-1), points


class Pyramid(nn.Module):
    """Bring three maps to one width and add each coarser one to the next finer one."""

    def __init__(self, channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        slope = _slope(width)
        self.output1, self.output2, self.output3 = (_conv(count, width, 1, slope=slope) for count in channels)
        self.merge1, self.merge2 = _conv(width, width, slope=slope), _conv(width, width, slope=slope)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Merge three (B, C, h, w) maps, finest first, into three of `width` channels at the same sizes."""
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[-2:]))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[-2:]))
        return [fine, middle, coarse]


class Context(nn.Module):
    """Look at 3x3, 5x5 and 7x7 neighbourhoods, the larger two as stacked 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter, slope = width // 2, width // 4, _slope(width)
        self.conv3X3 = _conv(width, half, slope=None)
        self.conv5X5_1 = _conv(width, quarter, slope=slope)
        self.conv5X5_2 = _conv(quarter, quarter, slope=None)
        self.conv7X7_2 = _conv(quarter, quarter, slope=slope)
        self.conv7x7_3 = _conv(quarter, quarter, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape, not negative."""
        shared = self.conv5X5_1(x)
        parts = (self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared)))
        return torch.cat(parts, dim=1).relu()


class Head(nn.Module):
    """One linear prediction per anchor."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.conv1x1 = nn.Conv2d(width, ANCHORS_PER_CELL * count, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, h * w * ANCHORS_PER_CELL, count)."""
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.count)


def _heads(width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Head(width, count) for _ in range(3))


def _slope(width: int) -> float:
    """Negative slope of the activations: the narrow network leaks, the wide one does not."""
    return 0.1 if width <= 64 else 0.0


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, *, slope: float | None
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless `slope` is None, a leaky ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope)]))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, as one flat sequence."""
    return nn.Sequential(
        *_conv(inputs, inputs, 3, stride, groups=inputs, slope=0.1), *_conv(inputs, outputs, 1, slope=0.1)
    )


def _mobilenet() -> nn.Sequential:
    stages = {name: [_separable(*sizes) for sizes in blocks] for name, blocks in MOBILENET_STAGES.items()}
    stages["stage1"].insert(0, _conv(3, 8, stride=2, slope=0.1))
    return nn.Sequential(OrderedDict((name, nn.Sequential(*blocks)) for name, blocks in stages.items()))

"""Perceptual distance: how different two images look to an ImageNet network (OSDFace Eq. 7-8; LPIPS)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .features import Frozen, FrozenFeatures, Weights, backbone_spec, torchmetrics_weights

Distance = Literal["lpips", "l1", "mse"]


class PerceptualLoss(Frozen):
    """Distance between ImageNet features of two images, averaged over the batch.

    Args:
        backbone: "squeezenet" (1.0), "squeezenet1_1", "vgg16", "vgg19" or "alexnet".
        weights: torchvision's weight file, its folder, or None for torch's download cache.
        distance:
            "lpips": squared difference of features of unit length per position, weighted per channel by
                LPIPS' learned weights where they exist (vgg16, alexnet, squeezenet1_1; from the torchmetrics
                package) and summed over levels: then this *is* LPIPS. Else every channel counts 1 and the
                levels are averaged (0 … 4).
            "l1", "mse": mean absolute or squared difference of the plain features, averaged over levels;
                "mse" with "vgg19" is Eq. 8 of the paper as printed (its choice of levels is not stated).
    Raises:
        CheckpointError: if the weight file is missing or does not fit.
        ConfigError: for an unknown backbone.

    Features run in the dtype of the surrounding autocast; differences and means are float32.
    """

    def __init__(
        self, backbone: str = "squeezenet", weights: Weights = None, distance: Distance = "lpips"
    ) -> None:
        super().__init__()
        self.features = FrozenFeatures(backbone, weights)
        self.distance = distance
        learned = lpips_weights(backbone) if distance == "lpips" else None
        self.learned = learned is not None
        for level, weight in enumerate(learned or ()):
            self.register_buffer(f"weight{level}", weight, persistent=False)
        self.eval()

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Average the distance of `restored` to `target`, both (B, 3, H, W) signed; 0-d float32.

        Gradients flow to `restored`, and to `target` only if it requires them.
        """
        return self.per_image(restored, target).mean()

    def per_image(self, restored: Tensor, target: Tensor) -> Tensor:
        """Measure as `forward`, but (B,): one distance per image."""
        restored_maps = self.features(restored)
        with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
            target_maps = self.features(target)
        return self.compare(restored_maps, target_maps)

    def compare(self, restored_maps: Sequence[Tensor], target_maps: Sequence[Tensor]) -> Tensor:
        """Compute the distance (B,) of maps that `features` gave, for images compared more than once."""
        with torch.autocast(restored_maps[0].device.type, enabled=False):
            levels = [
                self._level(i, a, b) for i, (a, b) in enumerate(zip(restored_maps, target_maps, strict=True))
            ]
            total = torch.stack(levels).sum(0)
        return total if self.learned else total / len(levels)

    def _level(self, level: int, a: Tensor, b: Tensor) -> Tensor:
        """Compute the distance at one level, (B,)."""
        if self.distance == "l1":
            return (a.float() - b.float()).abs().mean((1, 2, 3))
        if self.distance == "mse":
            return (a.float() - b.float()).square().mean((1, 2, 3))
        squares = (_unit_length(a) - _unit_length(b)).square()
        if self.learned:
            squares = squares * self.get_buffer(f"weight{level}")
        return squares.sum(1).mean((1, 2))


def _unit_length(maps: Tensor) -> Tensor:
    """Scale the channel vector at each position to length 1 (float32; the small term keeps zeros finite)."""
    maps = maps.float()
    return maps * (maps.square().sum(1, keepdim=True) + 1e-8).rsqrt()


def lpips_weights(backbone: str) -> list[Tensor] | None:
    """Read LPIPS' channel weights (BSD-2), (1, C, 1, 1) per level; None where LPIPS was never fitted."""
    name = backbone_spec(backbone).lpips
    if name is None:
        return None
    state = torchmetrics_weights("lpips_models", name)
    return [state[f"lin{level}.model.1.weight"].float() for level in range(len(backbone_spec(backbone).taps))]

"""EA-DISTS: structure and texture similarity of images and of their edges (OSDFace Eq. 14).

Everything here is float32 whatever autocast says: DISTS' variances fail silently in half precision.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.errors import ConfigError

from .features import Frozen, Weights, backbone_spec, load_features, torchmetrics_weights
from .perceptual import PerceptualLoss

EdgeDistance = Literal["dists", "lpips"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sobel_magnitude(unit: Tensor) -> Tensor:
    """Compute the edge strength of the grey image.

    Args:
        unit: (B, C, H, W); grey is the mean of the channels.
    Returns:
        (B, 1, H, W), √(gx² + gy² + 1e-6) with zero padding; may exceed 1 and is not clamped.
    Source: OSDFace Eq. 14, S(·)
    """
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    across = smooth[:, None] * slope[None]
    kernels = torch.stack([across, across.T]).unsqueeze(1).to(unit.device)
    gradient = F.conv2d(unit.float().mean(1, keepdim=True), kernels, padding=1)
    return (gradient.square().sum(1, keepdim=True) + 1e-6).sqrt()


class StructureTexture(Frozen):
    """Structure and texture dissimilarity of two images over the levels of a frozen network.

    Args:
        backbone:
            "vgg16": DISTS itself (arXiv 2004.07728): pooling by L2 norm, the published α and β, which ship
                inside the torchmetrics package (Apache-2.0; from DISTS, MIT). Equal to torchmetrics' value.
            "squeezenet", "squeezenet1_1": **not** DISTS, but its formula on SqueezeNet's features with max
                pooling and equal weights for all levels; values are not comparable with published DISTS
                numbers.
        weights: torchvision's weight file, its folder, or None for torch's cache (nothing is downloaded).
    Raises:
        CheckpointError: if the backbone's weights or torchmetrics' α and β are missing.
        ConfigError: for another backbone.
    """

    mean: Tensor
    std: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, backbone: str = "vgg16", weights: Weights = None) -> None:
        super().__init__()
        spec = backbone_spec(backbone)
        if backbone in ("vgg19", "alexnet"):
            raise ConfigError("DISTS was fitted on vgg16: use backbone vgg16, squeezenet or squeezenet1_1")
        self.channels = (3, *spec.channels)
        self.taps = spec.taps
        layers = load_features(backbone, weights)[: spec.taps[-1] + 1]
        self.layers = nn.ModuleList(
            _L2Pool() if backbone == "vgg16" and isinstance(layer, nn.MaxPool2d) else layer
            for layer in layers
        )
        alpha, beta = _published_weights() if backbone == "vgg16" else _equal_weights(self.channels)
        self.register_buffer("alpha", alpha, persistent=False)  # buffers: an optimiser cannot reach them
        self.register_buffer("beta", beta, persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the dissimilarity per image.

        Args:
            a, b: (B, 3, H, W) or (B, 1, H, W) (one channel is broadcast), unit but not clamped.
        Returns:
            (B,) float32, 0 for equal images. Gradients flow to `a`, and to `b` only if it requires them.
        """
        with torch.autocast(a.device.type, enabled=False):
            maps_a = self._maps(a.float())
            with torch.set_grad_enabled(torch.is_grad_enabled() and b.requires_grad):
                maps_b = self._maps(b.float())
            alphas, betas = self.alpha.split(self.channels), self.beta.split(self.channels)
            parts = [_similarity(*level) for level in zip(maps_a, maps_b, alphas, betas, strict=True)]
            return 1 - torch.stack(parts).sum(0)

    def _maps(self, unit: Tensor) -> list[Tensor]:
        """Return the image itself and the tapped features."""
        unit = unit.expand(-1, 3, -1, -1)
        maps, x = [unit], (unit - self.mean) / self.std
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


class EdgeAwareDists(Frozen):
    """EA-DISTS: D(Î, I) + D(S(Î), S(I)), D as in `StructureTexture`, S the Sobel magnitude.

    Args:
        backbone, weights: as `StructureTexture`; only "vgg16" is the paper's loss, the others use its form.
        distance: "lpips" takes `PerceptualLoss` for D: EA-LPIPS of the paper's Table 5.
    Source: OSDFace Eq. 14.
    """

    def __init__(
        self, backbone: str = "vgg16", weights: Weights = None, distance: EdgeDistance = "dists"
    ) -> None:
        super().__init__()
        dists = distance == "dists"
        self.distance = StructureTexture(backbone, weights) if dists else _UnitLPIPS(backbone, weights)
        self.eval()

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Average over the batch of two (B, 3, H, W) signed images; 0-d float32."""
        return self.per_image(restored, target).mean()

    def per_image(self, restored: Tensor, target: Tensor) -> Tensor:
        """Measure as `forward`, but (B,). `restored` is not clamped: that would stop its gradient."""
        with torch.autocast(restored.device.type, enabled=False):
            a, b = (restored.float() + 1) / 2, (target.float() + 1) / 2
            return self.distance(a, b) + self.distance(sobel_magnitude(a), sobel_magnitude(b))


class _UnitLPIPS(PerceptualLoss):
    """LPIPS of unit images of three channels or one, (B,)."""

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        a, b = (2 * image.expand(-1, 3, -1, -1) - 1 for image in (restored, target))
        return self.per_image(a, b)


class _L2Pool(nn.Module):
    """√ of a 3 × 3 Hann-weighted mean of squares, stride 2: DISTS' pooling without aliasing."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = np.hanning(5)[1:-1]
        kernel = torch.from_numpy(np.outer(window, window) / window.sum() ** 2).float()
        self.register_buffer("kernel", kernel.view(1, 1, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _similarity(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Sum α · l(a, b) + β · s(a, b) over one level's channels: (B,) (DISTS Eq. 3-5)."""
    small = 1e-6
    mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
    centred_a, centred_b = a - mean_a[:, :, None, None], b - mean_b[:, :, None, None]
    variance_a, variance_b = centred_a.square().mean((2, 3)), centred_b.square().mean((2, 3))
    covariance = (centred_a * centred_b).mean((2, 3))
    texture = (2 * mean_a * mean_b + small) / (mean_a.square() + mean_b.square() + small)
    structure = (2 * covariance + small) / (variance_a + variance_b + small)
    return (alpha * texture + beta * structure).sum(1)


def _published_weights() -> tuple[Tensor, Tensor]:
    """Read DISTS' α and β (MIT), (1475,) each, scaled to a common sum of 1."""
    state = torchmetrics_weights("dists_models", "weights.pt")
    alpha, beta = state["alpha"].detach().float().flatten(), state["beta"].detach().float().flatten()
    total = alpha.sum() + beta.sum()
    return alpha / total, beta / total


def _equal_weights(channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weigh all levels the same, and a level's channels; α and β sum to 1 together."""
    weights = torch.cat([torch.full((count,), 0.5 / len(channels) / count) for count in channels])
    return weights, weights.clone()

"""Frozen ImageNet networks as feature extractors: torchvision's VGG16, VGG19 and SqueezeNet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.weights import find_weights, load_strictly, read_state_dict

Weights = str | Path | nn.Sequential | None


@dataclass(frozen=True)
class BackboneSpec:
    """One torchvision network and where its features are tapped.

    Attributes:
        file: torchvision's file name (under https://download.pytorch.org/models/).
        taps: indices in torchvision's `features` after which a map is taken: the last ReLU of each VGG level,
            and LPIPS' seven maps for SqueezeNet (the same fire modules for version 1.0).
        channels: channels of each tap.
        lpips: file name of the learned LPIPS weights that fit, or None.
    """

    builder: str
    file: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    lpips: str | None = None


_VGG_CHANNELS = (64, 128, 256, 512, 512)
BACKBONES: dict[str, BackboneSpec] = {
    "vgg16": BackboneSpec("vgg16", "vgg16-397923af.pth", (3, 8, 15, 22, 29), _VGG_CHANNELS, "vgg.pth"),
    "vgg19": BackboneSpec("vgg19", "vgg19-dcbb9e9d.pth", (3, 8, 17, 26, 35), _VGG_CHANNELS),
    "alexnet": BackboneSpec(
        "alexnet", "alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), "alex.pth"
    ),
    "squeezenet": BackboneSpec(
        "squeezenet1_0",
        "squeezenet1_0-b66bff10.pth",
        (1, 4, 5, 8, 9, 10, 12),
        (96, 128, 256, 384, 384, 512, 512),
    ),
    "squeezenet1_1": BackboneSpec(
        "squeezenet1_1",
        "squeezenet1_1-b8a52dc0.pth",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        "squeeze.pth",
    ),
}


def backbone_spec(backbone: str) -> BackboneSpec:
    """Look a backbone up by name.

    Raises:
        ConfigError: for an unknown name.
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"unknown perceptual backbone {backbone!r}: expected one of {', '.join(BACKBONES)}")
    return BACKBONES[backbone]


class Frozen(nn.Module):
    """A module that stays in eval mode whatever its parent does."""

    def train(self, mode: bool = True) -> "Frozen":
        """Ignore `mode`: dropout and batch statistics of a fixed network never switch on."""
        del mode
        return super().train(False)


class FrozenFeatures(Frozen):
    """ImageNet features of `signed` images; parameters are frozen, gradients flow to the images.

    Args:
        backbone: "vgg16", "vgg19", "alexnet", "squeezenet" (1.0) or "squeezenet1_1".
        weights: torchvision's file, a folder with it, None for torch's download cache (nothing is
            downloaded), or the network's `features` themselves.
        taps: indices of torchvision's `features` to return; by default those of `BackboneSpec.taps`.
    Raises:
        CheckpointError: if the file is missing or does not fit (one line with the file and its source).
        ConfigError: for an unknown backbone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str, weights: Weights = None, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        spec = backbone_spec(backbone)
        self.taps = tuple(spec.taps if taps is None else taps)
        self.channels = tuple(spec.channels[spec.taps.index(tap)] for tap in self.taps)
        # ImageNet mean/std carried over to [-1, 1]; LPIPS' shift and scale are the same numbers rounded.
        self.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.features = load_features(backbone, weights)[: self.taps[-1] + 1]
        self.requires_grad_(False)
        self.eval()

    def forward(self, signed: Tensor) -> list[Tensor]:
        """Compute one (B, C, h, w) map of (B, 3, H, W) signed per tap, in autocast's dtype."""
        x = (signed - self.shift) / self.scale
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def torchmetrics_weights(folder: str, file: str) -> dict[str, Tensor]:
    """Read weights of LPIPS or DISTS, which ship inside the torchmetrics package (Apache-2.0): no download.

    Raises:
        CheckpointError: torchmetrics or its file is not installed.
    """
    package = find_spec("torchmetrics")
    roots = package.submodule_search_locations if package else None
    path = Path(next(iter(roots))) / "functional" / "image" / folder / file if roots else None
    if path is None or not path.is_file():
        raise CheckpointError(f"{folder}/{file} ships with torchmetrics: pip install 'torchmetrics>=1.5'")
    return torch.load(path, map_location="cpu", weights_only=True)


def untrained_features(backbone: str) -> nn.Sequential:
    """Build the convolutional part with random weights on torch's default device, for counts and timings."""
    import torchvision

    build: Callable[..., nn.Module] = getattr(torchvision.models, backbone_spec(backbone).builder)
    features = build(weights=None).get_submodule("features")
    assert isinstance(features, nn.Sequential)
    return _fixed(features)


def load_features(backbone: str, weights: Weights) -> nn.Sequential:
    """Load the convolutional part of a torchvision network, strictly and frozen; no classifier."""
    if isinstance(weights, nn.Sequential):
        return _fixed(weights)
    spec = backbone_spec(backbone)
    what, source = (
        f"{spec.builder} (ImageNet)",
        f"torchvision: https://download.pytorch.org/models/{spec.file}",
    )
    path = find_weights(weights, spec.file, what, source)
    state = read_state_dict(path, what, source)
    with torch.device("meta"):  # VGG's classifier (0.5 GB) is never allocated
        features = untrained_features(backbone)
    features = features.to_empty(device="cpu")
    kept = {
        key.removeprefix("features."): value
        for key, value in state.items()
        if not key.startswith("classifier.")
    }
    load_strictly(features, kept, path, what, source)
    return _fixed(features)


def _fixed(features: nn.Sequential) -> nn.Sequential:
    """Freeze, and replace in-place layers, which overwrite what a tap has returned."""
    for layer in features.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features.requires_grad_(False).eval()

"""Random ImageNet networks in torchvision's layout and under its file names."""

from pathlib import Path

import torch
import torchvision
from torch import nn

from osdface_core.losses.features import BACKBONES


def save_random_backbones(folder: Path, *names: str) -> Path:
    """Write one weight file per backbone name (convolutional part only) and return the folder."""
    torch.manual_seed(0)
    for name in names:
        spec = BACKBONES[name]
        with torch.device("meta"):
            features = getattr(torchvision.models, spec.builder)(weights=None).features
        features = features.to_empty(device="cpu")
        for layer in features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
        state = {f"features.{key}": value for key, value in features.state_dict().items()}
        torch.save(state, folder / spec.file)
    return folder

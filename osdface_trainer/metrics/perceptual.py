"""Perceptual distances: LPIPS and DISTS on VGG16 or AlexNet, and the SqueezeNet distance that runs
everywhere.

The networks and formulas are those of the losses (`osdface_trainer.losses`): here they judge, frozen, per
image.
"""

import torch
from torch import Tensor

from ..losses.edge_dists import StructureTexture
from ..losses.features import backbone_spec
from ..losses.perceptual import PerceptualLoss
from .base import Column, Metric, WeightFile, WeightFinder

_TORCHVISION = "torchvision (https://download.pytorch.org/models)"
SQUEEZENET = WeightFile(
    (backbone_spec("squeezenet").file, "squeezenet1_0_deepcompressed_fp16.pth"),
    "SqueezeNet 1.0",
    _TORCHVISION,
)
VGG16 = WeightFile((backbone_spec("vgg16").file,), "VGG16", _TORCHVISION)
ALEXNET = WeightFile((backbone_spec("alexnet").file,), "AlexNet", _TORCHVISION)


NETWORKS = {
    "squeezenet": (
        SQUEEZENET,
        "SqueezeNet 1.0, squared distance of unit-length features, mean of seven levels",
    ),
    "vgg16": (VGG16, "LPIPS 0.1 on VGG16 (VQFR's script)"),
    "alexnet": (ALEXNET, "LPIPS 0.1 on AlexNet (pyiqa's default)"),
}


def feature_distance(name: str, backbone: str, finder: WeightFinder, device: torch.device) -> Metric:
    """Load the distance of unit-length features, squared and averaged over positions, at every level.

    With "vgg16" and "alexnet" the levels carry LPIPS' learned weights: that is LPIPS (Zhang et al. 2018),
    version 0.1. With "squeezenet" (1.0, no learned weights exist) all channels count 1 and the seven levels
    are averaged.

    Args:
        name: of the column.
        backbone: a key of `NETWORKS`.
    """
    file, about = NETWORKS[backbone]
    net = PerceptualLoss(backbone, finder.find(file)).to(device)

    def features(images: Tensor) -> list[Tensor]:
        return net.features((2.0 * images - 1.0).contiguous(memory_format=torch.channels_last))

    return Metric((Column(name, "lower", about, digits=4),), net.compare, features)


def dists(finder: WeightFinder, device: torch.device) -> Metric:
    """Load DISTS (Ding et al. 2020) on RGB in [0,1] at the size of the images."""
    net = StructureTexture("vgg16", finder.find(VGG16)).to(device)
    return Metric((Column("dists", "lower", "DISTS on VGG16, RGB in [0,1]", digits=4),), net)

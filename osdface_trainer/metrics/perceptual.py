"""Perceptual distances: LPIPS and DISTS on VGG16 or AlexNet, and the SqueezeNet distance that runs
everywhere.

The networks and formulas are those of the losses (`osdface_trainer.losses`): here they judge, frozen, per
image.
"""

import torch
from torch import Tensor, nn

from ..losses.edge_dists import StructureTexture
from ..losses.features import backbone_spec
from ..losses.perceptual import PerceptualLoss
from .base import Column, WeightFile, WeightFinder

_TORCHVISION = "torchvision (https://download.pytorch.org/models)"
SQUEEZENET = WeightFile(
    (backbone_spec("squeezenet").file, "squeezenet1_0_deepcompressed_fp16.pth"),
    "SqueezeNet 1.0",
    _TORCHVISION,
)
VGG16 = WeightFile((backbone_spec("vgg16").file,), "VGG16", _TORCHVISION)
ALEXNET = WeightFile((backbone_spec("alexnet").file,), "AlexNet", _TORCHVISION)


class FeatureDistance:
    """Distance of unit-length features, squared and averaged over positions, at every level of one network.

    With "vgg16" and "alexnet" the levels carry LPIPS' learned weights: that is LPIPS (Zhang et al. 2018),
    version 0.1. With "squeezenet" (1.0, no learned weights exist) all channels count 1 and the seven levels
    are averaged.
    """

    needs_reference = True

    def __init__(self, net: PerceptualLoss, column: Column) -> None:
        self.net = net
        self.columns = (column,)

    @classmethod
    def squeezenet(cls, finder: WeightFinder, device: torch.device) -> "FeatureDistance":
        about = "SqueezeNet 1.0, squared distance of unit-length features, mean of seven levels, unweighted"
        net = PerceptualLoss("squeezenet", finder.find(SQUEEZENET))
        return cls(net.to(device), Column("perceptual", "lower", about, digits=4))

    @classmethod
    def lpips_vgg(cls, finder: WeightFinder, device: torch.device) -> "FeatureDistance":
        net = PerceptualLoss("vgg16", finder.find(VGG16))
        return cls(
            net.to(device), Column("lpips_vgg", "lower", "LPIPS 0.1 on VGG16 (VQFR's script)", digits=4)
        )

    @classmethod
    def lpips_alex(cls, finder: WeightFinder, device: torch.device) -> "FeatureDistance":
        net = PerceptualLoss("alexnet", finder.find(ALEXNET))
        return cls(
            net.to(device), Column("lpips_alex", "lower", "LPIPS 0.1 on AlexNet (pyiqa's default)", digits=4)
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """Extract one (B,C,h,w) map per level."""
        signed = (2.0 * images - 1.0).contiguous(memory_format=torch.channels_last)
        return self.net.features(signed)

    def compare(self, image: list[Tensor], reference: list[Tensor]) -> dict[str, Tensor]:
        return {self.columns[0].name: self.net.compare(image, reference)}


class Dists:
    """DISTS (Ding et al. 2020) on RGB in [0,1] at the size of the images."""

    columns = (Column("dists", "lower", "DISTS on VGG16, RGB in [0,1]", digits=4),)
    needs_reference = True

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @classmethod
    def load(cls, finder: WeightFinder, device: torch.device) -> "Dists":
        return cls(StructureTexture("vgg16", finder.find(VGG16)).to(device))

    def features(self, images: Tensor) -> Tensor:
        return images

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"dists": self.net(image, reference)}

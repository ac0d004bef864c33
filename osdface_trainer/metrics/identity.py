"""Identity: is it still the same person? The angle between face embeddings of the image and its reference."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.models.identity import MOBILEFACENET_FILE, MOBILEFACENET_SOURCE, embed, load_identity
from osdface_core.weights import read_state_dict

from .arcface_resnet import ArcFaceResNet18
from .base import Column, WeightFile, WeightFinder, load_frozen

MOBILEFACENET = WeightFile((MOBILEFACENET_FILE,), "face identity (MobileFaceNet)", MOBILEFACENET_SOURCE)
ARCFACE = WeightFile(
    ("resnet18_110.pth",),
    "ArcFace ResNet-18",
    "ronghuaiyang/arcface-pytorch, or VQFR's metric_weights folder",
)
NEARLY_IDENTICAL = 1.0
"""[degrees] pairs closer than this leave the Deg. mean, as in the papers' script."""


def angle_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Compute (B,D), (B,D) -> (B,) angle in degrees, 0…180; float64, for arccos near 1."""
    return torch.rad2deg(torch.arccos(cosine(a, b).clamp(-1, 1)))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute (B,D), (B,D) -> (B,) cosine in float64 on the CPU (MPS has no float64)."""
    return F.cosine_similarity(a.cpu().double(), b.cpu().double(), dim=1)


class FaceIdentity:
    """Cosine and angle between MobileFaceNet embeddings of the fixed ArcFace crop of an FFHQ-aligned face."""

    columns = (
        Column("identity_cos", "higher", "cosine of MobileFaceNet embeddings, FFHQ crop to 112 px"),
        Column("identity_deg", "lower", "the angle of that cosine", "°", 2),
    )
    needs_reference = True

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @classmethod
    def load(cls, finder: WeightFinder, device: torch.device) -> "FaceIdentity":
        return cls(load_identity(finder.find(MOBILEFACENET), device))

    def features(self, images: Tensor) -> Tensor:
        """Extract (B,D) embeddings."""
        return embed(self.net, images)

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"identity_cos": cosine(image, reference), "identity_deg": angle_degrees(image, reference)}


class ArcFaceDegrees:
    """Deg. of the papers: the whole picture in grey, 128×128, through ArcFace ResNet-18.

    The papers' script reads with OpenCV, so grey is BT.601 rounded to 8 bits and the resize is bilinear
    without antialiasing, again rounded to 8 bits.
    """

    columns = (
        Column(
            "deg", "lower", "angle of ArcFace ResNet-18 embeddings, whole image, grey, 128 px; <1° left out",
            "°", 2, drop_below=NEARLY_IDENTICAL,
        ),
    )  # fmt: skip
    needs_reference = True

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self.net = net.to(device)

    @classmethod
    def load(cls, finder: WeightFinder, device: torch.device) -> "ArcFaceDegrees":
        path = finder.find(ARCFACE)
        names = read_state_dict(path, ARCFACE.what, ARCFACE.source)
        gated = any(".se." in name for name in names)
        return cls(load_frozen(ArcFaceResNet18(gated), path, ARCFACE), device)

    def features(self, images: Tensor) -> Tensor:
        """Extract (B,512) embeddings."""
        weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        grey = (255.0 * (images * weights).sum(dim=1, keepdim=True)).round()
        small = F.interpolate(grey, (128, 128), mode="bilinear", align_corners=False).round()
        return self.net((small - 127.5) / 127.5)

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"deg": angle_degrees(image, reference)}

"""Identity: is it still the same person? The angle between face embeddings of the image and its reference."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.color import luma
from osdface_core.models.identity import MOBILEFACENET_FILE, MOBILEFACENET_SOURCE, embed, load_identity

from .arcface_resnet import ArcFaceResNet18
from .base import Column, Metric, WeightFile, WeightFinder, load_frozen

MOBILEFACENET = WeightFile((MOBILEFACENET_FILE,), "face identity (MobileFaceNet)", MOBILEFACENET_SOURCE)
ARCFACE = WeightFile(
    ("resnet18_110.pth",),
    "ArcFace ResNet-18",
    "ronghuaiyang/arcface-pytorch, or VQFR's metric_weights folder",
)
NEARLY_IDENTICAL = 1.0
"""[degrees] pairs closer than this leave the Deg. mean, as in the papers' script."""
DEG = Column(
    "deg", "lower", "angle of ArcFace ResNet-18 embeddings, whole image, grey, 128 px; <1° left out",
    "°", 2, drop_below=NEARLY_IDENTICAL,
)  # fmt: skip


def angle_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Compute (B,D), (B,D) -> (B,) angle in degrees, 0…180; float64, for arccos near 1."""
    return torch.rad2deg(torch.arccos(cosine(a, b).clamp(-1, 1)))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute (B,D), (B,D) -> (B,) cosine in float64 on the CPU (MPS has no float64)."""
    return F.cosine_similarity(a.cpu().double(), b.cpu().double(), dim=1)


def face_identity(finder: WeightFinder, device: torch.device) -> Metric:
    """Load cosine and angle between MobileFaceNet embeddings of the fixed ArcFace crop of an aligned face."""
    columns = (
        Column("identity_cos", "higher", "cosine of MobileFaceNet embeddings, FFHQ crop to 112 px"),
        Column("identity_deg", "lower", "the angle of that cosine", "°", 2),
    )
    net = load_identity(finder.find(MOBILEFACENET), device)
    return Metric(columns, lambda a, b: torch.stack([cosine(a, b), angle_degrees(a, b)]), partial(embed, net))


def arcface_degrees(finder: WeightFinder, device: torch.device) -> Metric:
    """Load Deg. of the papers: the whole picture in grey, 128×128, through ArcFace ResNet-18."""
    net = load_frozen(ArcFaceResNet18(), finder.find(ARCFACE), ARCFACE).to(device)
    return Metric((DEG,), angle_degrees, partial(_embed_grey, net))


def _embed_grey(net: nn.Module, images: Tensor) -> Tensor:
    """Extract (B,512) embeddings.

    The papers' script reads with OpenCV, so grey is BT.601 rounded to 8 bits and the resize is bilinear
    without antialiasing, again rounded to 8 bits.
    """
    grey = (255.0 * luma(images)).round()
    small = F.interpolate(grey, (128, 128), mode="bilinear", align_corners=False).round()
    return net((small - 127.5) / 127.5)

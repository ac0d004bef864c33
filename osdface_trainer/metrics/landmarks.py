"""LMD: how far facial landmarks of the restored image lie from those of its reference, in pixels at 512."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.choices import Effort

from .base import Column, Metric, WeightFile, WeightFinder, load_frozen

AWING = WeightFile(
    ("alignment_WFLW_4HG.pth",),
    "Adaptive-Wing FAN, 98 landmarks",
    "the releases of xinntao/facexlib (v0.1.0)",
)


SMALLEST = 0.2
"""An aligned face is larger than this fraction of its picture; a detector need not look for smaller ones."""


def mean_distance(points: Tensor, references: Tensor) -> Tensor:
    """Compute (B,L,2), (B,L,2) -> (B,): mean Euclidean distance of the landmarks, in their unit."""
    return (points - references).norm(dim=2).mean(dim=1)


def heatmap_points(heatmaps: Tensor) -> Tensor:
    """Decode (B,L,h,w) -> (B,L,2) x and y [heatmap px, the first pixel's centre is ½].

    The peak, moved by a quarter pixel towards the higher neighbour on each axis; at the border it stays.
    facexlib's own decoding does the same (but no longer runs: it needs numpy before 1.24).
    """
    h, w = heatmaps.shape[2:]
    peak = heatmaps.flatten(2).argmax(dim=2)
    x, y = peak % w, peak // w

    def level(column: Tensor, row: Tensor) -> Tensor:
        return heatmaps.flatten(2).gather(2, (row * w + column)[..., None])[..., 0]

    right, left = level((x + 1).clamp(max=w - 1), y), level((x - 1).clamp(min=0), y)
    below, above = level(x, (y + 1).clamp(max=h - 1)), level(x, (y - 1).clamp(min=0))
    inside_x, inside_y = (x > 0) & (x < w - 1), (y > 0) & (y < h - 1)
    shift = torch.stack([(right - left).sign() * inside_x, (below - above).sign() * inside_y], dim=2)
    return torch.stack([x, y], dim=2) + 0.25 * shift + 0.5


def awing_landmarks(finder: WeightFinder, device: torch.device) -> Metric:
    """Load LMD of the papers: 98 WFLW landmarks of facexlib's 4-hourglass FAN.

    Source: VQFR's script; the points come in pixels of the given picture.
    """
    path = finder.find(AWING)
    from facexlib.alignment import FAN

    net: nn.Module = FAN(num_modules=4, num_landmarks=98, device=str(device))
    column = Column("lmd", "lower", "mean distance of 98 WFLW landmarks (AWing FAN)", "px", 2)
    return Metric((column,), mean_distance, partial(_awing_points, load_frozen(net, path, AWING).to(device)))


def _awing_points(net: nn.Module, images: Tensor) -> Tensor:
    """Find (B,98,2) landmarks on a 256 px copy of the picture."""
    small = F.interpolate((images * 255.0).round(), (256, 256), mode="bilinear", align_corners=False)
    heatmaps = net(small.round() / 255.0)[0][-1][:, :-1]  # the last channel is the face boundary
    scale = torch.tensor([images.shape[3], images.shape[2]], device=images.device) / heatmaps.shape[-1]
    return (heatmap_points(heatmaps) * scale).cpu()


def five_points(image: Tensor, effort: Effort = "auto") -> Tensor:
    """Find the eyes, nose and mouth corners of the face nearest to the middle with MTCNN.

    Args:
        image: (3,H,W) float in [0,1].
    Returns:
        (5,2) float64 [px], NaN where no face is found.
    """
    from osdface_core.faces import detect

    middle = torch.tensor([image.shape[2], image.shape[1]]) / 2
    faces = detect(image, "mtcnn", min_face=SMALLEST * image.shape[2], effort=effort)
    points = [torch.as_tensor(face.landmarks, dtype=torch.float64) for face in faces]
    nothing = torch.full((5, 2), torch.nan, dtype=torch.float64)
    return min(points, key=lambda five: float((five.mean(dim=0) - middle).norm()), default=nothing)


MTCNN = Metric(
    (
        Column(
            "lmd_mtcnn5", "lower", "mean distance of MTCNN's five landmarks (not the papers' LMD)", "px", 2
        ),
    ),
    mean_distance,
    lambda images: torch.stack([five_points(image, "fast") for image in images]),
)
"""Five-point stand-in for LMD that works offline; NaN where no face is found."""

"""MTCNN face detection: the cascade of three networks, batched, on any device.

Source: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks"
(2016): a proposal net over an image pyramid, a refinement net on 24 px patches, an output net with five
landmarks on 48 px patches.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DetectorError
from .mtcnn_nets import Stage, output_net, proposal_net, refinement_net
from .nms import overlaps, unlike_better

WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "mtcnn.safetensors"
"""Made from the wheel of `mtcnn` 1.0.0 (MIT) by `tools/convert_mtcnn.py`."""
STEP = 0.709
"""Ratio of neighbouring pyramid levels: halves the area."""
CELL = 12
"""Window of the proposal net [px]."""
CHUNK = 2048
"""Patches per forward pass of the refinement nets; bounds memory in crowds."""


class Mtcnn(nn.Module):
    """The cascade. Call it on a batch of equally large images.

    Args:
        thresholds: least face probability after each of the three nets; low, because doubtful faces get a
            second look.
    """

    smallest = 20.0
    """Smallest face that is found reliably [px]."""
    sure = 0.97
    """Score below which a face deserves a second look."""

    def __init__(self, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)) -> None:
        super().__init__()
        self.thresholds = thresholds
        self.pnet, self.rnet, self.onet = proposal_net(), refinement_net(), output_net()
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> Mtcnn:
        """Build the cascade with the weights that lie in the package.

        Raises:
            DetectorError: if their file is missing or damaged.
        """
        net = cls()
        try:
            net.load_state_dict(load_file(WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:160]
            raise DetectorError(
                f"MTCNN weights {WEIGHTS} cannot be read ({reason}): install OSDFace again"
            ) from error
        return net.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, images: Tensor, min_size: float = 20.0) -> list[np.ndarray]:
        """Find faces.

        Args:
            images: (B, 3, H, W) float, unit range.
            min_size: smallest face to look for [px]; at least 12.
        Returns:
            Per image an (n, 15) float32 array: box x0 y0 x1 y1, score, five landmarks x y [px, pixel centres
            at whole numbers], best first.
        """
        signed = (images.float() * 255 - 127.5) / 128
        levels = patch_levels(signed)
        index, boxes = self._propose(levels, max(min_size, CELL))
        index, boxes = self._refine(levels, index, boxes)
        index, rows = self._output(levels, index, boxes)
        index = index.cpu().numpy()
        rows = rows.cpu().numpy()
        return [rows[index == number] for number in range(images.shape[0])]

    def _propose(self, levels: list[Tensor], min_size: float) -> tuple[Tensor, Tensor]:
        """P-Net over the pyramid: image index (n,) and square boxes (n, 4) [px edges]."""
        images = levels[0]
        height, width = images.shape[-2:]
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        scale = CELL / min_size
        while min(height, width) * scale >= CELL:
            size = (math.ceil(height * scale), math.ceil(width * scale))
            offsets, probability = self.pnet(shrink(levels, size))
            found.append(
                _windows(offsets, probability[:, 1], self.thresholds[0], (width / size[1], height / size[0]))
            )
            scale *= STEP
        if not found:
            return torch.zeros(0, dtype=torch.long, device=images.device), images.new_zeros(0, 4)
        index, boxes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        keep = _suppress(boxes, scores, index, 0.7)
        return index[keep], square(boxes[keep])

    def _refine(self, levels: list[Tensor], index: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """R-Net: drop most proposals, correct the rest; returns square boxes."""
        offsets, probability = self._run(self.rnet, levels, index, boxes, 24)
        good = probability[:, 1] > self.thresholds[1]
        index, boxes, scores = index[good], _shift(boxes[good], offsets[good]), probability[good, 1]
        keep = _suppress(boxes, scores, index, 0.7)
        return index[keep], square(boxes[keep])

    def _output(self, levels: list[Tensor], index: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """O-Net: final boxes, scores and landmarks as rows of 15."""
        offsets, points, probability = self._run(self.onet, levels, index, boxes, 48)
        good = probability[:, 1] > self.thresholds[2]
        index, boxes, offsets, points = index[good], boxes[good], offsets[good], points[good]
        scores = probability[good, 1]
        sides = boxes[:, 2:] - boxes[:, :2]
        xy = torch.stack((points[:, :5], points[:, 5:]), dim=-1) * sides[:, None] + boxes[:, None, :2]
        # Boxes and patches live on pixel edges; the rows promise pixel centres at whole numbers.
        rows = torch.cat((_shift(boxes, offsets) - 0.5, scores[:, None], (xy - 0.5).flatten(1)), dim=1)
        keep = _suppress(rows[:, :4], scores, index, 0.5)
        index, rows = index[keep], rows[keep]
        keep = drop_nested(index, rows)
        return index[keep], rows[keep]

    def _run(self, net: Stage, levels: list[Tensor], index: Tensor, boxes: Tensor, size: int) -> list[Tensor]:
        """Cut patches and run `net` on them in chunks."""
        outputs = [
            net(cut_patches(levels, index[start : start + CHUNK], boxes[start : start + CHUNK], size))
            for start in range(0, max(len(boxes), 1), CHUNK)
        ]
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def shrink(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Resize to `size` from the smallest of the halved `levels` that is as large: quick, no aliasing."""
    fits = [image for image in levels if image.shape[-2] >= size[0]]
    return F.interpolate(fits[-1] if fits else levels[0], size, mode="bilinear", align_corners=False)


def patch_levels(images: Tensor) -> list[Tensor]:
    """Halve down to about 64 px, so that patches of big faces are cut without aliasing."""
    levels = [images]
    while min(levels[-1].shape[-2:]) >= 128:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
    return levels


def cut_patches(levels: list[Tensor], index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut (n, 3, size, size) patches of `boxes` [px edges], each from the level where it spans 1-2 sizes."""
    from torchvision.ops import roi_align

    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    choice = (sides / size).clamp(min=1).log2().floor().long().clamp(max=len(levels) - 1)
    patches = boxes.new_zeros(len(boxes), 3, size, size)
    for number, image in enumerate(levels):
        rows = torch.nonzero(choice == number).flatten()
        if len(rows):
            rois = torch.cat((index[rows, None].to(boxes.dtype), boxes[rows]), dim=1)
            patches[rows] = roi_align(image, rois, size, 0.5**number, sampling_ratio=2, aligned=True)
    return patches


def square(boxes: Tensor) -> Tensor:
    """Grow the shorter side around the centre."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat((middle - half, middle + half), dim=1)


def drop_nested(index: Tensor, rows: Tensor, limit: float = 0.7) -> Tensor:
    """Choose the rows to keep (best first): those not mostly inside a better one of the same image.

    The overlap is measured against the smaller box, which catches an eye-to-chin box within the right one.
    """
    boxes, image = rows[:, :4].cpu().numpy(), index.cpu().numpy()
    inner, area = overlaps(boxes)
    nested = inner > limit * np.minimum(area[:, None], area[None, :])
    kept = unlike_better(nested & (image[:, None] == image[None, :]))
    return torch.tensor(kept, dtype=torch.long, device=rows.device)


def _suppress(boxes: Tensor, scores: Tensor, index: Tensor, overlap: float) -> Tensor:
    """Rows to keep, best first, after non-maximum suppression within each image."""
    from torchvision.ops import batched_nms  # late: a second of start-up

    return batched_nms(boxes, scores, index, overlap)


def _windows(
    offsets: Tensor, probability: Tensor, threshold: float, ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn P-Net maps into image index, boxes [px edges of the full image] and scores, thinned per level."""
    index, row, column = torch.nonzero(probability > threshold, as_tuple=True)
    scores = probability[index, row, column]
    corner = torch.stack((column, row), dim=1) * 2.0
    cells = torch.cat((corner, corner + CELL), dim=1)
    boxes = cells + offsets[index, :, row, column] * CELL
    boxes = boxes * boxes.new_tensor([ratio[0], ratio[1]] * 2)
    keep = _suppress(boxes, scores, index, 0.5)
    return index[keep], boxes[keep], scores[keep]


def _shift(boxes: Tensor, offsets: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + offsets * sides

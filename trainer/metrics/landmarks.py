"""LMD: how far facial landmarks of the restored image lie from those of its reference, in pixels at 512."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Column, WeightFile, WeightFinder, load_frozen

AWING = WeightFile(
    ("alignment_WFLW_4HG.pth",),
    "Adaptive-Wing FAN, 98 landmarks",
    "the releases of xinntao/facexlib (v0.1.0)",
)


def mean_distance(points: Tensor, references: Tensor) -> Tensor:
    """(B,L,2), (B,L,2) -> (B,): mean Euclidean distance over the landmarks, in the unit of the points."""
    return (points - references).norm(dim=2).mean(dim=1)


class AwingLandmarks:
    """LMD of the papers: 98 WFLW landmarks of facexlib's 4-hourglass FAN, fed a 256 px copy of the picture.

    Source: recipe.md section 5 (VQFR's script); the points come in pixels of the given picture.
    """

    columns = (Column("lmd", "lower", "mean distance of 98 WFLW landmarks (AWing FAN)", "px", 2),)
    needs_reference = True

    def __init__(self, net: Any) -> None:
        self.net = net

    @classmethod
    def load(cls, finder: WeightFinder, device: torch.device) -> "AwingLandmarks":
        path = finder.find(AWING)
        from facexlib.alignment import FAN

        net: nn.Module = FAN(num_modules=4, num_landmarks=98, device=str(device))
        return cls(load_frozen(net, path, AWING).to(device))

    def features(self, images: Tensor) -> Tensor:
        """(B,98,2) landmarks."""
        pixels = (
            (images * 255.0).round().byte().permute(0, 2, 3, 1).flip(3).cpu().numpy()
        )  # facexlib wants BGR
        with torch.no_grad():
            return torch.from_numpy(
                np.stack([self.net.get_landmarks(np.ascontiguousarray(one)) for one in pixels])
            )

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"lmd": mean_distance(image, reference)}


class MtcnnLandmarks:
    """Five-point stand-in for LMD that works offline; not comparable with the papers' LMD.

    Of several faces the one nearest to the middle of the picture counts; NaN where none is found.
    """

    columns = (
        Column(
            "lmd_mtcnn5", "lower", "mean distance of MTCNN's five landmarks (not the papers' LMD)", "px", 2
        ),
    )
    needs_reference = True

    def __init__(self) -> None:
        from osdface_core.faces import detect

        self.detect = detect

    def features(self, images: Tensor) -> Tensor:
        """(B,5,2) landmarks, NaN where no face is found."""
        return torch.stack([self._landmarks(image) for image in images])

    def _landmarks(self, image: Tensor) -> Tensor:
        middle = np.array([image.shape[2], image.shape[1]]) / 2
        faces = self.detect(image, "mtcnn")
        points = [np.asarray(face.landmarks, dtype=np.float64) for face in faces]
        if not points:
            return torch.full((5, 2), torch.nan, dtype=torch.float64)
        return torch.from_numpy(
            min(points, key=lambda five: float(np.linalg.norm(five.mean(axis=0) - middle)))
        )

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"lmd_mtcnn5": mean_distance(image, reference)}

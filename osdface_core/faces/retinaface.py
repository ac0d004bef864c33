"""RetinaFace with the weights that facexlib publishes, found locally or fetched once and checked.

Source: Deng et al., "RetinaFace: Single-shot Multi-level Face Localisation in the Wild" (CVPR 2020);
anchors and decoding as in the PyTorch release that facexlib's weights come from.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DetectorError
from ..pickles import read_pickle
from .retinaface_nets import Network

MEAN_BGR = (104.0, 117.0, 123.0)
"""Subtracted from 0..255 pixels in BGR order, as in training."""
STEPS = (8, 16, 32)
ANCHORS = ((16, 32), (64, 128), (256, 512))
"""Stride and anchor sides of the three feature maps [px]."""
VARIANCE = (0.1, 0.2)
"""Scale of predicted shifts and of predicted log sizes."""


@dataclass(frozen=True)
class Release:
    """One published weight file: its network in `retinaface_nets.VARIANTS`, file, address and checksum."""

    network: str
    file: str
    sha256: str

    @property
    def url(self) -> str:
        """Where facexlib publishes it."""
        return f"https://github.com/xinntao/facexlib/releases/download/v0.1.0/{self.file}"


RELEASES = {
    "retinaface_resnet50": Release(
        "resnet50",
        "detection_Resnet50_Final.pth",
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
    ),
    "retinaface_mobile0.25": Release(
        "mobile0.25",
        "detection_mobilenet0.25_Final.pth",
        "2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
    ),
}
"""In the order in which `auto` prefers them."""


class RetinaFace(nn.Module):
    """The network plus anchors, decoding and non-maximum suppression. Call it on a batch of equal images.

    Args:
        network: with the weights of one of the `RELEASES`.
        threshold: least face probability; low, because doubtful faces get a second look.
    """

    smallest = 16.0
    """Smallest face that is found reliably [px]."""
    sure = 0.99
    """Score below which a face deserves a second look."""

    def __init__(self, network: Network, threshold: float = 0.5) -> None:
        super().__init__()
        self.network, self.threshold = network, threshold
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor, min_size: float = 12.0) -> list[np.ndarray]:
        """Find faces.

        Args:
            images: (B, 3, H, W) float, unit range, RGB.
            min_size: smaller faces are left out [px].
        Returns:
            Per image an (n, 15) float32 array: box x0 y0 x1 y1, score, five landmarks x y [px, pixel centres
            at whole numbers], best first.
        """
        from torchvision.ops import batched_nms  # late: a second of start-up

        mean = images.new_tensor(MEAN_BGR).view(1, 3, 1, 1)
        shifts, classes, points = self.network(images.flip(1).float() * 255 - mean)
        priors = make_priors(images.shape[-2], images.shape[-1], images.device)
        index, row = torch.nonzero(classes[..., 1] > self.threshold, as_tuple=True)
        scores = classes[index, row, 1]
        rows = torch.cat(decode(shifts[index, row], points[index, row], priors[row], scores), dim=1)
        keep = batched_nms(rows[:, :4], scores, index, 0.4)
        index, rows = index[keep].cpu().numpy(), rows[keep].cpu().numpy()
        sides = np.maximum(rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1])
        return [rows[(index == number) & (sides >= min_size)] for number in range(images.shape[0])]


def make_priors(height: int, width: int, device: torch.device) -> Tensor:
    """List the anchors (n, 4): centre x, centre y, width, height [px edges], in the order of the outputs."""
    parts = []
    for step, sides in zip(STEPS, ANCHORS, strict=True):
        y = (torch.arange(-(-height // step), device=device) + 0.5) * step
        x = (torch.arange(-(-width // step), device=device) + 0.5) * step
        side = torch.tensor(sides, dtype=torch.float32, device=device)
        grid = torch.meshgrid(y, x, side, indexing="ij")
        parts.append(torch.stack((grid[1], grid[0], grid[2], grid[2]), dim=-1).view(-1, 4))
    return torch.cat(parts)


def decode(shifts: Tensor, points: Tensor, priors: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn regressions into boxes (n, 4), scores (n, 1), landmarks (n, 10) [px, centres at whole numbers]."""
    centre, side = priors[:, :2], priors[:, 2:]
    middle = centre + shifts[:, :2] * VARIANCE[0] * side
    half = side * torch.exp(shifts[:, 2:] * VARIANCE[1]) / 2
    marks = centre[:, None] + points.view(-1, 5, 2) * VARIANCE[0] * side[:, None]
    return torch.cat((middle - half, middle + half), dim=1) - 0.5, scores[:, None], marks.flatten(1) - 0.5


def cache_folder() -> Path:
    """Return where fetched weights are kept: $OSDFACE_HOME, or ~/.cache/osdface."""
    return Path(os.environ.get("OSDFACE_HOME") or Path.home() / ".cache" / "osdface")


def weight_folders(detector_dir: str | Path | None = None) -> list[Path]:
    """List where weights are looked for: the given folder, the cache, facexlib's own where installed."""
    folders = [Path(detector_dir).expanduser()] if detector_dir else []
    folders.append(cache_folder())
    spec = importlib.util.find_spec("facexlib")
    if spec and spec.submodule_search_locations:
        folders += [Path(root) / "weights" for root in spec.submodule_search_locations]
    return folders


def find_local(name: str, detector_dir: str | Path | None = None) -> Path | None:
    """Find the weight file of `name` on this machine."""
    paths = [folder / RELEASES[name].file for folder in weight_folders(detector_dir)]
    return next((path for path in paths if path.is_file()), None)


def load(name: str, detector_dir: str | Path | None, device: torch.device) -> RetinaFace:
    """Build a detector: weights from `detector_dir`, the cache, or fetched once into one of them.

    Raises:
        DetectorError: if the weights cannot be fetched or read.
    """
    path = find_local(name, detector_dir)
    if path is None:
        folder = Path(detector_dir).expanduser() if detector_dir else cache_folder()
        from .download import fetch  # late: a copy that may not use the network comes without that file

        path = fetch(RELEASES[name].url, RELEASES[name].sha256, folder)
    return RetinaFace(load_network(RELEASES[name], path)).to(device)


def load_network(release: Release, path: Path) -> Network:
    """Build the network with the weights of `path`; only tensors are unpickled."""
    network = Network(release.network)
    try:
        state = read_pickle(path)
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except Exception as error:  # torch raises a dozen kinds for damaged files
        reason = str(error).strip().split("\n")[0][:160]
        raise DetectorError(
            f"detector weights {path} cannot be read ({reason}): "
            f"delete the file and get it again from {release.url}"
        ) from error
    return network

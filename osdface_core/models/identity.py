"""Who is in the picture: a frozen face recognition network and the cosine between two faces.

Used for identity scores at inference and, by the trainer, for the identity loss (OSDFace Eq. 13).
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..weights import find_weights, load_strictly, read_state_dict
from .identity_nets import IResNet, MobileFaceNet

MOBILEFACENET_FILE = "mobilefacenet.pt"
MOBILEFACENET_SOURCE = "https://github.com/foamliu/MobileFaceNet (Apache-2.0)"
ARCFACE_SOURCE = "facexlib (recognition_arcface_ir_se50.pth) or InsightFace arcface_torch (backbone.pth)"

CROP_SIZE = 112
# Least-squares similarity from the FFHQ-512 five-point template to ArcFace's 112 template;
# the rotation (-0.009 degrees) is left out. 112 = SCALE * 512-pixel coordinate + OFFSET, pixel centres at
# integers.
_CROP_SCALE = 0.29209
_CROP_OFFSET_X, _CROP_OFFSET_Y = -18.93, -17.86

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class IdentityNet(nn.Module):
    """A frozen recognition network and its input normalisation; always in eval mode.

    Args:
        network: (N, 3, 112, 112) normalised RGB → (N, D).
        mean, std: the network's normalisation of `unit` RGB.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "IdentityNet":
        """Stay in eval mode whatever the parent does: batch statistics must not move."""
        del mode
        return super().train(False)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed (B, 3, 112, 112) unit RGB as (B, D) of length 1: picture plus mirror image, normalised."""
        with torch.autocast(crops.device.type, enabled=False):  # bf16 loses the third digit of the cosine
            x = (crops.float() - self.mean) / self.std
            both = self.network(torch.cat([x, x.flip(-1)])).float()
            return F.normalize(both[: len(x)] + both[len(x) :], dim=1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, which may need gradients
def _resample(size: int, offset: float, device: torch.device) -> Tensor:
    """(112, size) matrix that crops and shrinks one axis of a face aligned to FFHQ-512.

    Each output pixel is a triangle-weighted mean (anti-aliased bilinear); rows sum to 1. Outside the image
    the nearest edge pixels count, which happens only if the face is not aligned as promised.
    """
    step = size / 512 / _CROP_SCALE
    centres = (torch.arange(CROP_SIZE, dtype=torch.float64) - offset) / _CROP_SCALE
    centres = (centres + 0.5) * (size / 512)  # now pixel edges at integers
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    weights = (1 - (pixels[None] - centres[:, None]).abs() / max(step, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def face_crop_112(faces: Tensor) -> Tensor:
    """Cut the ArcFace crop out of FFHQ-aligned faces: one fixed, differentiable resampling.

    Args:
        faces: (B, 3, H, W), unit, the whole FFHQ-aligned crop at any size (512 × 512 usually).
    Returns:
        (B, 3, 112, 112) float32, unit, anti-aliased (the shrinking factor is 3.42 at 512).
    Source: InsightFace's and facexlib's templates; the fit leaves up to 2.5 px at 112.
    """
    rows = _resample(faces.shape[-2], _CROP_OFFSET_Y, faces.device)
    columns = _resample(faces.shape[-1], _CROP_OFFSET_X, faces.device)
    with torch.autocast(faces.device.type, enabled=False):
        return rows @ faces.float() @ columns.T


def embed(net: nn.Module, faces: Tensor) -> Tensor:
    """Compute identity vectors of FFHQ-aligned faces.

    Args:
        net: from `load_identity`.
        faces: (B, 3, H, W), unit, any size.
    Returns:
        (B, D) float32 of length 1 (D is 128 for MobileFaceNet, 512 for ArcFace); gradients reach `faces`.
    """
    return net(face_crop_112(faces))


def similarity(net: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of identity between two batches of FFHQ-aligned faces.

    Args:
        a, b: (B, 3, H, W), unit; their sizes may differ.
    Returns:
        (B,) in [-1, 1]. With MobileFaceNet different people stay below about 0.5, the same person is above
        0.65.
    """
    return (embed(net, a) * embed(net, b)).sum(1)


def load_identity(path: str | Path | None = None, device: torch.device | str = "cpu") -> IdentityNet:
    """Load a recognition network; its kind follows from the tensor names in the file.

    Args:
        path: MobileFaceNet (`mobilefacenet.pt`), facexlib's ArcFace IR/IR-SE
            (`recognition_arcface_ir_se50.pth`; needs facexlib), InsightFace's IResNet (`backbone.pth`), or a
            folder with `mobilefacenet.pt`. None looks in torch's cache. Nothing is downloaded.
    Raises:
        CheckpointError: if the file is missing, unreadable, or of none of these kinds.
    """
    file = find_weights(path, MOBILEFACENET_FILE, "face identity (MobileFaceNet)", MOBILEFACENET_SOURCE)
    state = read_state_dict(file, "face identity", MOBILEFACENET_SOURCE)
    if "gdconv.depthwise.weight" in state:
        load_strictly(network := MobileFaceNet(), state, file, "MobileFaceNet", MOBILEFACENET_SOURCE)
        return IdentityNet(network, IMAGENET_MEAN, IMAGENET_STD).to(device)
    network = _build_arcface(state, file)
    load_strictly(network, state, file, "ArcFace", ARCFACE_SOURCE)
    return IdentityNet(network, (0.5,) * 3, (0.5,) * 3).to(device)


def _build_arcface(state: Mapping[str, Tensor], file: Path) -> nn.Module:
    """The empty network for the tensor names of an ArcFace file."""
    if "layer1.0.conv1.weight" in state and "features.weight" in state:
        counts = [
            len({key.split(".")[1] for key in state if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)
        ]
        return IResNet((counts[0], counts[1], counts[2], counts[3]))
    if "input_layer.0.weight" in state and "body.0.res_layer.0.weight" in state:
        try:
            from facexlib.recognition.arcface_arch import Backbone
        except ImportError as error:
            raise CheckpointError(
                f"{file} holds ArcFace IR weights, which need facexlib: pip install facexlib"
            ) from error
        blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
        depth = {24: 50, 49: 100, 50: 152}.get(blocks)
        if depth is None:
            raise CheckpointError(
                f"{file}: ArcFace IR with {blocks} blocks, expected 24 (50 layers), 49 or 50"
            )
        mode = "ir_se" if any(".res_layer.5." in key for key in state) else "ir"
        return Backbone(depth, drop_ratio=0.6, mode=mode)
    raise CheckpointError(
        f"{file} holds no known face recognition network: MobileFaceNet is at {MOBILEFACENET_SOURCE}, "
        f"ArcFace comes from {ARCFACE_SOURCE}"
    )

"""FID and KID: how far a set of images is from another set in the feature space of Inception-v3."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osdface_core.errors import CheckpointError
from osdface_core.files import writing
from osdface_core.weights import read_state_dict

from .base import Column, WeightFile, WeightFinder

INCEPTION = WeightFile(
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "Inception-v3 of the FID authors",
    "the releases of toshas/torch-fidelity (v0.2.0) or mseitzer/pytorch-fid (fid_weights)",
)
MODE = (
    "torch-fidelity Inception-v3, 2048 pooled features, 8-bit RGB, TF1-style bilinear resize to 299: "
    "close to pytorch-fid and VQFR, not comparable with clean-fid (pyiqa's default)"
)
KID_SUBSETS = 100


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute (N,D) -> mean (D,) and unbiased covariance (D,D), float64."""
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T)


def frechet(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Compute the Fréchet distance of a Gaussian fitted to (N,D) features and N(mean, covariance).

    |μ−μ'|² + tr(Σ) + tr(Σ') − 2 tr((ΣΣ')^½); NaN below two rows. With Σ = AᵀA the last trace is that of
    (AΣ'Aᵀ)^½, a symmetric matrix no larger than the number of images: exact, and 0.3 s for 50 images, where
    torchmetrics' general eigenvalues of a 2048² matrix take 16 s.
    Source: Heusel et al. 2017, Eq. 6.
    """
    if len(features) < 2:
        return math.nan
    features, mean, covariance = features.double(), mean.double(), covariance.double()
    centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    root = torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred
    eigenvalues = torch.linalg.eigvalsh(root @ covariance @ root.T)
    gap = (features.mean(dim=0) - mean).square().sum()
    return float(
        gap + centred.square().sum() + covariance.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    )


def kernel_distance(images: Tensor, references: Tensor, seed: int = 0) -> float:
    """Compute KID: the squared MMD of (N,D) and (M,D) with the kernel (xᵀy/D + 1)³, mean of 100 subsets.

    Subsets hold 1,000 images, or half of the smaller set when that is less. NaN below four rows.
    Source: Bińkowski et al. 2018, section 3.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(1000, min(len(images), len(references)) // 2)
    if size < 2:
        return math.nan
    found = kid_features_to_metric(
        images.double(), references.double(), kid_subsets=KID_SUBSETS, kid_subset_size=size, rng_seed=seed,
        verbose=False,
    )  # fmt: skip
    return found[KEY_METRIC_KID_MEAN]


def read_moments(path: Path) -> tuple[Tensor, Tensor]:
    """Read stored statistics of a set: pytorch-fid's `.npz` (mu, sigma) or a `.pth` dict (mean, cov),
    as VQFR's FFHQ file.

    Raises:
        CheckpointError: if the file is neither.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                mean, covariance = torch.from_numpy(stored["mu"]), torch.from_numpy(stored["sigma"])
        else:
            with torch.serialization.safe_globals(_NUMPY_GLOBALS):
                stored = torch.load(path, map_location="cpu", weights_only=True)
            mean, covariance = torch.as_tensor(stored["mean"]), torch.as_tensor(stored["cov"])
    except Exception as error:
        raise CheckpointError(
            f"{path} holds no FID statistics ({str(error).splitlines()[0][:120]}): "
            "give an .npz with mu and sigma, or a .pth dict with mean and cov"
        ) from error
    mean = mean.reshape(-1)
    if covariance.shape != (len(mean), len(mean)):
        raise CheckpointError(
            f"{path}: mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)} do not fit"
        )
    return mean, covariance


def write_moments(path: Path, features: Tensor) -> None:
    """Write the statistics of (N,D) features, N above 1, as `read_moments` reads them (.npz).

    Raises:
        CheckpointError: fewer images, or the file cannot be written.
    """
    if len(features) < 2 or path.suffix != ".npz":
        raise CheckpointError(f"{path}: FID statistics are those of two images or more, in an .npz")
    mean, covariance = moments(features)
    with writing(path, CheckpointError) as temporary:
        np.savez(temporary, mu=mean.numpy(), sigma=covariance.numpy())


def _numpy_globals() -> list[Any]:
    """List what a pickled numpy array needs to be read without running code."""
    reconstruct = np.zeros(1).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    older = (reconstruct, "numpy.core.multiarray._reconstruct")  # the name before numpy 2
    return [reconstruct, older, np.ndarray, np.dtype, *kinds]


_NUMPY_GLOBALS = _numpy_globals()


class InceptionDistances:
    """FID and KID of one set of images against another, from one pass of Inception-v3 per image.

    Args:
        net: (B,3,H,W) uint8 -> tuple whose first entry is (B,2048).
        stored: mean and covariance of a further set, e.g. FFHQ; adds `fid_stats`.
    """

    mode = MODE

    def __init__(self, net: nn.Module, stored: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> None:
        self.net = net
        self.stored = stored
        self.seed = seed
        self.columns = (
            Column("fid", "lower", f"Fréchet distance to the references; {MODE}", digits=2),
            Column("kid", "lower", "kernel distance to the references ×1000, same features", digits=2),
        )
        if stored:
            about = "Fréchet distance to the given statistics"
            self.columns += (Column("fid_stats", "lower", about, digits=2),)

    @classmethod
    def load(
        cls, finder: WeightFinder, device: torch.device, stats: Path | None = None, seed: int = 0
    ) -> "InceptionDistances":
        net = load_inception(finder.find(INCEPTION)).to(device)
        return cls(net, read_moments(stats) if stats else None, seed)

    def features(self, images: Tensor) -> Tensor:
        """Extract (B,2048) on the CPU."""
        return self.net((images * 255.0).round().to(torch.uint8))[0].reshape(len(images), -1).cpu()

    def compute(self, images: Tensor, references: Tensor | None) -> dict[str, float]:
        values: dict[str, float] = {}
        if references is not None and len(references) > 1:
            values["fid"] = frechet(images, *moments(references))
            values["kid"] = 1000.0 * kernel_distance(images, references, self.seed)
        if self.stored:
            values["fid_stats"] = frechet(images, *self.stored)
        return values


def load_inception(path: Path) -> nn.Module:
    """Load torch-fidelity's Inception-v3 with the weights at `path`. Raises CheckpointError, ImportError."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    read_state_dict(
        path, INCEPTION.what, INCEPTION.source
    )  # torch-fidelity would unpickle anything: check it first
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} does not fit Inception-v3 ({reason}); get it from {INCEPTION.source}"
        ) from error

"""The generator's losses apart from the adversarial ones, and the networks they need (paper Eq. 12-14)."""

import torch
from torch import Tensor

from osdface_core.models.identity import IdentityNet, load_identity

from ..losses import reconstruction
from ..losses.edge_dists import EdgeAwareDists
from ..losses.features import Weights
from ..losses.identity import IdentityLoss
from ..losses.perceptual import PerceptualLoss
from ..recipe.restorer import RestorerTraining
from .generator import Restored, Windows


class Networks:
    """Frozen networks of losses and scores; each is loaded on first use and once.

    Raises (on use):
        CheckpointError: one line with the missing file and its source.
    """

    def __init__(self, cfg: RestorerTraining, device: torch.device) -> None:
        self._cfg, self._device = cfg, device
        self._perceptual: PerceptualLoss | None = None
        self._identity: IdentityNet | None = None

    def perceptual(self) -> PerceptualLoss:
        """Load the network of `[restorer.perceptual]`."""
        if self._perceptual is None:
            term = self._cfg.perceptual
            weights = self.features(term.net, term.file)
            self._perceptual = PerceptualLoss(term.net, weights, term.distance).to(self._device)
        return self._perceptual

    def identity(self) -> IdentityNet:
        """Load the network of `[restorer.identity]`."""
        if self._identity is None:
            self._identity = self.load_identity().to(self._device)
        return self._identity

    def edge_dists(self) -> EdgeAwareDists:
        """Load a network for `[restorer.ea_dists]`."""
        term = self._cfg.ea_dists
        return EdgeAwareDists(term.net, self.features(term.net, term.file)).to(self._device)

    def features(self, net: str, file: str) -> Weights:
        """Name the source of a backbone's weights; an empty file means torch's download cache."""
        del net
        return file or None

    def load_identity(self) -> IdentityNet:
        """Read the identity network."""
        return load_identity(self._cfg.identity.file or None)


class Objectives:
    """All terms with a weight above 0.

    Args:
        cfg: the weights.
        networks: see there.
    """

    def __init__(self, cfg: RestorerTraining, networks: Networks) -> None:
        self.cfg = cfg
        self.weights = {name: weight for name, weight in _weights(cfg).items() if weight > 0}
        asked = {name.removeprefix("preview_") for name in self.weights}
        self._perceptual = networks.perceptual() if "perceptual" in asked else None
        self._ea_dists = networks.edge_dists() if "ea_dists" in self.weights else None
        self._identity = IdentityLoss(networks.identity()) if "identity" in asked else None

    @property
    def needs_latent(self) -> bool:
        """Tell whether a term compares with the clean latent."""
        return "latent_mse" in self.weights

    def terms(
        self, restored: Restored, hq: Tensor, clean: Tensor | None, windows: Windows | None = None
    ) -> dict[str, Tensor]:
        """Compute the unweighted terms, 0-d float32 with gradient.

        Args:
            hq: (B, 3, H, W) signed, the whole face.
            clean: (B, 4, H/8, W/8), its latent; needed when `needs_latent`.
            windows: the parts that `restored.image` shows; without them identity counts too.
        """
        target = hq if windows is None else windows.of_image(hq)
        image, has = restored.image, self.weights.__contains__
        terms: dict[str, Tensor] = {}
        if has("mse"):
            terms["mse"] = reconstruction.mse(image, target)
        if has("l1"):
            terms["l1"] = reconstruction.l1(image, target)
        if has("latent_mse") and clean is not None:
            terms["latent_mse"] = reconstruction.mse(restored.latent, clean)
        if self._perceptual is not None and has("perceptual"):
            terms["perceptual"] = self._perceptual(image, target)
        if self._ea_dists is not None:
            terms["ea_dists"] = self._ea_dists(image, target)
        if has("color"):
            terms["color"] = reconstruction.low_frequency_loss(image, target, self.cfg.color.sigma)
        if self._identity is not None and has("identity") and windows is None:
            terms["identity"] = self._identity(image, target)
        return terms

    def preview_terms(self, picture: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute the unweighted terms of a small picture of the whole face.

        Args:
            picture, target: (B, 3, h, w) signed.
        """
        has = self.weights.__contains__
        terms: dict[str, Tensor] = {}
        if has("preview_l1"):
            terms["preview_l1"] = reconstruction.l1(picture, target)
        if self._perceptual is not None and has("preview_perceptual"):
            terms["preview_perceptual"] = self._perceptual(picture, target)
        if self._identity is not None and has("preview_identity"):
            terms["preview_identity"] = self._identity(picture, target)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum the weighted terms, 0-d."""
        return torch.stack(list(self.weighted(terms).values())).sum()

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each term by its weight."""
        return {name: self.weights[name] * value for name, value in terms.items()}


def _weights(cfg: RestorerTraining) -> dict[str, float]:
    return {
        "mse": cfg.pixel.mse,
        "l1": cfg.pixel.l1,
        "latent_mse": cfg.latent.mse,
        "perceptual": cfg.perceptual.weight,
        "ea_dists": cfg.ea_dists.weight,
        "identity": cfg.identity.weight,
        "color": cfg.color.weight,
        "preview_l1": cfg.preview.l1,
        "preview_perceptual": cfg.preview.perceptual,
        "preview_identity": cfg.preview.identity,
    }

"""The generator's losses apart from the adversarial ones, and the networks they need (paper Eq. 12-14)."""

from collections.abc import Callable
from functools import partial

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

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of (B, 3, H, W) restored and target, signed; 0-d."""


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
        weights = self.features(term.net, term.file)
        return EdgeAwareDists(term.net, weights, term.distance).to(self._device)

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
        self.weights = {name: weight for name, weight in _weights(cfg).items() if weight > 0}
        asked = {name.removeprefix("preview_") for name in self.weights}
        load: dict[str, Callable[[], Loss]] = {
            "mse": lambda: reconstruction.mse,
            "l1": lambda: reconstruction.l1,
            "perceptual": networks.perceptual,
            "ea_dists": networks.edge_dists,
            "color": lambda: partial(reconstruction.low_frequency_loss, sigma=cfg.color.sigma),
            "detail": lambda: partial(reconstruction.detail_loss, sigma=cfg.detail.sigma),
            "identity": lambda: IdentityLoss(networks.identity()),
        }
        self._losses = {name: make() for name, make in load.items() if name in asked}

    @property
    def needs_latent(self) -> bool:
        """Tell whether a term compares with the clean latent."""
        return "latent_mse" in self.weights

    def terms(
        self,
        restored: Restored,
        lq: Tensor,
        hq: Tensor,
        clean: Tensor | None,
        windows: Windows | None = None,
    ) -> dict[str, Tensor]:
        """Compute the unweighted terms, 0-d float32 with gradient.

        Args:
            lq, hq: (B, 3, H, W) signed, the whole face degraded and clean.
            clean: (B, 4, H/8, W/8), its latent; needed when `needs_latent`.
            windows: the parts that `restored.image` shows; without them identity counts too.
        """
        before, target = (lq, hq) if windows is None else map(windows.of_image, (lq, hq))
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "latent_mse" and clean is not None:
                terms[name] = reconstruction.mse(restored.latent, clean)
            elif name == "relative_l1":
                terms[name] = reconstruction.relative_l1(restored.image, target, before)
            elif name in self._losses and (name != "identity" or windows is None):
                terms[name] = self._losses[name](restored.image, target)
        return terms

    def preview_terms(self, picture: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute the unweighted terms of a small picture of the whole face.

        Args:
            picture, target: (B, 3, h, w) signed.
        """
        names = [name for name in self.weights if name.startswith("preview_")]
        return {name: self._losses[name.removeprefix("preview_")](picture, target) for name in names}

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
        "relative_l1": cfg.pixel.relative_l1,
        "latent_mse": cfg.latent.mse,
        "perceptual": cfg.perceptual.weight,
        "ea_dists": cfg.ea_dists.weight,
        "color": cfg.color.weight,
        "detail": cfg.detail.weight,
        "identity": cfg.identity.weight,
        "preview_l1": cfg.preview.l1,
        "preview_perceptual": cfg.preview.perceptual,
        "preview_identity": cfg.preview.identity,
    }

"""The identity loss: the restored face must be recognised as the same person (OSDFace Eq. 13)."""

import torch
from torch import Tensor

from osdface_core.models.identity import IdentityNet, embed

from .features import Frozen


class IdentityLoss(Frozen):
    """1 − cos(F(Î), F(I)) with a frozen recognition network F on a fixed crop.

    Args:
        network: from `load_identity`.
    Source: OSDFace Eq. 13; crop and colours are ours (RGB, 112 px).
    """

    def __init__(self, network: IdentityNet) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Average over the batch, 0-d float32 in [0, 2].

        Args:
            restored, target: (B, 3, H, W) signed, whole FFHQ-aligned faces. Gradients flow to `restored`
                only.
        """
        return self.per_image(restored, target).mean()

    def per_image(self, restored: Tensor, target: Tensor) -> Tensor:
        """Measure as `forward`, but (B,): one value per face (for masks on extreme degradations)."""
        with torch.no_grad():
            wanted = embed(self.network, (target + 1) / 2)
        return 1 - (embed(self.network, (restored + 1) / 2) * wanted).sum(1)

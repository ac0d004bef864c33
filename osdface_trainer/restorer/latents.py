"""Latents of the clean faces: encoded when asked for, or kept after their first use."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..stage import Batch


class CleanLatents:
    """z_H of a batch's clean faces.

    Faces change by mirroring only, so a face has two latents. A kept latent is float16: 32 KB at 512².

    Args:
        encode: (B, 3, H, W) signed → (B, 4, H/8, W/8).
        keep: where latents are kept; "off" encodes every time.
    """

    def __init__(
        self, encode: Callable[[Tensor], Tensor], keep: Literal["off", "cpu", "device"] = "off"
    ) -> None:
        self._encode, self._keep = encode, keep
        self._kept: dict[tuple[int, bool], Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, batch: Batch, signed: Tensor) -> Tensor:
        """(B, 4, H/8, W/8) float32 without gradient.

        Args:
            batch: names the faces.
            signed: (B, 3, H, W), its clean faces.
        """
        if self._keep == "off":
            return self._encode(signed).float()
        keys = list(zip(batch.index.tolist(), batch.flip.tolist(), strict=True))
        for position, key in enumerate(keys):
            if key not in self._kept:
                # One by one: a latent must not depend on which others were missing, or a resumed run differs.
                latent = self._encode(signed[position : position + 1])[0].half()
                self._kept[key] = latent.cpu() if self._keep == "cpu" else latent.clone()
        found = torch.stack([self._kept[key] for key in keys])
        return found.to(signed.device, non_blocking=True).float()

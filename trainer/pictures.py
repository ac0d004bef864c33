"""Sample grids: strips of a batch under each other, as one PNG."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osdface_core.files import replacing


def stack_strips(strips: Tensor, gap: int = 4) -> Tensor:
    """(B, 3, H, W) unit to one picture (3, B·H + (B-1)·gap, W), dark grey between the rows."""
    rows: list[Tensor] = []
    for number, strip in enumerate(strips):
        if number:
            rows.append(torch.full((3, gap, strip.shape[2]), 0.15, device=strip.device))
        rows.append(strip)
    return torch.cat(rows, dim=1)


def write_png(path: Path, picture: Tensor) -> None:
    """Write (3, H, W) unit as an 8-bit PNG, whole or not at all."""
    array = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(array.cpu().numpy())).save(temporary)

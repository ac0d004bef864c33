"""From a trained generator to the checkpoint format (`osdface convert` makes the released files of it)."""

from typing import Any

from torch import Tensor

from osdface_core.models.lora import extract_lora

from ..distributed import gather
from .generator import Generator


def export_tensors(generator: Generator) -> dict[str, Tensor]:
    """Copy every tensor that inference needs, under the names of checkpoint format v1.

    `vre.*`, `projection.*`, and `lora.*` (float32 adapters; of the codec's encoder `lora.vae.*`) or
    `unet.*` + `codec.*`.
    """
    parts: dict[str, Any] = {
        "vre": generator.prompt.vre.state_dict(),
        "projection": generator.prompt.projection.state_dict(),
    }
    unet = generator.predictor.unet
    if generator.config.arch == "lora":
        parts["lora"] = extract_lora(unet)
        if generator.learns_encoder:
            parts["lora"] |= extract_lora(generator.codec)
    else:
        parts |= {"unet": unet.state_dict(), "codec": generator.codec.state_dict()}
    return {
        f"{part}.{name}": gather(tensor.detach()).clone()
        for part, state in parts.items()
        for name, tensor in state.items()
    }

"""`python -m benchmarks.work`: parameters and multiply-adds of one face at the released sizes, term by term.

Nothing is computed: the modules stand on the meta device.
"""

from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn

from osdface_core.config import LoRAConfig
from osdface_core.console import say
from osdface_trainer.restorer.adapters import add_lora

from .measure import KINDS, PRODUCTS, terms
from .models import Parts, full_size


def by_layers(parts: Parts, side: int) -> tuple[int, int]:
    """Count multiply-adds of autoencoder and UNet layer by layer, as counters do that hook modules.

    They see no product of two activations. The adapters (paper §4.1: rank 16) stay beside their layers.

    Returns: those of convolutions and linear layers, and those of the adapters. `parts` keeps the adapters.
    """
    codec, predictor, lora = parts.backbone.codec, parts.backbone.predictor, LoRAConfig()
    modules = nn.ModuleList((cast(nn.Module, codec), cast(nn.Module, predictor)))
    add_lora(modules[1], lora.rank, lora.alpha, lora.targets)
    counted: Counter[bool] = Counter()

    def count(layer: nn.Module, name: str, out: Tensor) -> None:
        weight = layer.get_parameter("weight")
        counted["lora_" in name] += weight.numel() * out.numel() // weight.shape[0]

    for name, layer in modules.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            layer.register_forward_hook(lambda layer, _, out, name=name: count(layer, name, out))
    latent = codec.encode(torch.zeros(1, 3, side, side, device=parts.device))
    prompt = torch.zeros(1, 77, parts.config.projection.out, device=parts.device)
    codec.decode(predictor(latent, parts.config.timestep, prompt))
    return counted[False], counted[True]


def main() -> None:
    """Print the table."""
    parts = full_size(torch.device("meta"))
    counted, kinds = terms(parts, 512), (*dict.fromkeys(KINDS.values()), PRODUCTS)
    counted["all"] = sum(counted.values(), Counter[str]())
    say(f"{'GMACs':12}" + "".join(f"{kind:>15}" for kind in (*kinds, "all")))
    for stage, one in counted.items():
        say(f"{stage:12}" + "".join(f"{n / 1e9:15.2f}" for n in (*(one[k] for k in kinds), one.total())))
    vre = parts.prompt_encoder.vre
    modules = {
        "VRE": vre, "of it the codes": vre.quantize, "projection": parts.prompt_encoder.projection,
        "UNet": parts.backbone.predictor, "autoencoder": parts.backbone.codec,
    }  # fmt: skip
    for name, module in modules.items():
        say(f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters")
    layers, adapters = by_layers(parts, 512)
    say(
        f"autoencoder and UNet by layers: {layers / 1e9:.2f} GMACs, their adapters of rank 16 "
        f"{adapters / 1e9:.2f}, together {(layers + adapters) / 1e9:.2f} (paper, Table 3: 2,132)"
    )


if __name__ == "__main__":
    main()

"""`python -m benchmarks.work`: parameters and multiply-adds of one face at the released sizes, term by term.

Nothing is computed: the modules stand on the meta device.
"""

from collections import Counter

import torch

from osdface_core.console import say

from .measure import KINDS, PRODUCTS, terms
from .models import full_size


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


if __name__ == "__main__":
    main()

"""Memory of stage 1 by part, computed on the meta device (no weights, no GPU)."""

from collections.abc import Iterator

import torch

from ..losses.discriminators import PatchDiscriminator
from ..losses.features import untrained_features
from ..losses.perceptual import PerceptualLoss
from ..memory import LikeCUDA, adam_part, saved_bytes
from ..recipe.config import Recipe
from ..stage import Part, Plan
from .autoencoder import Autoencoding
from .network import VQAutoencoder


def plan(recipe: Recipe) -> Plan:
    """Networks, steps and memory of one micro-batch of the joint phase, the largest, on one process."""
    with torch.device("meta"), LikeCUDA(recipe.run.precision == "bf16"):
        return Plan("vre", recipe.phases("vre"), tuple(_parts(recipe)))


def _parts(recipe: Recipe) -> Iterator[Part]:
    cfg = recipe.vre
    side, count = cfg.model.resolution, max(1, cfg.batch_size // cfg.accumulate)
    images = torch.empty(count, 3, side, side)
    learned = torch.empty(count, 3, side, side, requires_grad=True)
    net = Autoencoding(VQAutoencoder(cfg.model))
    if cfg.codebook.update == "ema":
        net.net.quantize.requires_grad_(False)
    kept = saved_bytes(lambda: net(images), net)
    note = f"activations of a micro-batch of {count} at {side} px; hq and lq together"
    branches = ("hq", "lq")
    for name in branches:
        yield adam_part(f"{name} autoencoder", net, kept, note if name == "hq" else "")
    if cfg.gan.weight > 0:
        disc = PatchDiscriminator(cfg.gan.channels, cfg.gan.layers, cfg.gan.norm, cfg.gan.spectral)
        judged = saved_bytes(lambda: disc(learned), disc)
        for name in branches:
            yield adam_part(f"{name} discriminator", disc, judged)
    if cfg.perceptual.weight > 0:
        judge = PerceptualLoss(cfg.perceptual.net, untrained_features(cfg.perceptual.net), "mse")
        seen = saved_bytes(lambda: judge(learned, images), judge)
        yield adam_part("perceptual loss", judge, 2 * seen, "for both branches")

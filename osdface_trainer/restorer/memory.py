"""Memory of stage 2 by part, computed on the meta device (no weights, no GPU)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from osdface_core.checkpoint import load_config
from osdface_core.config import OSDFaceConfig
from osdface_core.loading import resolve
from osdface_core.models.backbone import Backbone
from osdface_core.models.full import build_full
from osdface_core.models.identity import IMAGENET_MEAN, IMAGENET_STD, IdentityNet
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_core.models.vre import VRE

from ..losses.discriminators import PatchDiscriminator
from ..losses.edge_dists import EdgeAwareDists
from ..losses.features import FrozenFeatures, untrained_features
from ..losses.identity import IdentityLoss
from ..losses.perceptual import PerceptualLoss
from ..memory import LikeCUDA, adam_part, count, saved_bytes
from ..recipe.config import Recipe
from ..recipe.restorer import RestorerTraining
from ..stage import Part, Plan
from .discriminators import diffusion_discriminator
from .generator import CELL, Generator
from .init import Initial, assemble, halve, model_config
from .sd21 import random_base


def plan(recipe: Recipe) -> Plan:
    """Networks, steps and memory of one micro-batch on one process.

    `lora` assumes Stable Diffusion 2.1's shapes whatever `restorer.base` is.
    """
    return Plan("restorer", recipe.phases("restorer"), tuple(memory_report(recipe)))


def memory_report(recipe: Recipe) -> Iterator[Part]:
    """One part per network: weights, gradients, optimiser, and what its forward pass keeps.

    The discriminators' own update comes after the generator's graph is gone, so it does not add to the peak.
    Workspace of convolution kernels (some hundred MB) is not included.
    """
    half = recipe.run.precision == "bf16"
    with torch.device("meta"), LikeCUDA(half):
        initial = _build(recipe, half)
        sizes = _Sizes(recipe)
        yield from _generator(recipe, initial.generator, sizes, half)
        yield from _opponents(recipe, initial, sizes)
        yield from _judges(recipe, sizes)


class _Sizes:
    """Meta tensors of one micro-batch."""

    def __init__(self, recipe: Recipe) -> None:
        cfg = recipe.restorer
        self.count = max(1, cfg.batch_size // cfg.accumulate)
        self.side = recipe.data.size // CELL

    def image(self) -> Tensor:
        """A restored picture, as losses see it."""
        return torch.empty(self.count, 3, CELL * self.side, CELL * self.side, requires_grad=True)

    def latent(self) -> Tensor:
        return torch.empty(self.count, 4, self.side, self.side, requires_grad=True)


def _build(recipe: Recipe, half: bool) -> Initial:
    cfg = recipe.restorer
    known = _known_config(cfg)
    vre = known.vre if known else recipe.vre.model
    config = replace(known, vre=vre) if known else model_config(cfg, None, vre)
    backbone: Backbone = build_full(config) if cfg.mode == "full" else random_base()
    if half and cfg.mode == "lora":
        halve(backbone)
    return assemble(cfg, config, VRE(vre), None, backbone)


def _known_config(cfg: RestorerTraining) -> OSDFaceConfig | None:
    """The architecture of the checkpoint to start from when it is at hand; a folder holds released files."""
    path = resolve(cfg.init)
    if cfg.init and path.is_file():
        return load_config(path)
    return OSDFaceConfig() if cfg.init and cfg.mode == "lora" else None


class _Recomputed:
    """Stands in for gradient checkpointing: inputs that stay, and the largest block that is made again."""

    def __init__(self) -> None:
        self.inputs: dict[int, Tensor] = {}
        self.largest = 0

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        answer: list[Any] = []
        inner = saved_bytes(lambda: answer.append(block(*args)), block)
        self.largest = max(self.largest, inner)
        self.inputs |= {id(t): t for t in args if isinstance(t, Tensor)}
        return answer[0]

    @property
    def bytes(self) -> int:
        return self.largest + sum(t.nbytes for t in self.inputs.values())


def _activations(forward: Callable[[], Any], module: nn.Module, recomputed: Any = None) -> int:
    """Saved bytes of a pass; `recomputed` is the diffusers model whose blocks are checkpointed."""
    if recomputed is None:
        return saved_bytes(forward, module)
    recorder = _Recomputed()
    recomputed.enable_gradient_checkpointing(recorder)
    return saved_bytes(forward, module) + recorder.bytes


def _generator(recipe: Recipe, generator: Generator, sizes: _Sizes, half: bool) -> Iterator[Part]:
    cfg, config = recipe.restorer, generator.config
    frozen_bytes = 2 if half and cfg.mode == "lora" else 4
    images = f"activations of a micro-batch of {sizes.count} at {CELL * sizes.side} px"
    yield adam_part("VRE", generator.prompt.vre, note="no gradient passes it, so it keeps no activations")
    yield adam_part("projection", generator.prompt.projection)
    prompt = torch.empty(sizes.count, config.vre.tokens, config.projection.out, requires_grad=True)
    unet = generator.predictor.unet
    yield adam_part(
        f"UNet{' + LoRA' if cfg.mode == 'lora' else ''}", unet,
        _activations(
            lambda: generator.predictor(sizes.latent().detach(), config.timestep, prompt), unet,
            unet if cfg.checkpoint_unet else None,
        ),
        f"{images}{', blocks recomputed' if cfg.checkpoint_unet else ''}", frozen_bytes,
    )  # fmt: skip
    codec = generator.codec
    yield adam_part(
        "codec", codec,
        _activations(
            lambda: codec.decode(sizes.latent(), sizes.image().detach()), codec,
            codec.vae if cfg.checkpoint_decoder else None,
        ),
        f"decoder of the whole face{', blocks recomputed' if cfg.checkpoint_decoder else ''}", frozen_bytes,
    )  # fmt: skip
    if cfg.ema:
        yield Part("average of the trained weights", 0, 0, weights=4 * count(generator)[0])


def _opponents(recipe: Recipe, initial: Initial, sizes: _Sizes) -> Iterator[Part]:
    """As the generator's loss passes them."""
    cfg, config = recipe.restorer.gan, initial.generator.config
    if initial.trunk is not None:
        judge = diffusion_discriminator(initial.trunk, config, cfg)
        steps = torch.zeros(sizes.count, dtype=torch.long)
        prompt = torch.empty(sizes.count, config.vre.tokens, config.projection.out)
        kept = saved_bytes(lambda: judge(sizes.latent(), steps, prompt, sizes.latent().detach()), judge)
        part = adam_part("diffusion discriminator", judge, kept)
        shared = cfg.diffusion.train == "lora"
        note = "its frozen blocks are the generator's own" if shared else ""
        yield replace(part, weights=4 * part.trained if shared else part.weights, note=note)
    if cfg.feature.weight > 0:
        features = FrozenFeatures(cfg.feature.net, untrained_features(cfg.feature.net))
        kept = saved_bytes(lambda: features(sizes.image()), features)
        yield adam_part("feature discriminator", features, kept)
    if cfg.patch.weight > 0:
        patch = PatchDiscriminator(cfg.patch.width, cfg.patch.layers, "none")
        yield adam_part("patch discriminator", patch, saved_bytes(lambda: patch(sizes.image()), patch))


def _judges(recipe: Recipe, sizes: _Sizes) -> Iterator[Part]:
    """Frozen networks of the losses, in float32."""
    cfg = recipe.restorer
    target = sizes.image().detach()
    nets: list[tuple[str, nn.Module]] = []
    if cfg.perceptual.weight > 0:
        features = untrained_features(cfg.perceptual.net)
        nets.append(("perceptual", PerceptualLoss(cfg.perceptual.net, features, "mse")))
    if cfg.ea_dists.weight > 0:
        nets.append(("EA-DISTS", EdgeAwareDists(cfg.ea_dists.net, untrained_features(cfg.ea_dists.net))))
    if cfg.identity.weight > 0:
        nets.append(("identity", IdentityLoss(IdentityNet(MobileFaceNet(), IMAGENET_MEAN, IMAGENET_STD))))
    for name, net in nets:
        judge: Any = net.to("meta")  # published weights of a loss are read from its package
        kept = saved_bytes(lambda judge=judge: judge(sizes.image(), target), net)
        yield adam_part(f"{name} loss", net, kept)

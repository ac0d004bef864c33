"""The discriminators of stage 2: opponents of the generator on diffused latents (paper §3.3) or on pixels.

Both players learn from the same restored faces: one generator pass per step serves the generator's loss and,
detached, the discriminator's (1:1). Each plays against the other as it was at the start of the step.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from osdface_core.config import OSDFaceConfig

from .. import distributed
from ..losses.adversarial import (
    Logits,
    approximate_gradient_penalty,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from ..losses.diffusion_discriminator import DiffusionDiscriminator, Noiser, add_lora
from ..losses.discriminators import FeatureDiscriminator, PatchDiscriminator, shift_flip
from ..optim import set_lr
from ..recipe.config import Recipe
from ..recipe.restorer import Adversary, DiffusionAdversary, FeatureAdversary, GANs, PatchAdversary
from .generator import trained, unet_blocks
from .init import Initial
from .losses import Networks


class Evidence(NamedTuple):
    """What the discriminators of one micro-batch may look at.

    Attributes:
        fake, real: (B, 3, H, W) signed, restored and clean face or window.
        fake_latent, real_latent: (B, 4, h, w); the second is None when nobody needs it.
        prompt: (B, 77, D).
    """

    fake: Tensor
    real: Tensor
    fake_latent: Tensor
    real_latent: Tensor | None
    prompt: Tensor


class Look(NamedTuple):
    """One random look at a pair: the samples, and the network's further arguments for each of them."""

    fake: Tensor
    real: Tensor
    fake_extra: tuple[Tensor, ...] = ()
    real_extra: tuple[Tensor, ...] = ()


class Opponent:
    """A discriminator with its optimiser and schedule; subclasses say what it looks at.

    Args:
        name: in logs and checkpoints.
        cfg: its table.
        net: the parameters that learn have `requires_grad`; they stay float32.
        blocks: parts of it that FSDP shards one by one.
    """

    needs_latent = False

    def __init__(
        self,
        name: str,
        cfg: Adversary,
        net: nn.Module,
        accelerator: Accelerator,
        blocks: Iterable[nn.Module] = (),
    ) -> None:
        self.name, self.cfg, self.accelerator = name, cfg, accelerator
        net = net.to(accelerator.device)
        self.net, self.optimizer = distributed.prepare(accelerator, net, self._adamw, blocks)
        self.learning = list(trained(self.net).values())

    def _adamw(self, net: nn.Module) -> AdamW:
        fused = self.accelerator.device.type == "cuda" or None
        return AdamW(trained(net).values(), self.cfg.lr, self.cfg.betas, weight_decay=0.0, fused=fused)

    def look(self, evidence: Evidence) -> Look:
        """Draw one look."""
        raise NotImplementedError

    def begin(self, generator: nn.Module) -> None:
        """Called once, at the step in which it starts."""

    def active(self, step: int) -> bool:
        """Whether it takes part in this step."""
        return step >= self.cfg.start

    def share(self, step: int) -> float:
        """Share of its full weight, growing from 0 to 1 over `ramp` steps."""
        return min(1.0, (step - self.cfg.start + 1) / max(1, self.cfg.ramp))

    def generator_loss(self, evidence: Evidence) -> Tensor:
        """What the generator minimises; the discriminator's weights get no gradient."""
        look = self.look(evidence)
        with self._still() as net:
            logits = net(look.fake, *look.fake_extra)
            real_logits = None
            if self.cfg.objective == "relativistic":
                with torch.no_grad():
                    real_logits = net(look.real, *look.real_extra)
        return generator_loss(self.cfg.objective, logits, real_logits)

    def loss(self, evidence: Evidence, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the discriminator minimises (no gradient reaches the generator), and scalars to log."""
        look = self.look(evidence._replace(
            fake=evidence.fake.detach(), fake_latent=evidence.fake_latent.detach(),
            prompt=evidence.prompt.detach(),
        ))  # fmt: skip
        samples = torch.cat([look.fake, look.real])
        extra = [torch.cat(pair) for pair in zip(look.fake_extra, look.real_extra, strict=True)]
        fake, real = _halves(self.net(samples, *extra))
        value = discriminator_loss(self.cfg.objective, real, fake)
        logs = {"d": value.detach(), "margin": _average(real) - _average(fake)}
        if self.cfg.r1 > 0 and step % self.cfg.r1_every == 0:
            penalty = self._penalty(look, real)
            value = value + 0.5 * self.cfg.r1 * self.cfg.r1_every * penalty
            logs["r1"] = penalty.detach()
        return value, logs

    def _penalty(self, look: Look, logits: Logits) -> Tensor:
        def judge(samples: Tensor) -> Logits:
            return self.net(samples, *look.real_extra)

        if self.cfg.r1_sigma > 0:
            return approximate_gradient_penalty(judge, look.real, logits, sigma=self.cfg.r1_sigma)
        return gradient_penalty(judge, look.real)

    @contextmanager
    def _still(self) -> Iterator[nn.Module]:
        """The network with its gradients off; under DDP unwrapped, because DDP waits for them."""
        for parameter in self.learning:
            parameter.requires_grad_(False)
        try:
            yield self.accelerator.unwrap_model(self.net)
        finally:
            for parameter in self.learning:
                parameter.requires_grad_(True)

    def update(self, lr_factor: float, clip: float) -> None:
        """One optimiser step on the gathered gradients."""
        if clip > 0:
            distributed.clip(self.learning, clip)
        set_lr(self.optimizer, self.cfg.lr, lr_factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class PixelOpponent(Opponent):
    """Looks at pictures."""

    cfg: FeatureAdversary | PatchAdversary

    def look(self, evidence: Evidence) -> Look:
        """The pair, mirrored and shifted alike when `augment` is on."""
        if not self.cfg.augment:
            return Look(evidence.fake, evidence.real)
        fake, real = shift_flip(evidence.fake, evidence.real)
        return Look(fake, real)


class LatentOpponent(Opponent):
    """Looks at latents diffused to a random timestep: the same for a pair, its noise independent."""

    cfg: DiffusionAdversary
    needs_latent = True

    def look(self, evidence: Evidence) -> Look:
        """The pair with timesteps, prompt and noise as `DiffusionDiscriminator` takes them."""
        assert evidence.real_latent is not None
        fake, real = evidence.fake_latent, evidence.real_latent.float()
        t = torch.randint(self.cfg.t_min, self.cfg.t_max, (len(fake),), device=fake.device)
        prompt = evidence.prompt.detach() if self.cfg.prompt else torch.zeros_like(evidence.prompt)
        return Look(fake, real, (t, prompt, torch.randn_like(fake)), (t, prompt, torch.randn_like(real)))

    def begin(self, generator: nn.Module) -> None:
        """`train = "all"`: take over the generator's way down as it is now."""
        if self.cfg.train != "all":
            return
        unet = cast(Any, generator).predictor.unet
        own = cast(DiffusionDiscriminator, self.accelerator.unwrap_model(self.net)).unet
        state = unet.state_dict()
        own.load_state_dict({name: state[name] for name in own.state_dict()})


def _levels(logits: Logits) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else list(logits)


def _halves(logits: Logits) -> tuple[Logits, Logits]:
    """Logits of a joined batch → logits of its first and second half."""
    pairs = [level.chunk(2) for level in _levels(logits)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _average(logits: Logits) -> Tensor:
    return torch.stack([level.detach().float().mean() for level in _levels(logits)]).mean()


def build_opponents(
    recipe: Recipe, accelerator: Accelerator, initial: Initial, networks: Networks
) -> list[Opponent]:
    """Those whose weight is above 0, on the device.

    Raises:
        CheckpointError: the frozen network of `feature` is missing.
    """
    cfg = recipe.restorer.gan
    found: list[Opponent] = []
    if initial.trunk is not None:
        net = diffusion_discriminator(initial.trunk, initial.generator.config, cfg)
        blocks = unet_blocks(net.unet)
        found.append(LatentOpponent("diffusion", cfg.diffusion, _layout(net, recipe), accelerator, blocks))
    if cfg.feature.weight > 0:
        table = cfg.feature
        weights = networks.features(table.net, table.file)
        net = FeatureDiscriminator(table.net, weights, table.levels or None, table.width)
        found.append(PixelOpponent("feature", table, _layout(net, recipe), accelerator))
    if cfg.patch.weight > 0:
        table = cfg.patch
        norm = "none" if table.spectral else "batch"
        net = PatchDiscriminator(table.width, table.layers, norm, table.spectral)
        found.append(PixelOpponent("patch", table, _layout(net, recipe), accelerator))
    return found


def diffusion_discriminator(trunk: nn.Module, config: OSDFaceConfig, cfg: GANs) -> DiffusionDiscriminator:
    """Down and middle blocks with a head, with LoRA or trained whole (paper §3.3)."""
    table = cfg.diffusion
    if table.train == "lora":
        assert config.lora is not None
        add_lora(trunk, table.rank, table.alpha, config.lora.targets)
    return DiffusionDiscriminator(trunk, noiser(config), table.hidden)


def noiser(config: OSDFaceConfig) -> Noiser:
    """Stable Diffusion's forward process."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
    )
    return cast(Noiser, scheduler)


def _layout(net: nn.Module, recipe: Recipe) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if recipe.run.channels_last else net

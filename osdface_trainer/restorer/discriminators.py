"""Discriminators of stage 2, on diffused latents (paper §3.3) or on pixels, and OSEDiff's regulariser.

One generator pass per step serves the generator's adversarial loss and, detached, the discriminators' own
(1:1). Both losses see the other side's weights of the start of the step.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from osdface_core.config import OSDFaceConfig

from .. import distributed
from ..layout import memory_format
from ..losses.adversarial import Logits, discriminator_loss, frozen, generator_loss, levels_of
from ..losses.diffusion_discriminator import DiffusionDiscriminator
from ..losses.discriminators import FeatureDiscriminator, PatchDiscriminator, shift_flip
from ..losses.features import Weights
from ..losses.score_distillation import TunedDiffusion, distillation_loss
from ..recipe.config import Recipe
from ..recipe.restorer import DiffusionGANTerm, FeatureGANTerm, GANTerm, PatchGANTerm, VSDTerm
from .adapters import adapters_off, add_lora
from .generator import trained, unet_blocks
from .init import Initial
from .losses import Networks


class DiscriminatorInputs(NamedTuple):
    """Restored and clean samples of one micro-batch.

    Attributes:
        fake, real: (B, 3, H, W) signed, restored and clean face or window.
        fake_latent, real_latent: (B, 4, h, w); the second is None when no active discriminator needs it.
        prompt: (B, 77, D).
    """

    fake: Tensor
    real: Tensor
    fake_latent: Tensor
    real_latent: Tensor | None
    prompt: Tensor

    def detached(self) -> "DiscriminatorInputs":
        """Cut the graph to the generator."""
        return self._replace(
            fake=self.fake.detach(), fake_latent=self.fake_latent.detach(), prompt=self.prompt.detach()
        )


class JudgedPair(NamedTuple):
    """A pair as the network gets it: the samples after random augmentation, and its further arguments."""

    fake: Tensor
    real: Tensor
    fake_extra: tuple[Tensor, ...] = ()
    real_extra: tuple[Tensor, ...] = ()


class Discriminator:
    """A network with its optimiser and schedule; subclasses define what it sees of a pair.

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
        cfg: GANTerm,
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

    def view(self, inputs: DiscriminatorInputs) -> JudgedPair:
        """Draw augmentation, or timesteps and noise, for a pair."""
        raise NotImplementedError

    def begin(self, generator: nn.Module) -> None:
        """Copy the weights of the generator's down and middle blocks if `train = "all"`."""

    def active(self, step: int) -> bool:
        """Tell whether it takes part in this step."""
        return step >= self.cfg.start

    def ramp(self, step: int) -> float:
        """Compute the share of its full weight: grows from 0 to 1 over `cfg.ramp` steps."""
        return min(1.0, (step - self.cfg.start + 1) / max(1, self.cfg.ramp))

    def generator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        """Compute what the generator minimises, 0-d; the discriminator's weights get no gradient."""
        view = self.view(inputs)
        with frozen(self.net):  # under DDP unwrapped, because DDP waits for gradients of its parameters
            logits = self.accelerator.unwrap_model(self.net)(view.fake, *view.fake_extra)
        return generator_loss(self.cfg.objective, logits)

    def loss(self, inputs: DiscriminatorInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute what the discriminator minimises, 0-d, cut off from the generator, and scalars to log."""
        view = self.view(inputs.detached())
        extra = [torch.cat(pair) for pair in zip(view.fake_extra, view.real_extra, strict=True)]
        fake, real = _halves(self.net(torch.cat([view.fake, view.real]), *extra))
        value = discriminator_loss(self.cfg.objective, real, fake)
        return value, {"d": value.detach(), "margin": _average(real) - _average(fake)}


class PixelDiscriminator(Discriminator):
    """Judges pictures."""

    cfg: FeatureGANTerm | PatchGANTerm

    def view(self, inputs: DiscriminatorInputs) -> JudgedPair:
        """Mirror and shift the pair alike when `augment` is on."""
        if not self.cfg.augment:
            return JudgedPair(inputs.fake, inputs.real)
        fake, real = shift_flip(inputs.fake, inputs.real)
        return JudgedPair(fake, real)


class LatentDiscriminator(Discriminator):
    """Judges latents diffused to a random timestep: the same for a pair, its noise independent."""

    cfg: DiffusionGANTerm
    needs_latent = True

    def view(self, inputs: DiscriminatorInputs) -> JudgedPair:
        """Draw timesteps and noise; further arguments as `DiffusionDiscriminator` takes them."""
        assert inputs.real_latent is not None
        fake, real = inputs.fake_latent, inputs.real_latent.float()
        t = torch.randint(self.cfg.t_min, self.cfg.t_max, (len(fake),), device=fake.device)
        prompt = inputs.prompt.detach() if self.cfg.prompt else torch.zeros_like(inputs.prompt)
        return JudgedPair(
            fake, real, (t, prompt, torch.randn_like(fake)), (t, prompt, torch.randn_like(real))
        )

    def begin(self, generator: nn.Module) -> None:
        """With `train = "all"` copy the weights of the generator's down and middle blocks."""
        if self.cfg.train != "all":
            return
        unet = cast(Any, generator).predictor.unet
        own = cast(DiffusionDiscriminator, self.accelerator.unwrap_model(self.net)).unet
        state = unet.state_dict()
        own.load_state_dict({name: state[name] for name in own.state_dict()})


class ScoreRegularizer(Discriminator):
    """Variational score distillation (OSEDiff): learns the generator's latents, pulls them to the base's."""

    cfg: VSDTerm

    def generator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        """Compute the pull from the tuned copy's answer to the frozen base's, 0-d."""
        net = cast(TunedDiffusion, self.accelerator.unwrap_model(self.net))
        latent, prompt = inputs.fake_latent, inputs.prompt.detach()
        with torch.no_grad():
            t, noised, _ = self._noised(net, latent, self.cfg.t_min, self.cfg.t_max)
            tuned = net.clean(noised, t, net(noised, t, prompt))
            with adapters_off(net):
                base = net.clean(noised, t, net.guided(noised, t, prompt))
        return distillation_loss(latent, tuned, base)

    def loss(self, inputs: DiscriminatorInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the diffusion loss of the tuned copy on the generator's latents, 0-d."""
        net = cast(TunedDiffusion, self.accelerator.unwrap_model(self.net))
        given = inputs.detached()
        t, noised, noise = self._noised(net, given.fake_latent, 0, net.scheduler.config.num_train_timesteps)
        value = F.mse_loss(self.net(noised, t, given.prompt), noise)
        return value, {"d": value.detach()}

    def _noised(self, net: TunedDiffusion, latent: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
        """Draw timesteps (B,) from low .. high - 1, and noise; return them with the noised latents."""
        t = torch.randint(low, high, (len(latent),), device=latent.device)
        noise = torch.randn_like(latent)
        return t, net.scheduler.add_noise(latent, noise, t), noise


def _halves(logits: Logits) -> tuple[Logits, Logits]:
    """Split logits of a joined batch into those of its first and second half."""
    pairs = [level.chunk(2) for level in levels_of(logits)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _average(logits: Logits) -> Tensor:
    return torch.stack([level.detach().float().mean() for level in levels_of(logits)]).mean()


def build_discriminators(
    recipe: Recipe, accelerator: Accelerator, initial: Initial, networks: Networks
) -> list[Discriminator]:
    """Build those whose weight is above 0, on the device.

    Raises:
        CheckpointError: the frozen network of `feature` is missing.
    """
    found: list[Discriminator] = []
    for name, net in build_networks(recipe, initial, networks.features).items():
        net = net.to(memory_format=memory_format(recipe.run, accelerator.device))
        cfg: GANTerm = getattr(recipe.restorer.gan, name)
        if isinstance(net, (DiffusionDiscriminator, TunedDiffusion)):
            kind = LatentDiscriminator if isinstance(net, DiffusionDiscriminator) else ScoreRegularizer
            found.append(kind(name, cfg, net, accelerator, unet_blocks(net.unet)))
        else:
            found.append(PixelDiscriminator(name, cfg, net, accelerator))
    return found


def build_networks(
    recipe: Recipe, initial: Initial, features: Callable[[str, str], Weights]
) -> dict[str, nn.Module]:
    """Build the networks of the discriminators whose weight is above 0, by the name of their table.

    Args:
        features: from an ImageNet network's name and file to its weights.
    """
    cfg, found = recipe.restorer.gan, dict[str, nn.Module]()
    config = initial.generator.config
    if initial.trunk is not None:
        trunk, table = initial.trunk, cfg.diffusion
        trunk = _adapted(trunk, config, table) if table.train == "lora" else trunk
        found["diffusion"] = DiffusionDiscriminator(trunk, _noiser(config), cfg.diffusion.hidden)
    if initial.twin is not None:
        twin = _adapted(initial.twin, config, cfg.vsd)
        found["vsd"] = TunedDiffusion(twin, _noiser(config), initial.negative, cfg.vsd.cfg)
    if cfg.feature.weight > 0:
        table = cfg.feature
        weights = features(table.net, table.file)
        found["feature"] = FeatureDiscriminator(table.net, weights, table.levels or None, table.width)
    if cfg.patch.weight > 0:
        table = cfg.patch
        norm = "none" if table.spectral else "batch"
        found["patch"] = PatchDiscriminator(table.width, table.layers, norm, table.spectral)
    return found


def _adapted(unet: nn.Module, config: OSDFaceConfig, table: DiffusionGANTerm | VSDTerm) -> nn.Module:
    """Attach a LoRA of the table's size where the generator's UNet has one."""
    assert config.lora is not None
    add_lora(unet, table.rank, table.alpha, config.lora.targets)
    return unet


def _noiser(config: OSDFaceConfig) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(config.train_timesteps, config.beta_start, config.beta_end, "scaled_linear")

"""The `[vre]` table of a recipe: stage 1. Defaults are the paper's where it states them."""

from dataclasses import dataclass, field
from typing import Literal

from osdface_core.config import VREConfig
from osdface_core.errors import ConfigError

from ..losses.adversarial import Objective
from .restorer import PerceptualTerm


@dataclass(frozen=True)
class Autoencoder:
    """The HQ phase (`[vre.hq]`): the autoencoder of clean faces.

    Attributes:
        steps: optimiser steps. At batch 32 and 70,000 images an epoch is 2,187.5 of them.
        epochs: passes over the training faces instead of `steps`; 0 = `steps` counts.
        disc_start: fraction of `steps` before the patch discriminator takes part. The lineage starts it at
            step 30,001; as a fraction it also makes sense for short phases.
    """

    steps: int = 109_375
    epochs: float = 0.0
    disc_start: float = 0.25


@dataclass(frozen=True)
class LowAutoencoder(Autoencoder):
    """The LQ phase (`[vre.lq]`): the autoencoder of degraded faces, each its own target.

    Attributes:
        init_from_hq: start from the HQ autoencoder, its codes and discriminator instead of from scratch;
            the paper does not state which.
    """

    steps: int = 21_875
    disc_start: float = 0.0
    init_from_hq: bool = True


@dataclass(frozen=True)
class Association:
    """The joint phase (`[vre.assoc]`), paper Eq. 9-10.

    Attributes:
        steps, epochs: as in the other phases.
        weight: λ_assoc, added to the loss of both branches (paper: 0 before this phase, 1 in it).
        tau: softmax temperature, constant.
        scope: `batch` contrasts a token with all tokens of this process's micro-batch (the lineage's
            code), `image` with those of its own image (the paper's K×K matrix).
        disc_start: as in the other phases.
    """

    steps: int = 21_875
    epochs: float = 0.0
    weight: float = 1.0
    tau: float = 0.07
    scope: Literal["batch", "image"] = "batch"
    disc_start: float = 0.0005


@dataclass(frozen=True)
class CodebookConfig:
    """How the codes learn (`[vre.codebook]`).

    Attributes:
        update: `gradient` (VQ loss, as the paper) or `ema` (running mean of the features of each code;
            the codes then leave the optimiser).
        beta: weight of the second VQ term (paper Eq. 7: 0.25).
        beta_on: `commitment` as the paper writes it; `codebook` as the lineage's code does.
        decay: of the running means.
        init: `uniform` in ±1/K, or `data`: features of the first batch.
        revive_every: after this many steps, the codes that nothing used since the last time are moved onto
            features of the current batch; 0 = never.
        revive_until: fraction of each phase after which no code is moved any more.
    """

    update: Literal["gradient", "ema"] = "gradient"
    beta: float = 0.25
    beta_on: Literal["commitment", "codebook"] = "commitment"
    decay: float = 0.99
    init: Literal["uniform", "data"] = "uniform"
    revive_every: int = 0
    revive_until: float = 0.8


@dataclass(frozen=True)
class PatchGAN:
    """The patch discriminator (`[vre.gan]`).

    Attributes:
        weight: λ_dis (paper: 0.8); 0 trains without a discriminator.
        adaptive: multiply it by VQGAN's ratio of gradient norms, as the lineage's code does.
        loss: see osdface_trainer.losses.adversarial.
        channels, layers: width of the first layer, number of stride-2 layers.
        norm: `batch` as published; `none` does not mix images, so that it is the same on any number of
            processes; usual together with `spectral`.
    """

    weight: float = 0.8
    adaptive: bool = True
    loss: Objective = "hinge"
    channels: int = 64
    layers: int = 3
    norm: Literal["batch", "none"] = "batch"
    spectral: bool = False


@dataclass(frozen=True)
class VRETraining:
    """`[vre]`: one model, three phases, four optimisers (Adam).

    Attributes:
        model: architecture, the keys of `osdface_core.config.VREConfig`; trained on `signed` images.
        batch_size: images per optimiser step over all processes.
        accumulate: micro-batches per optimiser step and process.
        lr: of all four optimisers (1.44e-4 = 4.5e-6 · 32).
        schedule: `constant`, or `cosine` to `final_lr` · lr within each phase.
        warmup: steps of linear warm-up at the start of each phase.
        clip: largest gradient norm of each network; 0 = none.
        pixel, codebook_weight: weights of the L1 and VQ terms.
    """

    model: VREConfig = field(default_factory=lambda: VREConfig(input_range=(-1.0, 1.0)))
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1.44e-4
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float = 0.0
    warmup: int = 0
    clip: float = 0.0
    pixel: float = 1.0
    codebook_weight: float = 1.0
    hq: Autoencoder = field(default_factory=Autoencoder)
    lq: LowAutoencoder = field(default_factory=LowAutoencoder)
    assoc: Association = field(default_factory=Association)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    # The paper says VGG19; its lineage uses LPIPS on VGG16.
    perceptual: PerceptualTerm = field(default_factory=lambda: PerceptualTerm(1.0, "vgg16"))
    gan: PatchGAN = field(default_factory=PatchGAN)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulate < 1:
            raise ConfigError("batch_size and accumulate are counts: expected 1 or more")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} does not divide by accumulate {self.accumulate}")
        if min(self.hq.steps, self.lq.steps, self.assoc.steps) < 0:
            raise ConfigError("steps of a phase: expected 0 or more")
        for name in ("hq", "lq", "assoc"):
            if not 0 <= getattr(self, name).disc_start <= 1:
                raise ConfigError(f"{name}.disc_start is a fraction of the phase: expected 0 to 1")

    @property
    def steps(self) -> dict[str, int]:
        """Return the optimiser steps by phase, in order."""
        return {"hq": self.hq.steps, "lq": self.lq.steps, "assoc": self.assoc.steps}

"""The `[restorer]` table of a recipe: stage 2. Defaults are the paper's where it states them.

A loss whose weight is 0 is off: its network is not even loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

from osdface_core.config import CodecConfig, LoRAConfig, ProjectionConfig, UNetConfig
from osdface_core.errors import ConfigError

from ..losses.adversarial import Objective
from ..losses.edge_dists import EdgeDistance

ImageNetNetwork = Literal["squeezenet", "squeezenet1_1", "vgg16", "vgg19"]


@dataclass(frozen=True)
class PixelTerm:
    """Plain differences of the pictures in [-1, 1] (`[restorer.pixel]`); paper Eq. 12: mse 1.

    Attributes:
        mse, l1: weights.
        relative_l1: weight of the L1 as a share of the input's own, so that a hardly damaged face, whose
            likeness is to be kept, counts more than one that has to be painted anew.
    """

    mse: float = 1.0
    l1: float = 0.0
    relative_l1: float = 0.0


@dataclass(frozen=True)
class LatentTerm:
    """Weight of the scaled latents' mean squared difference (`[restorer.latent]`); not in the paper."""

    mse: float = 0.0


@dataclass(frozen=True)
class PerceptualTerm:
    """ImageNet feature distance (`[vre.perceptual]`; `[restorer.perceptual]`, where the paper has none).

    Attributes:
        file: torchvision's weight file or its folder; empty looks in torch's download cache.
        distance: see osdface_trainer.losses.perceptual.PerceptualLoss.
    """

    weight: float = 0.0
    net: ImageNetNetwork = "squeezenet"
    file: str = ""
    distance: Literal["lpips", "l1", "mse"] = "lpips"


@dataclass(frozen=True)
class EADistsTerm:
    """Edge-aware DISTS (`[restorer.ea_dists]`), paper Eq. 14; λ_per is not stated (proposal: 1).

    Attributes:
        distance: `lpips` makes it EA-LPIPS (Table 5).
    """

    weight: float = 1.0
    distance: EdgeDistance = "dists"
    net: ImageNetNetwork = "vgg16"
    file: str = ""


@dataclass(frozen=True)
class IdentityTerm:
    """1 - cosine of face embeddings (`[restorer.identity]`), paper Eq. 13; λ_ID not stated (proposal 0.1).

    Attributes:
        file: MobileFaceNet or an ArcFace network; empty looks in torch's download cache.
    """

    weight: float = 0.1
    file: str = ""


@dataclass(frozen=True)
class ColorTerm:
    """L1 between blurred pictures (`[restorer.color]`): holds the low frequencies in place.

    Attributes:
        sigma: of the Gaussian [px at the picture's size].
    """

    weight: float = 0.0
    sigma: float = 8.0


@dataclass(frozen=True)
class DetailTerm:
    """L1 between local amplitudes of fine detail (`[restorer.detail]`); not in the paper.

    Attributes:
        sigma: of the Gaussian whose residual counts as detail [px].
    """

    weight: float = 0.0
    sigma: float = 2.0


@dataclass(frozen=True)
class PromptTerm:
    """How the UNet learns to listen to its prompt (`[restorer.prompting]`); not in the paper.

    Attributes:
        dropout: share of samples without a prompt.
        noise, noise_end: share of samples whose latent is mixed with noise, at the first and the last step.
        noise_range: part of noise in such a latent, drawn uniformly.
        clean_tokens: share of samples with the clean face's tokens at the first step; none at the last.
        fresh: projection and the cross-attention's queries, keys and values start anew, whatever `init` has.
    """

    dropout: float = 0.0
    noise: float = 0.0
    noise_end: float = 0.0
    noise_range: tuple[float, float] = (0.3, 0.9)
    clean_tokens: float = 0.0
    fresh: bool = False

    def __post_init__(self) -> None:
        _check_shares(self, "dropout", "noise", "noise_end", "clean_tokens")

    @property
    def active(self) -> bool:
        """Whether any sample gets something else than its own latent and tokens."""
        return max(self.dropout, self.noise, self.noise_end, self.clean_tokens) > 0


@dataclass(frozen=True)
class GuideTerm:
    """What the fidelity branch is given (`[restorer.guide]`), per window; `full` mode. Not in the paper.

    Attributes:
        dropout: share decoded without the branch (fidelity 0).
        partial: share of the rest with a fidelity between 0 and 1.
        clean_latents: share that shows the clean face's latent beside the degraded face.
        lr: factor on the decoder's learning rate for the branch, which starts at nothing.
    """

    dropout: float = 0.0
    partial: float = 0.0
    clean_latents: float = 0.0
    lr: float = 1.0

    def __post_init__(self) -> None:
        _check_shares(self, "dropout", "partial", "clean_latents")

    @property
    def active(self) -> bool:
        """Whether any window is decoded otherwise than in use."""
        return max(self.dropout, self.partial, self.clean_latents) > 0


@dataclass(frozen=True)
class PreviewTerm:
    """Losses on a small picture of the whole face (`[restorer.preview]`), for windows; `full` mode.

    Attributes:
        fit: steps in which the preview itself is fitted first; its losses start afterwards.
        lr: of the preview's AdamW meanwhile.
        l1, perceptual, identity: weights; networks are those of `perceptual` and `identity`.
    """

    fit: int = 260
    lr: float = 1e-3
    l1: float = 0.0
    perceptual: float = 0.0
    identity: float = 0.0

    @property
    def active(self) -> bool:
        """Whether any of its losses counts."""
        return max(self.l1, self.perceptual, self.identity) > 0


def _check_shares(table: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(table, name) <= 1:
            raise ConfigError(f"{name} is {getattr(table, name)}, expected a share from 0 to 1")


@dataclass(frozen=True)
class GANTerm:
    """Settings that all discriminators share.

    Attributes:
        weight: factor on the generator's adversarial loss; 0 = off. λ_dis is not stated (proposal 5e-3).
        adaptive: scale that factor so that the adversarial gradient at the restored picture (or latent) has
            `weight` times the norm of the other losses' gradient.
        objective: of discriminator and generator; see osdface_trainer.losses.adversarial.
        lr, betas: of the discriminator's AdamW (paper: 1e-4, as the generator).
        start: step from which it takes part; before, it costs nothing.
        ramp: steps in which its factor grows from 0.
    """

    weight: float = 0.0
    adaptive: bool = False
    objective: Objective = "softplus"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    start: int = 0
    ramp: int = 2000

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start < 0 or self.ramp < 0:
            raise ConfigError("weight, start and ramp: expected 0 or more")


@dataclass(frozen=True)
class DiffusionGANTerm(GANTerm):
    """Down and middle blocks of the UNet on diffused latents (`[restorer.gan.diffusion]`), paper §3.3.

    Attributes:
        train: `lora` adapts the frozen base (the paper, D3SR: rank 16, alpha 16); `all` trains a copy of the
            generator's UNet, taken when the discriminator starts. `full` mode allows `all` only.
        rank, alpha: of its LoRA; the targets are the generator's.
        hidden: width of the two-layer head (not stated).
        t_min, t_max: timesteps are drawn uniformly from t_min .. t_max - 1.
        prompt: condition it on the (detached) visual prompt, as Fig. 3 draws it.
    """

    train: Literal["lora", "all"] = "lora"
    rank: int = 16
    alpha: float = 16.0
    hidden: int = 512
    t_min: int = 0
    t_max: int = 1000
    prompt: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_timesteps(self.t_min, self.t_max)


def _check_timesteps(low: int, high: int) -> None:
    if not 0 <= low < high <= 1000:
        raise ConfigError(f"t_min {low}, t_max {high}: expected 0 <= t_min < t_max <= 1000")


@dataclass(frozen=True)
class FeatureGANTerm(GANTerm):
    """Small heads on a frozen ImageNet network, on pixels (`[restorer.gan.feature]`); for small data sets.

    Attributes:
        width: channels inside the heads.
        levels: taps of the network that get a head; empty = about one per resolution.
        augment: mirror and shift both pictures of a pair at random.
    """

    net: ImageNetNetwork = "squeezenet"
    file: str = ""
    width: int = 64
    levels: tuple[int, ...] = ()
    augment: bool = True


@dataclass(frozen=True)
class PatchGANTerm(GANTerm):
    """VQGAN's patch discriminator on pixels (`[restorer.gan.patch]`)."""

    width: int = 64
    layers: int = 3
    spectral: bool = True
    augment: bool = True


@dataclass(frozen=True)
class VSDTerm(GANTerm):
    """Variational score distillation (`[restorer.gan.vsd]`), OSEDiff's regulariser; `lora` mode.

    A copy of the base is tuned on the restored latents, with an optimiser like a discriminator's; the
    generator is pulled from its answer to the frozen base's. `objective` has no part in it.

    Attributes:
        rank, alpha: of the copy's LoRA; the targets are the generator's.
        t_min, t_max: timesteps of the pull are drawn uniformly from t_min .. t_max - 1.
        cfg: how strongly the frozen base is led away from `negative`, which needs a base with a text encoder;
            1 = not at all.
    """

    lr: float = 5e-5
    ramp: int = 0
    rank: int = 4
    alpha: float = 8.0
    t_min: int = 20
    t_max: int = 980
    cfg: float = 7.5
    negative: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_timesteps(self.t_min, self.t_max)


@dataclass(frozen=True)
class GANTerms:
    """`[restorer.gan]`: any of them, each with its own weight."""

    diffusion: DiffusionGANTerm = field(default_factory=lambda: DiffusionGANTerm(weight=5e-3))
    feature: FeatureGANTerm = field(default_factory=FeatureGANTerm)
    patch: PatchGANTerm = field(default_factory=PatchGANTerm)
    vsd: VSDTerm = field(default_factory=VSDTerm)


@dataclass(frozen=True)
class Crop:
    """Decode random windows only, on a share of the steps (`[restorer.crop]`): the decoder costs less.

    Identity needs the whole face and rests on those steps.

    Attributes:
        side: of a window [latent cells, 8 px each]; 0 = off.
        share: of the steps, 0 to 1.
        count: windows per face; what comes before the decoder runs once for all of them.
    """

    side: int = 0
    share: float = 0.75
    count: int = 1

    def __post_init__(self) -> None:
        if self.side < 0 or not 0 <= self.share <= 1 or self.count < 1:
            raise ConfigError(
                f"side {self.side}, share {self.share}, count {self.count}: "
                "expected side >= 0, 0 <= share <= 1 and count >= 1"
            )


@dataclass(frozen=True)
class ValidationConfig:
    """`[restorer.validation]`: validation scores on faces degraded with fixed seeds.

    Attributes:
        profiles: degradations (data/degrade_profiles.py); each is scored alone, for the restored and the
            low-quality face.
        metrics: their networks are those of `perceptual`, `identity` above, whose `file` must be at hand.
    """

    profiles: tuple[str, ...] = ("mild", "medium", "severe")
    metrics: tuple[Literal["psnr", "perceptual", "identity"], ...] = ("psnr", "perceptual", "identity")


@dataclass(frozen=True)
class RestorerTraining:
    """`[restorer]`.

    Attributes:
        mode: `lora` adapts a frozen Stable Diffusion 2.1-base (the paper); `full` trains a small UNet, and
            the decoder and fidelity branch of a tiny codec, into a self-contained checkpoint.
        train: (full) `all`; the `unet` alone: UNet and projection learn, the codec stays; or the `codec`
            alone: decoder and fidelity branch learn on the latents that the rest of `init` gives.
        keep_latents: keep what the frozen encoders say of a pair in the run folder; with `data.variants`.
        steps: optimiser steps (paper: 150,000 with batch 2); epochs: passes over the training faces instead,
            where it is not 0.
        batch_size: images per optimiser step over all processes; of each process with `per_process`, which
            the run notes as their sum.
        accumulate: micro-batches per optimiser step and process.
        base: (lora) diffusers folder or single-file SD 2.1-base.
        init: weights to start from: one of our checkpoints, or a folder with the released files. Its
            architecture then counts and `unet`, `codec`, `projection`, `lora` are ignored.
        vre: checkpoint (ours or released) that holds the VRE; empty takes `init`'s or this run's stage 1.
        codec_init: (full) folder with taesd_encoder.safetensors and taesd_decoder.safetensors, from which
            the codec starts even where `init` has one; `random` is for tests, because a frozen encoder that
            never learned knows nothing.
        prompt: `vre` (the paper), `learned` (77 free vectors, the same for every face), `none` (zeros) or
            `text` (Table 4): each face's tags (a manifest's column `tags`, or a .txt beside the face) through
            the base's text encoder.
        text: what counts for a face without tags; what is exported, so that inference needs no encoder.
        text_encoder: folder with tokenizer/ and text_encoder/; empty takes `base`.
        prompt_start: how the projection of a fresh `vre` prompt starts: `spread` scales it to a text
            encoder's size (restorer/init.py), `plain` is PyTorch's own start.
        timestep: T_L (paper §3.1).
        posterior: `mode` encodes deterministically, `sample` draws the posterior (the released behaviour).
        lr, betas, weight_decay, warmup, schedule, final_lr, clip: AdamW; paper: 1e-4, the rest not stated.
            `final_lr` is the fraction of `lr` on which a cosine ends.
        codec_lr, projection_lr, attention_lr: factors on `lr` for the codec, for projection or learned
            prompt, and for the cross-attention.
        ema: decay of the averaged weights, which are what gets exported; 0 = off.
        start_share: how much of the start's weights is mixed into the averaged ones, against forgetting.
        checkpoint_unet, checkpoint_decoder: recompute activations in the backward pass to save memory.
        gradient_norms: steps between two logs of each loss's gradient norm at the restored latent (it also
            refreshes adaptive weights); 0 = never.
    """

    mode: Literal["lora", "full"] = "lora"
    train: Literal["all", "unet", "codec"] = "all"
    keep_latents: bool = False
    name: str = "osdface"
    steps: int = 150_000
    epochs: float = 0.0
    batch_size: int = 2
    per_process: bool = False
    accumulate: int = 1
    base: str = ""
    init: str = ""
    vre: str = ""
    codec_init: str = ""
    prompt: Literal["vre", "learned", "none", "text"] = "vre"
    text: str = "a photo of a face"
    text_encoder: str = ""
    prompt_start: Literal["spread", "plain"] = "spread"
    timestep: int = 399
    posterior: Literal["mode", "sample"] = "mode"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 500
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float = 0.0
    clip: float = 1.0
    codec_lr: float = 1.0
    projection_lr: float = 1.0
    attention_lr: float = 1.0
    ema: float = 0.999
    start_share: float = 0.0
    checkpoint_unet: bool = False
    checkpoint_decoder: bool = False
    gradient_norms: int = 0
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    unet: UNetConfig | None = None
    codec: CodecConfig = field(default_factory=CodecConfig)
    pixel: PixelTerm = field(default_factory=PixelTerm)
    latent: LatentTerm = field(default_factory=LatentTerm)
    perceptual: PerceptualTerm = field(default_factory=PerceptualTerm)
    ea_dists: EADistsTerm = field(default_factory=EADistsTerm)
    identity: IdentityTerm = field(default_factory=IdentityTerm)
    color: ColorTerm = field(default_factory=ColorTerm)
    detail: DetailTerm = field(default_factory=DetailTerm)
    prompting: PromptTerm = field(default_factory=PromptTerm)
    guide: GuideTerm = field(default_factory=GuideTerm)
    preview: PreviewTerm = field(default_factory=PreviewTerm)
    gan: GANTerms = field(default_factory=GANTerms)
    crop: Crop = field(default_factory=Crop)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @property
    def needs_encodings(self) -> bool:
        """Whether a step works on latents and tokens that it was given, not on the face alone."""
        return self.keep_latents or self.prompting.active or self.guide.active or self.preview.active

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size {self.batch_size}, accumulate {self.accumulate}: expected counts of 1 or more, "
                "the first a multiple of the second"
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema {self.ema}: expected a decay from 0 (off) to below 1")
        if not 0 <= self.start_share < 1:
            raise ConfigError(f"start_share {self.start_share}: expected a share from 0 to below 1")
        if self.prompt == "text" and self.needs_encodings:
            raise ConfigError("prompt text: set keep_latents to false; prompting, guide, preview to 0")
        if self.mode == "full":
            self._check_full()
        elif self.train != "all" or self.guide.active or self.preview.active:
            raise ConfigError(
                "restorer.train, guide, preview: mode lora leaves the codec as it is; set train to all, the "
                "others to 0"
            )

    def _check_full(self) -> None:
        if self.init == "" and (self.unet is None or self.codec.kind != "tiny"):
            raise ConfigError('mode full needs init, or [restorer.unet] and [restorer.codec] of kind "tiny"')
        if self.gan.diffusion.weight > 0 and self.gan.diffusion.train != "all":
            raise ConfigError('mode full has no frozen base: set gan.diffusion.train to "all" or weight to 0')
        if self.gan.vsd.weight > 0:
            raise ConfigError("mode full has no frozen base: set gan.vsd.weight to 0")

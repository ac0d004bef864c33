"""Every number needed to rebuild a model, as frozen dataclasses.

A checkpoint stores one `OSDFaceConfig` as JSON in its header. The defaults are the released model's
(OSDFace, arXiv 2411.17163, and its inference code); the embedded `mini` overrides them. Ranges are wide: they
keep a damaged or hostile header from asking for years or terabytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple


class Within(NamedTuple):
    """What a number of a config may be, ends included; of a tuple, how many it may hold."""

    low: float
    high: float


Side = Annotated[int, Within(8, 1024)]  # [px]
Cells = Annotated[int, Within(1, 128)]  # side of a feature map with attention
Width = Annotated[int, Within(1, 16384)]  # channels of a layer, entries of a table
Count = Annotated[int, Within(1, 16)]  # blocks of a level
Levels = Within(1, 8)
Noise = Annotated[float, Within(1e-6, 0.999)]
Signal = Annotated[float, Within(-1000, 1000)]

# Linear and convolution layers of SD's UNet that one-step distillation adapts (the LCM-LoRA list);
# the paper does not state its own list, the released file carries linear and 3x3 convolution layers.
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


@dataclass(frozen=True)
class VREConfig:
    """Visual representation embedder: VQ encoder and codebook (paper §3.2; released weights' widths)."""

    resolution: Side = 512  # [px]; other sizes are squashed to it
    base_channels: Width = 64
    channel_multipliers: Annotated[tuple[Count, ...], Levels] = (1, 2, 2, 2, 4, 8)
    res_blocks: Count = 2
    attention_resolutions: Annotated[tuple[Cells, ...], Within(0, 8)] = (16,)
    z_channels: Width = 512
    codebook_size: Annotated[int, Within(1, 1 << 20)] = 1024
    norm_groups: Width = 32
    tokens: Annotated[int, Within(1, 4096)] = 77  # prompt length
    # [-3, 1] repeats the released code's second normalisation of an image already in [-1, 1].
    input_range: tuple[Signal, Signal] = (-3.0, 1.0)


@dataclass(frozen=True)
class ProjectionConfig:
    """Embedding change 512 -> 256 -> 1024, SiLU after both (released code)."""

    hidden: Width = 256
    out: Width = 1024
    # Above 0: that many free vectors stand in for the visual prompt, the same for every face (ablation).
    learned: Annotated[int, Within(0, 4096)] = 0
    # Above 0: each token also carries where it was found, one learned vector for each of so many positions of
    # the VRE's feature map (16 x 16 = 256). The released model has none: its prompt is a bag of codes.
    positions: Annotated[int, Within(0, 1 << 16)] = 0


@dataclass(frozen=True)
class UNetConfig:
    """A self-contained UNet; the fields are those of diffusers' UNet2DConditionModel."""

    block_out_channels: Annotated[tuple[Width, ...], Levels]
    cross_attention_levels: Annotated[tuple[bool, ...], Levels]  # whether each attends to the prompt
    layers_per_block: Count = 1
    attention_head_dim: Width = 32  # channels of one head
    norm_groups: Width = 32
    sample_size: Side = 64


@dataclass(frozen=True)
class CodecConfig:
    """The latent space. `kl`: SD's AutoencoderKL of a base model; `tiny`: TAESD-style, in the checkpoint."""

    kind: Literal["kl", "tiny"] = "kl"
    latent_channels: Width = 4
    # kl: latent = scaling_factor * posterior; tiny latents come scaled
    scaling_factor: Annotated[float, Within(1e-3, 100)] = 0.18215
    channels: Width = 64  # tiny: width of every stage
    encoder_blocks: Annotated[tuple[Count, ...], Within(3, 4)] = (1, 3, 3, 3)  # tiny: 3 start at half size
    decoder_blocks: Annotated[tuple[Count, ...], Within(4, 4)] = (3, 3, 3, 1)
    # tiny: widths of the fidelity branch at 1/1 to 1/8; () = none
    guide_channels: Annotated[tuple[Width, ...], Within(0, 4)] = ()
    fidelity_dial: bool = False  # tiny: whether training turned the branch down, so that users may
    least_fidelity: Annotated[float, Within(0, 1)] = 1.0  # tiny: for faces that were repainted; see `trust`
    repainted: tuple[Signal, Signal] = (0.62, 0.72)  # tiny: RMS change of the latent where that begins, ends


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters of the UNet (paper §4.1: rank 16)."""

    rank: Width = 16
    alpha: Annotated[float, Within(0, 1e6)] = 16.0
    targets: tuple[str, ...] = LORA_TARGETS
    encoder: bool = False  # whether the VAE's encoder has some too, `lora.vae.*` (OSEDiff; supplement C)


@dataclass(frozen=True)
class OSDFaceConfig:
    """One model. `arch` = `lora`: needs a Stable Diffusion 2.1-base; `full`: self-contained."""

    arch: Literal["lora", "full"] = "lora"
    name: str = "osdface"
    vre: VREConfig = field(default_factory=VREConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    unet: UNetConfig | None = None
    codec: CodecConfig = field(default_factory=CodecConfig)
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    base: str = "stable-diffusion-2-1-base"
    base_hash: str = ""  # sha256 of the base's UNet tensors' header when known
    timestep: Annotated[int, Within(0, 99_999)] = 399  # T_L (paper §3.1)
    prediction_type: Literal["epsilon"] = "epsilon"
    beta_start: Noise = 0.00085  # scaled-linear schedule of Stable Diffusion
    beta_end: Noise = 0.012
    train_timesteps: Annotated[int, Within(1, 100_000)] = 1000

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)

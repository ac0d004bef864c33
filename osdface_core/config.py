"""Every number needed to rebuild a model, as frozen dataclasses.

A checkpoint stores one `OSDFaceConfig` as JSON in its header. The defaults are the released model's
(OSDFace, arXiv 2411.17163, and its inference code); the embedded `mini` overrides them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Linear and convolution layers of SD's UNet that one-step distillation adapts (the LCM-LoRA list);
# the paper does not state its own list, the released file carries linear and 3x3 convolution layers.
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


@dataclass(frozen=True)
class VREConfig:
    """Visual representation embedder: VQ encoder and codebook (paper §3.2; released weights' widths)."""

    resolution: int = 512  # [px]; other sizes are squashed to it
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2, 4, 8)
    res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)  # side of the feature map [cells]
    z_channels: int = 512
    codebook_size: int = 1024
    norm_groups: int = 32
    tokens: int = 77  # prompt length
    # [-3, 1] repeats the released code's second normalisation of an image already in [-1, 1].
    input_range: tuple[float, float] = (-3.0, 1.0)


@dataclass(frozen=True)
class ProjectionConfig:
    """Embedding change 512 -> 256 -> 1024, SiLU after both (released code)."""

    hidden: int = 256
    out: int = 1024
    # Above 0: that many free vectors stand in for the visual prompt, the same for every face (ablation).
    learned: int = 0
    # Above 0: each token also carries where it was found, one learned vector for each of so many positions of
    # the VRE's feature map (16 x 16 = 256). The released model has none: its prompt is a bag of codes.
    positions: int = 0


@dataclass(frozen=True)
class UNetConfig:
    """A self-contained UNet; the fields are those of diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[int, ...]
    cross_attention_levels: tuple[bool, ...]  # which levels attend to the prompt, outermost first
    layers_per_block: int = 1
    attention_head_dim: int = 32  # channels of one head
    norm_groups: int = 32
    sample_size: int = 64


@dataclass(frozen=True)
class CodecConfig:
    """The latent space. `kl`: SD's AutoencoderKL of a base model; `tiny`: TAESD-style, in the checkpoint."""

    kind: Literal["kl", "tiny"] = "kl"
    latent_channels: int = 4
    scaling_factor: float = 0.18215  # kl: latent = scaling_factor * posterior; tiny latents come scaled
    channels: int = 64  # tiny: width of every stage
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    guide_channels: tuple[int, ...] = ()  # tiny: widths of the fidelity branch at 1/1 to 1/8; () = none
    fidelity_dial: bool = False  # tiny: whether training turned the branch down, so that users may


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters of the UNet (paper §4.1: rank 16)."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = LORA_TARGETS


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
    timestep: int = 399  # T_L (paper §3.1)
    prediction_type: Literal["epsilon"] = "epsilon"
    beta_start: float = 0.00085  # scaled-linear schedule of Stable Diffusion
    beta_end: float = 0.012
    train_timesteps: int = 1000

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)

"""The generator of stage 2: degraded face → prompt → one noise prediction → restored face (paper Fig. 3)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from osdface_core.choices import Posterior
from osdface_core.config import OSDFaceConfig
from osdface_core.errors import ConfigError
from osdface_core.models.backbone import Backbone
from osdface_core.models.codebook import Tokens
from osdface_core.models.vre import PromptEncoder
from osdface_core.one_step import OneStepRestorer

from ..layout import memory_format
from ..recipe.config import Recipe
from ..recipe.restorer import RestorerTraining
from .adapters import adapters_off

CELL = 8  # [px] that one latent cell covers


@dataclass(frozen=True)
class Windows:
    """Square parts of the face, one batch after the other [latent cells].

    Attributes:
        corners: top and left of each.
    """

    corners: tuple[tuple[int, int], ...]
    side: int

    def of_latent(self, latent: Tensor) -> Tensor:
        """Cut windows: (B, C, h, w) to (N·B, C, side, side)."""
        return self._cut(latent, 1)

    def of_image(self, image: Tensor) -> Tensor:
        """Cut the pixels of the same places: (B, C, 8h, 8w) to (N·B, C, 8·side, 8·side)."""
        return self._cut(image, CELL)

    def _cut(self, x: Tensor, cell: int) -> Tensor:
        side = self.side * cell
        starts = [(top * cell, left * cell) for top, left in self.corners]
        return torch.cat([x[..., top : top + side, left : left + side] for top, left in starts])


class Restored(NamedTuple):
    """What one forward pass gives.

    Attributes:
        image: (B, 3, H, W) float32, signed, not clamped; of the windows when there are some.
        latent: (B, 4, H/8, W/8) float32, the whole restored latent (Eq. 2).
        prompt: (B, 77, D).
    """

    image: Tensor
    latent: Tensor
    prompt: Tensor


class Conditions(NamedTuple):
    """Input of one generator pass in place of the face's own.

    Attributes:
        latent: (B, C, h, w), the low-quality latent, some with noise.
        tokens: (B, 77) codes and positions, some of the clean face.
        prompted: (B, 1, 1), 1; 0 where the prompt is left out.
        restored: (B, C, h, w), what a frozen UNet makes of them, where that is known; it does not run then.
    """

    latent: Tensor
    tokens: Tokens
    prompted: Tensor
    restored: Tensor | None = None


class Decoding(NamedTuple):
    """How N pictures or windows are decoded.

    Attributes:
        fidelity: (N, 1, 1, 1) in [0, 1].
        clean: (N, 1, 1, 1) bool, where the clean latent takes the restored one's place.
        latent: (B, C, h, w), the clean latents of the whole faces.
    """

    fidelity: Tensor
    clean: Tensor
    latent: Tensor


class Generator(nn.Module):
    """Prompt, noise predictor and codec as one module; which of its parameters learn was decided before.

    Args:
        config: T_L and the noise schedule.
        prompt: signed faces → (B, 77, D).
        backbone: its codec's encoder runs without gradient, unless the config says that it is adapted.
        posterior: how the low-quality face is encoded.
    """

    def __init__(
        self, config: OSDFaceConfig, prompt: PromptEncoder, backbone: Backbone, posterior: Posterior = "mode"
    ) -> None:
        super().__init__()
        self.config = config
        self.prompt = prompt
        self.codec: Any = backbone.codec
        self.predictor: Any = backbone.predictor
        self.posterior: Posterior = posterior
        self.learns_latent = bool(trained(self.prompt) or trained(self.predictor))
        self.learns_encoder = config.lora is not None and config.lora.encoder
        self.decode: Callable[..., Tensor] = self.codec.decode

    def encode(self, signed: Tensor, posterior: Posterior = "mode") -> Tensor:
        """Encode (B, 3, H, W) as scaled latents, with gradient where the encoder learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns_encoder):
            return self.one_step.encode(signed, posterior)

    @torch.no_grad()
    def encode_clean(self, signed: Tensor) -> Tensor:
        """Encode (B, 3, H, W) as the base does, for whose latents the decoder was made, without gradient."""
        with adapters_off(self.codec) if self.learns_encoder else nullcontext():
            return self.one_step.encode(signed)

    @property
    def one_step(self) -> OneStepRestorer:
        """The forward pass over the modules as they are now."""
        return OneStepRestorer(self.config, Backbone(self.codec, self.predictor))

    def forward(
        self,
        lq: Tensor,
        windows: Windows | None = None,
        given: Conditions | None = None,
        decoding: Decoding | None = None,
        prompt: Tensor | None = None,
    ) -> Restored:
        """Restore faces in one step.

        Args:
            lq: (B, 3, H, W) signed.
            windows: decode these parts only.
            given: latent and prompt in place of the face's own.
            decoding: how each window (or face) is decoded.
            prompt: (B, 77, D), in place of the face's own.
        """
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and self.learns_latent):
            if given is None:
                latent = self.encode(lq, self.posterior)
                if prompt is None:
                    prompt = self.prompt(lq)
                assert prompt is not None
            else:
                prompt, latent = self.prompt.project(given.tokens) * given.prompted, given.latent
            known = None if given is None else given.restored
            x0 = self.one_step.denoise(latent, prompt) if known is None else known
        if learning and not self.learns_latent:
            x0.requires_grad_()  # the losses' pulls are weighed there (adaptive_weight.py)
        part, guide = (x0, lq) if windows is None else (windows.of_latent(x0), windows.of_image(lq))
        if decoding is None:
            return Restored(self.decode(part, guide).float(), x0, prompt)
        clean = decoding.latent if windows is None else windows.of_latent(decoding.latent)
        part = torch.where(decoding.clean, clean, part)
        return Restored(self.decode(part, guide, decoding.fidelity).float(), x0, prompt)


def place(generator: Generator, recipe: Recipe, device: torch.device) -> Generator:
    """Move to the device; memory format, recomputation and compilation as the recipe says.

    Raises:
        ConfigError: recomputation is asked of a decoder that has none.
    """
    run, cfg = recipe.run, recipe.restorer
    generator = generator.to(device)
    layout = memory_format(run, device)
    generator.predictor.to(memory_format=layout)
    generator.codec.to(memory_format=layout)
    if cfg.checkpoint_unet:
        generator.predictor.unet.enable_gradient_checkpointing()
    if cfg.checkpoint_decoder:
        if not hasattr(generator.codec, "vae"):
            raise ConfigError("restorer.checkpoint_decoder: a tiny decoder has no such mode; set it to false")
        generator.codec.vae.enable_gradient_checkpointing()
    if run.compile:
        generator.predictor.unet.compile(dynamic=False)
        generator.decode = torch.compile(generator.decode, dynamic=False)
    return generator


def adamw(generator: nn.Module, cfg: RestorerTraining) -> AdamW:
    """Build the generator's optimiser: one group for each factor on the learning rate."""
    scales = {
        "predictor": 1.0, "codec": cfg.codec_lr, "prompt": cfg.projection_lr,
        "attn2": cfg.attention_lr, "guide": cfg.codec_lr * cfg.guide.lr,
    }  # fmt: skip
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in scales}
    for name, parameter in trained(generator).items():
        part = name.split(".", 1)[0]
        if cfg.attention_lr != 1.0 and ".attn2." in name:
            part = "attn2"
        elif cfg.guide.lr != 1.0 and name.startswith("codec.guide."):
            part = "guide"
        groups[part].append(parameter)
    fused = next(generator.parameters()).device.type == "cuda"
    return AdamW(
        [{"params": group, "lr_scale": scales[part]} for part, group in groups.items() if group],
        lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=fused or None,
    )  # fmt: skip


def unet_blocks(unet: Any) -> list[nn.Module]:
    """List what FSDP gathers one after the other: nearly all of a UNet's weights."""
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}

"""Models as they travel on sockets: the core's modules, in the hands of ComfyUI's memory manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..osdface_core.choices import Dtype
from ..osdface_core.color import keep_grey
from ..osdface_core.config import OSDFaceConfig
from ..osdface_core.devices import FACE_BYTES, faces_at_once, pick_dtype
from ..osdface_core.loading import Loaded, load_model, load_prompt_encoder, read_model, resolve
from ..osdface_core.models.backbone import Backbone
from ..osdface_core.models.lora import MergedLoRA
from ..osdface_core.models.vre import PromptEncoder
from ..osdface_core.options import RestoreOptions
from ..osdface_core.pipeline import FacePipeline
from . import host
from .native import SocketCodec, SocketPredictor, check_model, warn_partial_lora

PROMPT_BYTES = 600 << 20  # activations of the VRE per 512-pixel face, float32
PROMPT_BATCH = {"cpu": 1}  # faces at once; 8 elsewhere


class Embedder:
    """OSDFACE_VRE: face crops to prompts. Float32 always: a half-precision encoder picks other tokens."""

    def __init__(self, config: OSDFaceConfig, encoder: PromptEncoder) -> None:
        self.config = config
        self.encoder = encoder.eval()
        self.managed = host.Managed(encoder)

    @classmethod
    def load(cls, source: str) -> Embedder:
        checkpoint = read_model(source)
        return cls(checkpoint.config, load_prompt_encoder(checkpoint, resolve(source).name))

    @torch.inference_mode()
    def encode(self, crops: Tensor, tick: Callable[[int], None] = lambda count: None) -> Tensor:
        """Encode (N, 3, H, W) in [0, 1] as prompts (N, 77, D), float32; call `tick` after each batch."""
        prompts = [crops.new_zeros(0, self.config.vre.tokens, self.config.projection.out)]
        size = PROMPT_BATCH.get(host.compute_device().type, 8)
        for batch in crops.split(size) if len(crops) else ():
            device = self.managed.load(PROMPT_BYTES * len(batch))
            with host.cancellable():
                prompt = self.encoder(batch.to(device, torch.float32) * 2.0 - 1.0)
            prompts.append(prompt.to(crops.device))
            tick(len(batch))
        return torch.cat(prompts)


class Dial:
    """The strength at which a merged LoRA now is, and the way to another."""

    def __init__(self, lora: MergedLoRA, now: float) -> None:
        self.lora, self.now = lora, now

    def turn(self, pipeline: FacePipeline, strength: float) -> None:
        """Merge the LoRA anew, from what was read, unless it is at that strength."""
        if strength != self.now:
            self.now = float("nan")  # until it has ended
            pipeline.set_lora_scale(strength, self.lora.merge)
            self.now = strength


class Restorer:
    """OSDFACE_BACKBONE: latent codec and noise predictor, and the one step between them.

    Args:
        pipeline: holds the two protocols; prompts come in on a socket.
        managed: the pack's own modules; None if they belong to MODEL and VAE sockets, which load themselves.
        strength: of the LoRA.
        dial: shared by all that use the same modules; None where the strength cannot be turned.
    """

    def __init__(
        self,
        pipeline: FacePipeline,
        managed: host.Managed | None,
        strength: float = 1.0,
        dial: Dial | None = None,
    ) -> None:
        self.pipeline, self.managed = pipeline, managed
        self.strength, self.dial = strength, dial

    @classmethod
    def load(cls, source: str, base: str | None, strength: float, dtype: Dtype) -> tuple[Restorer, Loaded]:
        """Load the modules from files."""
        loaded = load_model(source, base=base, lora_scale=strength)
        return cls._own(loaded, strength, dtype), loaded

    @classmethod
    def _own(cls, loaded: Loaded, strength: float, dtype: Dtype) -> Restorer:
        device = host.compute_device()
        precision = host.auto_dtype(device) if dtype == "auto" else None
        backbone = loaded.backbone
        pipeline = FacePipeline(
            loaded.config, None, backbone,
            device=torch.device("cpu"), dtype=precision or pick_dtype(dtype, device),
        )  # fmt: skip
        if device.type == "cpu":
            pipeline.use_engine()
        modules = nn.ModuleList([cast(nn.Module, backbone.codec), cast(nn.Module, backbone.predictor)])
        dial = Dial(loaded.lora, strength) if loaded.lora else None
        return cls(pipeline, host.Managed(modules), strength, dial)

    def takes(self, strength: float) -> bool:
        """Tell whether `at` another strength of the LoRA needs no file."""
        return self.dial is not None or self.config.arch == "full" or strength == self.strength

    def at(self, strength: float) -> Restorer:
        """Return the same modules with their LoRA at another strength, which is merged when they are used."""
        return Restorer(self.pipeline, self.managed, strength, self.dial)

    @classmethod
    def from_sockets(cls, model: Any, vae: Any) -> Restorer:
        """Wrap ComfyUI's MODEL and VAE.

        Raises:
            ValueError: MODEL is no Stable Diffusion 2.1-base.
        """
        check_model(model)
        warn_partial_lora(model)
        backbone = Backbone(SocketCodec(vae, model.model), SocketPredictor(model))
        pipeline = FacePipeline(
            OSDFaceConfig(), None, backbone, device=model.load_device, dtype=torch.float32
        )
        return cls(pipeline, None)

    @property
    def config(self) -> OSDFaceConfig:
        return self.pipeline.config

    def restore(
        self,
        crops: Tensor,
        prompts: Tensor,
        options: RestoreOptions,
        tick: Callable[[int, Tensor], None] = lambda count, restored: None,
    ) -> Tensor:
        """Restore (N, 3, H, W) crops with prompts (N or 1, 77, D), batch by batch.

        Args:
            options: see `OSDFacePipeline.restore`.
            tick: called after each batch with its size and result; may raise to stop.
        Returns:
            (N, 3, H', W') in [0, 1], float32, on the crops' device.
        Raises:
            ValueError: prompts do not fit the crops or the model.
        """
        prompts = self._fitting(prompts, len(crops))
        if self.dial is not None:
            self.dial.turn(self.pipeline, self.strength)
        done = [crops[:0, :, : crops.shape[-2] // 8 * 8, : crops.shape[-1] // 8 * 8]]
        start = 0
        while start < len(crops):
            size = self._prepare(options.batch_size or len(crops), options.batch_size)
            batch = crops[start : start + size]
            with host.cancellable():
                restored = self.pipeline.restore(
                    batch,
                    strength=options.strength,
                    fidelity=options.fidelity,
                    timestep=options.timestep,
                    color_fix=options.color_fix,
                    batch_size=size,
                    prompt=prompts[start : start + size],
                )
            restored = keep_grey(restored, batch)  # a black-and-white photo gains no tint
            done.append(restored)
            start += len(batch)
            tick(len(batch), restored)
        return torch.cat(done)

    def _prepare(self, wanted: int, fixed: int | None) -> int:
        """Load what is ours; how many faces to take at once."""
        per_face = FACE_BYTES[self.config.codec.kind] * self.pipeline.dtype.itemsize // 4
        if self.managed is not None:
            self.pipeline.device = self.managed.load(per_face * min(wanted, 4))
        device = self.pipeline.device
        return fixed or faces_at_once(device, self.config, self.pipeline.dtype, host.free_bytes(device))

    def _fitting(self, prompts: Tensor, count: int) -> Tensor:
        width = self.config.projection.out
        if prompts.ndim != 3 or prompts.shape[-1] != width:
            raise ValueError(
                f"the conditioning is {tuple(prompts.shape)}, this model needs (faces, 77, {width}): "
                "use Encode Prompt with the VRE of the same checkpoint"
            )
        if len(prompts) not in (1, count) and count:
            raise ValueError(
                f"{len(prompts)} prompts for {count} crops: encode the same crops, or give one prompt"
            )
        return prompts.expand(count, -1, -1) if len(prompts) == 1 else prompts

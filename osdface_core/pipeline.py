"""FacePipeline: aligned faces in, better faces out, in one diffusion step. Whole photos: `photo.py`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .choices import Codec, ColorFix, Dtype, EngineName, LoRAMode, Posterior, check_choice
from .config import OSDFaceConfig
from .devices import TORCH_DTYPES, faces_at_once, is_out_of_memory, pick_device, pick_dtype
from .engines import Engine, choose_engine
from .errors import ConfigError, ImageError, OptionError
from .models.backbone import Backbone
from .models.vre import VRE, PromptEncoder
from .one_step import OneStepRestorer

log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]
"""Called with (faces done, faces in all)."""
Self = TypeVar("Self", bound="FacePipeline")


class FacePipeline:
    """Prompt encoder and one-step restorer on a device, for batches of any number of faces.

    Attributes:
        config: every number of the model.
        prompt_encoder: face to prompt, float32 whatever `dtype` is; None if prompts come from elsewhere.
        one_step: the forward pass over `backbone`.
        engine: how codec and predictor run; `use_engine` sets it.
        device, dtype: where codec and predictor lie, and their precision; `to` changes both.
        training: provenance from the checkpoint's header.
    """

    def __init__(
        self,
        config: OSDFaceConfig,
        prompt_encoder: PromptEncoder | None,
        backbone: Backbone,
        *,
        device: torch.device,
        dtype: torch.dtype,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.training = training or {}
        self.prompt_encoder = prompt_encoder
        self._own = backbone
        self._door, self._idle = threading.Lock(), threading.Condition()  # a change that waits holds the door
        self._running = 0  # restorations, in several threads
        self.engine: Engine = choose_engine("eager", device)
        self._place(device, dtype)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        source: str | Path = "mini",
        *,
        base: str | Path | None = None,
        lora_scale: float = 1.0,
        lora: LoRAMode = "merged",
        device: str | torch.device = "auto",
        dtype: Dtype | torch.dtype = "auto",
        engine: EngineName = "auto",
        codec: Codec = "own",
        codec_dir: str | Path | None = None,
    ) -> Self:
        """Load a model; never touches the network.

        Args:
            source: "mini" (embedded), a checkpoint .safetensors, or a folder with the three released files.
            base: Stable Diffusion 2.1-base for LoRA checkpoints: a diffusers folder or one .safetensors file.
            device, dtype: by name or as torch has them; the VRE is float32 always.
            lora_scale, lora, engine, codec, codec_dir: as `LoadOptions` in options.py says.
        Raises:
            OptionError: an unknown choice, or a device or engine that is not here.
            CheckpointError: one line that says which file is wrong and what to do.
        """
        from .loading import load_model

        place = pick_device(device)
        loaded = load_model(
            source, base=base, lora_scale=lora_scale, lora=lora, codec=codec, codec_dir=codec_dir
        )
        pipeline = cls(
            loaded.config,
            loaded.prompt_encoder,
            loaded.backbone,
            device=place,
            dtype=pick_dtype(dtype, place),
            training=loaded.training,
        )
        pipeline.use_engine(engine)
        return pipeline

    def __repr__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({self.config.name!r}, device={str(self.device)!r}, dtype={precision}, "
            f"engine={self.engine.name!r}, timestep={self.config.timestep})"
        )

    @property
    def vre(self) -> VRE:
        """The visual representation embedder."""
        return self._encoder().vre

    @property
    def backbone(self) -> Backbone:
        """`.codec` and `.predictor`, the two protocols of `models/backbone.py`, as `engine` runs them."""
        return self.one_step.backbone

    def to(self: Self, *where: str | torch.device | torch.dtype) -> Self:
        """Move to a device, change the precision, or both, in place: `pipeline.to("cuda", torch.float16)`.

        Args:
            where: devices and dtypes by name or as torch has them. Digits that a dtype drops are lost.
        Raises:
            OptionError: no such device here.
        """
        device, dtype = self.device, self.dtype
        for name in where:
            if isinstance(name, torch.dtype):
                dtype = name
            elif isinstance(name, str) and name in TORCH_DTYPES:
                dtype = TORCH_DTYPES[name]
            else:
                device = pick_device(name)
        self._switch(lambda: choose_engine(self.engine.name, device), lambda: self._place(device, dtype))
        return self

    def use_engine(self, name: EngineName = "auto") -> None:
        """Run codec and predictor through another engine; the VRE, and so its tokens, stay as they are.

        Waits for other threads' batches. Meanwhile an engine may keep the weights in a layout of its own and
        leave the modules that this pipeline was made of empty; "eager" gives them back, bit by bit.

        Args:
            name: see `engines.choose_engine`.
        Raises:
            ConfigError: an unknown name, or an engine that this device or installation lacks.
        """
        self._switch(lambda: choose_engine(name, self.device))

    def set_lora_scale(self, strength: float, turn: Callable[..., None] | None = None) -> None:
        """Turn a LoRA: 0 the bare base, 1 as trained.

        Args:
            turn: `MergedLoRA.merge` of a merged one; None for a live one (`from_pretrained(lora="live")`).
        """
        from .models.lora import set_strength

        # An engine may have worked the old strength in.
        self._switch(lambda: self.engine, lambda: (turn or set_strength)(self._own, strength))

    @torch.inference_mode()
    def tokens(self, faces: Tensor) -> Tensor:
        """Pick the codes of each face: (B, 3, H, W) in [0, 1] to (B, 77) int64, -1 where fewer occur."""
        with self._engine_kept():
            return self.vre.tokens(self._signed(faces)).codes

    @torch.inference_mode()
    def encode_prompt(self, faces: Tensor) -> Tensor:
        """Encode faces (B, 3, H, W) in [0, 1] as prompts (B, 77, D), float32."""
        with self._engine_kept():
            return self._encoder()(self._signed(faces))

    @torch.inference_mode()
    def restore(
        self,
        faces: Tensor,
        *,
        strength: float = 1.0,
        fidelity: float = 1.0,
        color_fix: ColorFix = "none",
        posterior: Posterior = "mode",
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: OnProgress | None = None,
        timestep: int | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Restore aligned faces, each independently of its batch.

        Args:
            faces: (B, 3, 512, 512) float in [0, 1]; other sides work and are rounded down to multiples of 8.
            strength, fidelity, color_fix, batch_size: as `RestoreOptions` in options.py says.
            posterior: "mode" is deterministic; "sample" draws the posterior with `generator` (parity).
            progress: called with (faces done, faces in all).
            timestep: T_L if None. Other values move the balance between keeping and inventing.
            prompt: (B or 1, 77, D) from `encode_prompt`, instead of the faces' own.
        Returns:
            (B, 3, H, W), dtype and device of `faces`, in [0, 1].
        Raises:
            ImageError: wrong rank, channel count, range or a side below 8 px.
            OptionError: an option outside its range or choices.
            ConfigError: no prompt, from a pipeline without a prompt encoder.
        """
        check_faces(faces)
        check_choice("color_fix", color_fix, ColorFix)
        if not 0.0 <= strength <= 1.0:
            raise OptionError("strength", strength, "0..1")
        if not 0.0 <= fidelity <= 1.0 or (fidelity < 1.0 and not self.config.codec.fidelity_dial):
            dial = self.config.codec.fidelity_dial
            raise OptionError("fidelity", fidelity, "0..1" if dial else "1: this model has no such dial")
        if batch_size is not None and batch_size < 1:
            raise OptionError("batch_size", batch_size, "at least 1")
        size = batch_size or faces_at_once(self.device, self.config, self.dtype)
        done = faces[..., : faces.shape[-2] // 8 * 8, : faces.shape[-1] // 8 * 8].clone()
        prompts = None if prompt is None else prompt.expand(len(faces), -1, -1)
        start = 0 if strength else len(faces)  # nothing of it would be kept
        while start < len(faces):
            chunk = faces[start : start + size]
            own = self._encoder() if prompts is None else prompts[start : start + size]
            try:
                with self._engine_kept():
                    restored = self.one_step(
                        self._signed(chunk),
                        own,
                        timestep=timestep,
                        fidelity=fidelity,
                        posterior=posterior,
                        generator=generator,
                    )
            except (RuntimeError, MemoryError) as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
                size = (len(chunk) + 1) // 2
                log.warning("out of memory with %d faces at once; going on with %d", len(chunk), size)
                continue
            done[start : start + len(chunk)] = blend(chunk, restored, strength, color_fix)
            start += len(chunk)
            if progress:
                progress(start, len(faces))
        return done

    def _switch(self, choose: Callable[[], Engine], between: Callable[[], None] = lambda: None) -> None:
        """Choose an engine, undo the old one, call `between` on the own modules, and prepare the new one."""
        with self._door, self._idle:
            self._idle.wait_for(lambda: not self._running)
            engine = choose()  # refused before anything moves
            self.engine.undo(self.backbone)
            self.engine = choose_engine("eager", self.device)
            self.one_step = OneStepRestorer(self.config, self._own)
            try:
                between()
            finally:
                self.one_step, self.engine = OneStepRestorer(self.config, engine.prepare(self._own)), engine

    @contextmanager
    def _engine_kept(self) -> Iterator[None]:
        with self._door, self._idle:
            self._running += 1
        try:
            with torch.autocast("cpu", enabled=False):  # compiled layers read what they are given as float32
                yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _encoder(self) -> PromptEncoder:
        if self.prompt_encoder is None:
            raise ConfigError("this pipeline has no prompt encoder: give the faces' prompt")
        return self.prompt_encoder

    def _signed(self, faces: Tensor) -> Tensor:
        upload = self.device.type == "cuda" and faces.device.type == "cpu"
        if upload:
            faces = faces.pin_memory()  # the copy then runs beside the host, which goes on to queue the model
        return faces.to(self.device, torch.float32, non_blocking=upload) * 2.0 - 1.0

    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        if self.prompt_encoder is not None:
            self.prompt_encoder.to(device).eval()
            # Channels last makes the float32 encoder 1.25 times as fast on the CPU, with the same tokens.
            layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
            self.prompt_encoder.vre.to(memory_format=layout)  # type: ignore[call-overload]
        for part in (self._own.codec, self._own.predictor):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.one_step = OneStepRestorer(self.config, self._own)


def blend(faces: Tensor, restored: Tensor, strength: float, color_fix: ColorFix) -> Tensor:
    """Mix faces in [0, 1] with what was restored of them, signed; dtype and device of `faces`."""
    unit = (restored.clamp(-1.0, 1.0) * 0.5 + 0.5).to(faces.device)
    source = faces.float()[..., : unit.shape[-2], : unit.shape[-1]]
    if color_fix != "none":
        from .color import color_fix as fix_color

        unit = fix_color(unit, source, color_fix)
    return torch.lerp(source, unit, strength).clamp(0.0, 1.0).to(faces.dtype)


def check_faces(faces: Tensor) -> None:
    """Refuse what is no batch of faces in [0, 1]; what interpolation overshoots is let through.

    Raises:
        ImageError: wrong rank, channel count, type or range, or a side below 8 px.
    """
    if faces.ndim != 4 or faces.shape[1] != 3 or not faces.is_floating_point():
        raise ImageError(
            f"faces are {tuple(faces.shape)} {faces.dtype}, expected (B, 3, H, W) float in [0, 1]"
        )
    if min(faces.shape[-2:]) < 8:
        raise ImageError(f"faces are {faces.shape[-1]}x{faces.shape[-2]} px, expected at least 8x8")
    low, high = (float(bound) for bound in faces.aminmax()) if faces.numel() else (0.0, 1.0)
    if low < -8.0 or high > 16.0:  # highlights of a photo in floats may be several times its white
        raise ImageError(f"faces have values from {low:g} to {high:g}, expected 0 to 1; divide 0..255 by 255")

"""OSDFacePipeline: a face in, a better face out, in one diffusion step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import OSDFaceConfig
from .devices import faces_at_once, is_out_of_memory, pick_device, pick_dtype
from .engines import Engine, choose_engine
from .errors import ImageError
from .loading import Loaded, load_model
from .models.backbone import Backbone
from .models.vre import VRE, Projection
from .one_step import alpha_bar, predict_x0
from .options import Codec, ColorFix, Dtype, EngineName, LoRAMode, Posterior, RestoreOptions, check

if TYPE_CHECKING:
    from .photo import PhotoInput, PhotoResult

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


class OSDFacePipeline:
    """VRE, projection, one noise prediction, decode (paper Fig. 3).

    Attributes:
        config: every number of the model.
        vre, projection: prompt side; the VRE is float32 whatever `dtype` is.
        backbone: `.codec` and `.predictor`, the two protocols of `backbone.py`, as `engine` runs them.
        engine: how they run; `use_engine` sets it.
        training: provenance from the checkpoint's header.
    """

    def __init__(
        self,
        config: OSDFaceConfig,
        vre: VRE,
        projection: Projection,
        backbone: Backbone,
        *,
        device: torch.device,
        dtype: torch.dtype,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.training = training or {}
        # Channels last makes the float32 encoder 1.25 times as fast on the CPU, with the same tokens.
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.vre = vre.to(device).to(memory_format=layout).eval()  # type: ignore[call-overload]
        self.projection = projection.to(device).eval()
        self.backbone = backbone
        self._own = backbone
        self.engine: Engine = choose_engine("eager", device)
        for part in (backbone.codec, backbone.predictor):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(
        cls,
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
    ) -> OSDFacePipeline:
        """Load a model; never touches the network.

        Args:
            source: "mini" (embedded), a checkpoint .safetensors, or a folder with the three released files.
            base: Stable Diffusion 2.1-base for LoRA checkpoints: a diffusers folder or one .safetensors file.
            lora_scale: strength of the LoRA; 0 is the bare base model, 1 the trained one.
            lora: "merged" into the weights, or "live" (needs peft) so that `set_lora_scale` can turn it.
            device: auto | cpu | cuda[:n] | mps.
            dtype: auto | fp32 | fp16 | bf16 or a torch dtype, for everything but the VRE.
            engine: how it runs; see `engines.choose_engine`.
            codec: "own", or "taesd" for quicker, softer previews with a model on Stable Diffusion.
            codec_dir: folder with TAESD's two files; torch's cache without one.
        Raises:
            CheckpointError: one line that says which file is wrong and what to do.
            ConfigError: an engine that does not exist or cannot run here.
        """
        target = pick_device(device)
        loaded: Loaded = load_model(
            source, base=base, lora_scale=lora_scale, lora=lora, codec=codec, codec_dir=codec_dir
        )
        pipeline = cls(
            loaded.config,
            loaded.vre,
            loaded.projection,
            loaded.backbone,
            device=target,
            dtype=pick_dtype(dtype, target),
            training=loaded.training,
        )
        pipeline.use_engine(engine)
        return pipeline

    def use_engine(self, name: EngineName = "auto") -> None:
        """Run codec and predictor through another engine; the VRE, and so its tokens, stay as they are.

        Args:
            name: see `engines.choose_engine`.
        Raises:
            ConfigError: an unknown name, or an engine that this device or installation lacks.
        """
        self.engine = choose_engine(name, self.device)
        self.backbone = self.engine.prepare(self._own)

    def set_lora_scale(self, strength: float) -> None:
        """Turn a live LoRA (`from_pretrained(lora="live")`): 0 the bare base, 1 as trained."""
        from .models.lora import set_strength

        set_strength(self._own.predictor, strength)  # type: ignore[arg-type]
        self.backbone = self.engine.prepare(self._own)  # an engine may have worked the old strength in

    @torch.inference_mode()
    def tokens(self, faces: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 77) int64 dictionary indices, -1 where fewer codes occur."""
        return self.vre.tokens(self._signed(faces))

    @torch.inference_mode()
    def encode_prompt(self, faces: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the prompt (B, 77, D), float32."""
        return self._prompt(self._signed(faces))

    @torch.inference_mode()
    def restore(
        self,
        faces: Tensor,
        *,
        strength: float = 1.0,
        color_fix: ColorFix = "none",
        posterior: Posterior = "mode",
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        timestep: int | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Restore aligned faces, each independently of its batch.

        Args:
            faces: (B, 3, 512, 512) float in [0, 1]; other sides work and are rounded down to multiples of 8.
            strength: 0 returns the input, 1 the restored face, between them a blend of the pixels.
            color_fix: none | adain | wavelet | luma, with the input as reference.
            posterior: "mode" is deterministic; "sample" draws the posterior with `generator` (parity).
            batch_size: faces at once; None takes what fits in free memory. Halved when memory runs out.
            progress: called with (faces done, faces in all).
            timestep: T_L if None. Other values move the balance between keeping and inventing.
            prompt: (B or 1, 77, D) from `encode_prompt`, instead of the faces' own.
        Returns:
            (B, 3, H, W), dtype and device of `faces`, in [0, 1].
        Raises:
            OptionError: an option is out of range.
            ImageError: wrong rank, channel count or a side below 8 px.
        """
        check(
            RestoreOptions, strength=strength, color_fix=color_fix, batch_size=batch_size, timestep=timestep
        )
        self._check(faces)
        a_bar = alpha_bar(self.config, timestep)
        steps = self.config.timestep if timestep is None else timestep
        size = batch_size or faces_at_once(self.device, self.config, self.dtype)
        height, width = faces.shape[-2] // 8 * 8, faces.shape[-1] // 8 * 8
        done = faces[..., :height, :width].clone()
        start = 0
        while start < len(faces):
            chunk = faces[start : start + size]
            own = None if prompt is None else prompt.expand(len(faces), -1, -1)[start : start + size]
            try:
                out = self._forward(self._signed(chunk), own, steps, a_bar, posterior, generator)
            except (RuntimeError, MemoryError) as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
                size = (len(chunk) + 1) // 2
                log.warning("out of memory with %d faces at once; going on with %d", len(chunk), size)
                continue
            done[start : start + len(chunk)] = self._finish(chunk, out, strength, color_fix)
            start += len(chunk)
            if progress:
                progress(start, len(faces))
        return done

    def restore_photo(self, photo: PhotoInput, **options: Any) -> PhotoResult:
        """Find, align, restore and paste back every face of a photo; see `photo.restore_photo`."""
        from .photo import restore_photo

        return restore_photo(self, photo, **options)

    def _signed(self, faces: Tensor) -> Tensor:
        upload = self.device.type == "cuda" and faces.device.type == "cpu"
        if upload:
            faces = faces.pin_memory()  # the copy then runs beside the host, which goes on to queue the model
        return faces.to(self.device, torch.float32, non_blocking=upload) * 2.0 - 1.0

    def _prompt(self, signed: Tensor) -> Tensor:
        return self.projection(self.vre(signed))

    def _forward(
        self,
        signed: Tensor,
        prompt: Tensor | None,
        timestep: int,
        a_bar: float,
        posterior: Posterior,
        generator: torch.Generator | None,
    ) -> Tensor:
        """One diffusion step: signed faces on the device to a signed, unclamped, float32 result."""
        codec = self.backbone.codec
        with _side_stream(self.device) as side:
            # The VRE and the codec's encoder do not depend on each other (supplement B: 14 % faster).
            prompt = self._prompt(signed) if prompt is None else prompt.to(self.device)
        latent = codec.encode(signed, posterior, generator)
        side.join(prompt)
        eps = self.backbone.predictor(latent, timestep, prompt)
        x0 = predict_x0(latent, eps, a_bar)
        return codec.decode(x0, signed).float()

    def _finish(self, faces: Tensor, signed: Tensor, strength: float, color_fix: ColorFix) -> Tensor:
        restored = (signed.clamp(-1.0, 1.0) * 0.5 + 0.5).to(faces.device)
        source = faces.float()[..., : restored.shape[-2], : restored.shape[-1]]
        if color_fix != "none":
            from .color import color_fix as fix_color

            restored = fix_color(restored, source, color_fix)
        return torch.lerp(source, restored, strength).clamp(0.0, 1.0).to(faces.dtype)

    def _check(self, faces: Tensor) -> None:
        if faces.ndim != 4 or faces.shape[1] != 3 or not faces.is_floating_point():
            raise ImageError(
                f"faces are {tuple(faces.shape)} {faces.dtype}, expected (B, 3, H, W) float in [0, 1]"
            )
        if min(faces.shape[-2:]) < 8:
            raise ImageError(f"faces are {faces.shape[-1]}x{faces.shape[-2]} px, expected at least 8x8")


class _side_stream:  # noqa: N801
    """Run a block on a second CUDA stream; elsewhere do nothing."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> _side_stream:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            self._context = torch.cuda.stream(self.stream)
            self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.stream is not None:
            self._context.__exit__(*error)

    def join(self, result: Tensor) -> None:
        """Make the current stream wait for the block, and own its result."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.stream.device)
            current.wait_stream(self.stream)
            result.record_stream(current)

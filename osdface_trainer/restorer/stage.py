"""Stage 2: the one-step restorer (paper §3.3).

One generator pass per step. Its losses are those of `losses.py` and of any discriminators of
`discriminators.py`, which learn from the same pass. What is shown, scored and exported are the averaged
weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.config import OSDFaceConfig

from .. import distributed
from ..layout import memory_format
from ..optim import lr_factor
from ..recipe.config import Recipe
from ..seeds import mix
from ..stage import FaceBatch, to_signed, to_unit
from .adaptive_weight import AdaptiveWeight
from .conditioning import draw_conditions, draw_decoding
from .discriminators import Discriminator, DiscriminatorInputs, build_discriminators
from .export import export_tensors
from .generator import CELL, Generator, Restored, Windows, adamw, place, trained, unet_blocks
from .init import Initial, build_initial
from .latent_cache import LatentCache
from .losses import Networks, Objectives
from .preview import PreviewFit, small_picture
from .validation import Validation
from .weight_average import WeightAverage


class RestorerStage:
    """Generator, discriminators, average; see `TrainingStage` for the contract with the loop.

    Args:
        initial: generator and what comes with it, from `build_initial`.
        networks: frozen judges; their files come from the recipe.
    """

    name = "restorer"

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, initial: Initial, networks: Networks
    ) -> None:
        self.recipe, self.cfg, self.accelerator = recipe, recipe.restorer, accelerator
        self.total_steps, self.parent = self.cfg.steps, initial.parent
        self.objectives = Objectives(self.cfg, networks)
        self.discriminators = build_discriminators(recipe, accelerator, initial, networks)
        self.core = place(initial.generator, recipe, accelerator.device)
        self.text = initial.text.to(accelerator.device) if initial.text else None
        blocks = unet_blocks(self.core.predictor.unet)
        self.generator, self.optimizer = distributed.prepare(
            accelerator, self.core, lambda core: adamw(core, self.cfg), blocks
        )
        self.ema = WeightAverage(trained(self.core), self.cfg.ema, self.cfg.start_share)
        self.adaptive_weight = AdaptiveWeight(accelerator, self.cfg.gradient_norms)
        self.validation = (
            Validation(self.cfg, networks) if recipe.run.validate_every and recipe.data.val else None
        )
        self.encodings = LatentCache(
            self.core,
            latents_folder(recipe) if self.cfg.keep_latents else None,
            restores=not self.core.learns_latent and not self.cfg.prompting.active,
        )
        self.preview = PreviewFit(self.core, self.cfg, accelerator) if self.cfg.preview.active else None
        self.modules: Mapping[str, nn.Module] = {
            "generator": self.generator,
            **{f"gan_{o.name}": o.net for o in self.discriminators},
        }
        self.optimizers: Mapping[str, Optimizer] = {
            "generator": self.optimizer,
            **({"preview": self.preview.optimizer} if self.preview else {}),
            **{f"gan_{o.name}": o.optimizer for o in self.discriminators},
        }

    def step(self, batch: FaceBatch, step: int) -> dict[str, Tensor]:
        """Update generator and discriminators once, over all micro-batches."""
        active = [o for o in self.discriminators if o.active(step)]
        for discriminator in active:
            if step == discriminator.cfg.start:
                discriminator.begin(self.core)
        nets, parts = [self.generator, *(o.net for o in active)], self.cfg.accumulate
        scalars = distributed.accumulate(
            self.accelerator,
            nets,
            batch.split(parts),
            parts,
            lambda micro: self._backward(micro, step, active),
        )
        return scalars | self._update(step, active)

    def windows(self, step: int, size: tuple[int, int]) -> Windows | None:
        """Draw the parts that this step decodes, or None for the whole face; the same on all processes.

        Args:
            size: height and width of the latent [cells].
        """
        side, share, count = self.cfg.crop.side, self.cfg.crop.share, self.cfg.crop.count
        if side == 0 or side >= min(size) or int((step + 1) * share) == int(step * share):
            return None
        rows, columns = size[0] - side + 1, size[1] - side + 1
        places = [mix(self.recipe.run.seed, step, 0xC409 + i) for i in range(count)]
        return Windows(tuple((place % rows, place // rows % columns) for place in places), side)

    def _backward(self, micro: FaceBatch, step: int, active: list[Discriminator]) -> dict[str, Tensor]:
        """Accumulate the gradients of one micro-batch for generator and discriminators."""
        terms, inputs = self._restore(micro, step, active)
        with self.accelerator.autocast():
            adversarial = {o.name: o.generator_loss(inputs) for o in active}
        total = self.objectives.total(terms)
        scalars = {**terms, "total": total.detach()}
        if self.adaptive_weight.due(step, active):
            weighted = self.objectives.weighted(terms)
            scalars |= self.adaptive_weight.measure(inputs.fake_latent, weighted, total, adversarial)
        for discriminator in active:
            total = total + self.adaptive_weight.weight(discriminator, step) * adversarial[discriminator.name]
        self.accelerator.backward(total / self.cfg.accumulate)
        for discriminator in active:
            with self.accelerator.autocast():
                loss, logs = discriminator.loss(inputs)
            self.accelerator.backward(loss / self.cfg.accumulate)
            logs["g"] = adversarial[discriminator.name]
            scalars |= {f"gan/{discriminator.name}/{key}": value for key, value in logs.items()}
        return scalars

    def _restore(
        self, micro: FaceBatch, step: int, active: list[Discriminator]
    ) -> tuple[dict[str, Tensor], DiscriminatorInputs]:
        """Run the generator and compute its losses."""
        lq, hq = self._layout(to_signed(micro.lq)), self._layout(to_signed(micro.hq))
        windows = self.windows(step, (lq.shape[-2] // CELL, lq.shape[-1] // CELL))
        prompt = self._prompt(micro.tags)
        asked = self.objectives.needs_latent or any(o.needs_latent for o in active)
        with self.accelerator.autocast():
            if self.cfg.needs_encodings:
                restored, clean, terms = self._restore_encoded(lq, hq, windows, step)
            else:
                clean = self.core.encode_clean(hq).float() if asked else None
                restored, terms = self.generator(lq, windows, prompt=prompt), {}
            terms |= self.objectives.terms(restored, lq, hq, clean, windows)
        target = hq if windows is None else windows.of_image(hq)
        return terms, DiscriminatorInputs(restored.image, target, restored.latent, clean, restored.prompt)

    def _restore_encoded(
        self, lq: Tensor, hq: Tensor, windows: Windows | None, step: int
    ) -> tuple[Restored, Tensor, dict[str, Tensor]]:
        """Run the generator on encodings, drawn conditions and decodings; add the preview's losses.

        Returns:
            what it gives, the clean latents, and the terms of the preview.
        """
        encoded = self.encodings(lq, hq)
        progress = step / max(1, self.cfg.steps - 1)
        given = draw_conditions(self.cfg.prompting, encoded, progress)
        count = len(lq) * (len(windows.corners) if windows else 1)
        decoding = draw_decoding(self.cfg.guide, encoded.hq, count) if self.cfg.guide.active else None
        restored = self.generator(lq, windows, given, decoding)
        if self.preview is None:
            return restored, encoded.hq, {}
        fitting = step < self.cfg.preview.fit
        if fitting:
            self.preview.fit(encoded, lq, hq)
        terms = self.objectives.preview_terms(self.preview.net(restored.latent).float(), small_picture(hq))
        # While the preview learns it judges nothing, but the terms stay: a phase's keys must not change.
        return restored, encoded.hq, {k: v * 0.0 if fitting else v for k, v in terms.items()}

    def _layout(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=memory_format(self.recipe.run, image.device))

    def _update(self, step: int, active: list[Discriminator]) -> dict[str, Tensor]:
        """Step the optimisers and the average."""
        cfg = self.cfg
        factor = lr_factor(step, cfg.steps, warmup=cfg.warmup, schedule=cfg.schedule, final=cfg.final_lr)
        norm = distributed.update(self.optimizer, self.ema.parameters.values(), cfg.lr, factor, cfg.clip)
        for o in active:
            distributed.update(o.optimizer, o.learning, o.cfg.lr, factor, cfg.clip)
        self.ema.update()
        return {} if norm is None else {"grad_norm": norm}

    @contextmanager
    def averaged(self) -> Iterator[Generator]:
        """Yield the generator with its averaged weights, without gradients."""
        with torch.no_grad(), self.ema.applied(), self.accelerator.autocast():
            yield self.core

    def _prompt(self, tags: Sequence[str]) -> Tensor | None:
        """Encode tags where the prompt is text; None leaves it to the generator."""
        if self.text is None or not tags:
            return None
        return self.text([words or self.cfg.text for words in tags])

    def restore(self, unit: Tensor, tags: Sequence[str] = ()) -> Tensor:
        """Restore (B, 3, H, W) unit with the averaged weights; signed, not clamped."""
        with self.averaged() as generator:
            return generator(self._layout(to_signed(unit)), prompt=self._prompt(tags)).image

    def sample(self, batch: FaceBatch) -> Tensor:
        """Draw LQ | restored | HQ, (B, 3, H, 3W) unit."""
        return torch.cat([batch.lq, to_unit(self.restore(batch.lq, batch.tags)), batch.hq], dim=3)

    def validate(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Score the validation faces by profile: restored and (`…_lq`) degraded faces."""
        return (
            {} if self.validation is None else self.validation(batch, partial(self.restore, tags=batch.tags))
        )

    def state_dict(self) -> dict[str, Any]:
        state = {"ema": self.ema.state_dict(), "adaptive_weight": dict(self.adaptive_weight.factors)}
        return state | ({"preview": self.preview.net.state_dict()} if self.preview else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])
        if self.preview:
            self.preview.net.load_state_dict(state["preview"])
        device = self.accelerator.device
        # Checkpoints of older versions call it "balance".
        factors = state["adaptive_weight" if "adaptive_weight" in state else "balance"]
        self.adaptive_weight.factors = {name: value.to(device) for name, value in factors.items()}

    def export(self) -> tuple[OSDFaceConfig, dict[str, Tensor], dict[str, Any]]:
        """Collect the averaged weights under the checkpoint format's names, and their provenance."""
        with self.ema.applied():
            tensors = export_tensors(self.core)
        provenance = {
            "parent": self.parent,
            "mode": self.cfg.mode,
            "prompt": self.cfg.prompt,
            **({"text": self.cfg.text} if self.text else {}),
            "losses": dict(self.objectives.weights),
            "gan": {o.name: asdict(o.cfg) for o in self.discriminators},
            "ema": self.cfg.ema,
        }
        return self.core.config, tensors, provenance


def latents_folder(recipe: Recipe) -> Path:
    """Return where a run keeps the encodings of its pairs."""
    return Path(recipe.run.dir).expanduser() / "latents"


def build(recipe: Recipe, accelerator: Accelerator) -> RestorerStage:
    """Build the stage on the accelerator's device.

    Raises:
        ConfigError, CheckpointError: one line that names the key or the file.
    """
    networks = Networks(recipe.restorer, accelerator.device)
    return RestorerStage(recipe, accelerator, build_initial(recipe), networks)

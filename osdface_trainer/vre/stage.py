"""Stage 1: the visual representation embedder (paper §3.2-3.3).

Three phases in one run: the autoencoder of clean faces, the one of degraded faces, then both together with
the association loss. Each branch has its own autoencoder, codebook, discriminator and two optimisers.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.config import OSDFaceConfig

from .. import distributed
from ..distributed import all_mean
from ..layout import memory_format
from ..losses.adversarial import adaptive_weight
from ..losses.association import association_accuracy, association_loss
from ..losses.perceptual import PerceptualLoss
from ..losses.reconstruction import l1
from ..optim import lr_factor
from ..recipe.config import Recipe
from ..snapshot import full_state
from ..stage import FaceBatch, Position, position, to_signed, to_unit
from .autoencoder import Branch, Reconstruction
from .codebook import usage

BRANCHES = {"hq": ("hq",), "lq": ("lq",), "assoc": ("hq", "lq")}


class VREStage:
    """Trains `hq` and `lq` branches; see `TrainingStage` for the contract with the loop."""

    name = "vre"

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.cfg, self.accelerator = recipe, recipe.vre, accelerator
        self.total_steps = sum(self.cfg.steps.values())
        self.branches = {name: Branch(self.cfg, recipe.run, accelerator) for name in ("hq", "lq")}
        self.perceptual = _perceptual(recipe)
        if self.perceptual is not None:
            self.perceptual.to(accelerator.device)
            if recipe.run.compile:
                self.perceptual.compile(dynamic=False)
        self.modules: Mapping[str, nn.Module] = {
            f"{name}{suffix}": module
            for name, branch in self.branches.items()
            for suffix, module in (("", branch.net), ("_disc", branch.disc))
        }
        self.optimizers: Mapping[str, Optimizer] = {
            f"{name}{suffix}": optimizer
            for name, branch in self.branches.items()
            for suffix, optimizer in (("", branch.optimizer), ("_disc", branch.disc_optimizer))
        }

    def step(self, batch: FaceBatch, step: int) -> dict[str, Tensor]:
        """Compute losses and gradients of the active branches, and update them."""
        at = position(self.cfg.steps, step)
        names = BRANCHES[at.phase]
        for name in names:
            if step == self.first_step(name):
                self._begin(name, batch)
        seen: dict[str, list[Reconstruction]] = {name: [] for name in names}
        nets = [net for name in names for net in (self.branches[name].net, self.branches[name].disc)]
        parts = self.cfg.accumulate
        scalars = distributed.accumulate(
            self.accelerator, nets, batch.split(parts), parts, lambda micro: self._backward(micro, at, seen)
        )
        return scalars | self._update(at, seen)

    def first_step(self, name: str) -> int:
        """Find the step in which a branch learns for the first time."""
        steps = self.cfg.steps
        return steps["hq"] if name == "lq" else 0 if steps["hq"] else steps["lq"]

    @torch.no_grad()
    def _begin(self, name: str, batch: FaceBatch) -> None:
        """Set the starting point of a branch beyond its random weights."""
        branch = self.branches[name]
        if name == "lq" and self.cfg.lq.init_from_hq and self.cfg.hq.steps:
            branch.start_from(self.branches["hq"])
        elif self.cfg.codebook.init == "data":
            micro = next(batch.split(self.cfg.accumulate))
            features = branch.reconstruct(self._target(micro, name)).features
            branch.settle()
            branch.codebook.start(_rows(features))

    def _backward(
        self, micro: FaceBatch, at: Position, seen: dict[str, list[Reconstruction]]
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of one micro-batch for all active networks."""
        targets = {name: self._target(micro, name) for name in BRANCHES[at.phase]}
        results = {name: self.branches[name].reconstruct(x) for name, x in targets.items()}
        scalars: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for name, result in results.items():
            terms = self._terms(self.branches[name], result, targets[name], self._judged(at))
            losses.append(terms["total"])
            scalars |= {f"{name}/{key}": value for key, value in terms.items()}
            seen[name].append(result)
        if at.phase == "assoc":
            association = association_loss(
                results["hq"].features, results["lq"].features,
                temperature=self.cfg.assoc.tau, scope=self.cfg.assoc.scope,
            )  # fmt: skip
            losses.append(self.cfg.assoc.weight * association)
            scalars["assoc/loss"] = association
        self.accelerator.backward(torch.stack(losses).sum() / self.cfg.accumulate)
        if self._judged(at):
            scalars |= self._backward_discriminators(results, targets)
        return scalars

    def _target(self, batch: FaceBatch, name: str) -> Tensor:
        """Return what a branch reconstructs: its own input, `signed`, at the VRE's resolution."""
        image = squash(to_signed(batch.hq if name == "hq" else batch.lq), self.cfg.model.resolution)
        return image.contiguous(memory_format=memory_format(self.recipe.run, image.device))

    def _judged(self, at: Position) -> bool:
        """Tell whether the discriminators take part yet."""
        start = getattr(self.cfg, at.phase).disc_start
        return self.cfg.gan.weight > 0 and at.step >= start * at.steps

    def _terms(
        self, branch: Branch, result: Reconstruction, target: Tensor, judged: bool
    ) -> dict[str, Tensor]:
        """Compute the loss terms of one autoencoder and their weighted sum (paper Eq. 7)."""
        terms = {"l1": l1(result.image, target), "vq": branch.vq_loss(result)}
        reconstruction = self.cfg.pixel * terms["l1"]
        if self.perceptual is not None:
            with self.accelerator.autocast():
                terms["perceptual"] = self.perceptual(result.image, target)
            reconstruction = reconstruction + self.cfg.perceptual.weight * terms["perceptual"]
        total = reconstruction + self.cfg.codebook_weight * terms["vq"]
        if judged:
            terms["gan"] = branch.adversarial_loss(result)
            terms["gan_weight"] = self._gan_weight(reconstruction, terms["gan"], branch.last_layer)
            total = total + terms["gan_weight"] * terms["gan"]
        return terms | {"total": total}

    def _gan_weight(self, reconstruction: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
        """Compute λ_dis, times the ratio of both gradients at the last layer where it is adaptive."""
        scale = self.cfg.gan.weight
        if not self.cfg.gan.adaptive:
            return adversarial.new_tensor(scale)
        several = self.accelerator.num_processes > 1
        reduce = (lambda tensor: all_mean(self.accelerator, tensor)) if several else None
        return adaptive_weight(reconstruction, adversarial, layer, scale=scale, reduce=reduce)

    def _backward_discriminators(
        self, results: Mapping[str, Reconstruction], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        scalars = {}
        for name, result in results.items():
            loss = self.branches[name].discriminator_loss(result.image, targets[name])
            self.accelerator.backward(loss / self.cfg.accumulate)
            scalars[f"{name}/disc"] = loss
        return scalars

    def _update(self, at: Position, seen: Mapping[str, list[Reconstruction]]) -> dict[str, Tensor]:
        """Step optimisers and codebooks, and measure the use of the codes."""
        factor = lr_factor(
            at.step, at.steps, warmup=self.cfg.warmup, schedule=self.cfg.schedule, final=self.cfg.final_lr
        )
        scalars: dict[str, Tensor] = {}
        for name, results in seen.items():
            branch = self.branches[name]
            norms = {"grad_norm": branch.update(branch.optimizer, branch.net, factor)}
            if self._judged(at):
                norms["disc_grad_norm"] = branch.update(branch.disc_optimizer, branch.disc, factor)
            scalars |= {f"{name}/{key}": norm for key, norm in norms.items() if norm is not None}
            indices = torch.cat([result.indices for result in results])
            features = torch.cat([result.features.detach() for result in results])
            branch.codebook.update(_rows(features), indices, at.step, at.steps)
            health = usage(indices, self.cfg.model.codebook_size, self.cfg.model.tokens)
            scalars |= {f"{name}/codes/{key}": value for key, value in health.items()}
        return scalars

    @torch.no_grad()
    def sample(self, batch: FaceBatch) -> Tensor:
        """Draw HQ | its reconstruction | LQ | its reconstruction, (B, 3, R, 4R)."""
        with self._evaluating():
            strip = []
            for name, branch in self.branches.items():
                target = self._target(batch, name)
                strip += [to_unit(target), to_unit(branch.reconstruct(target).image)]
            return torch.cat(strip, dim=3)

    @torch.no_grad()
    def validate(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Score reconstruction, use of the codes and how well tokens find their twins.

        A branch that has not learned yet has no scores.
        """
        scores: dict[str, Tensor] = {}
        features = []
        with self._evaluating():
            for name, branch in self.branches.items():
                if not branch.optimizer.state:
                    continue
                target = self._target(batch, name)
                result = branch.reconstruct(target)
                scores[f"{name}/l1"] = l1(result.image, target)
                if self.perceptual is not None:
                    scores[f"{name}/perceptual"] = self.perceptual(result.image, target)
                health = usage(result.indices, self.cfg.model.codebook_size, self.cfg.model.tokens)
                scores |= {f"{name}/codes/{key}": value for key, value in health.items()}
                features.append(result.features)
        if len(features) == 2:
            scores["assoc/accuracy"] = association_accuracy(features[0], features[1], scope="image")
        return scores

    def _evaluating(self) -> ExitStack:
        """Put the autoencoders into eval mode inside the block."""
        stack = ExitStack()
        for branch in self.branches.values():
            branch.net.eval()
            stack.callback(branch.net.train)
            stack.callback(branch.settle)
        return stack

    def state_dict(self) -> dict[str, Any]:
        return {name: branch.state_dict() for name, branch in self.branches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, branch in self.branches.items():
            branch.load_state_dict(state[name])

    def export(self) -> tuple[OSDFaceConfig, dict[str, Tensor], dict[str, Any]]:
        """Collect the LQ encoder and codebook, for stage 2 and inference (the HQ ones if only they exist)."""
        name = "lq" if self.cfg.lq.steps or self.cfg.assoc.steps else "hq"
        state = full_state(self.accelerator.unwrap_model(self.branches[name].net))
        kept = ("encoder.", "quant_conv.", "quantize.")
        tensors = {
            f"vre.{key.removeprefix('net.')}": value
            for key, value in state.items()
            if key.removeprefix("net.").startswith(kept)
        }
        restorer = self.recipe.restorer
        config = OSDFaceConfig(arch=restorer.mode, name=restorer.name, vre=self.cfg.model)
        return config, tensors, {"vre_branch": name}


def squash(image: Tensor, side: int) -> Tensor:
    """Resize (B, 3, H, W) to (B, 3, side, side), as `VRE.prepare` does it at inference."""
    if image.shape[-2:] == (side, side):
        return image
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)


def _rows(features: Tensor) -> Tensor:
    """Reorder (B, D, h, w) to (B, h·w, D), in the order of the indices."""
    return features.flatten(2).transpose(1, 2)


def _perceptual(recipe: Recipe) -> PerceptualLoss | None:
    cfg = recipe.vre.perceptual
    return PerceptualLoss(cfg.net, cfg.file or None, cfg.distance) if cfg.weight > 0 else None


def build(recipe: Recipe, accelerator: Accelerator) -> VREStage:
    """Build the stage on the accelerator's device.

    Raises:
        CheckpointError: the perceptual network's weight file is missing.
    """
    return VREStage(recipe, accelerator)

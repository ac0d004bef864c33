"""Time and memory of stage 2 on this machine, with random weights and faces.

    python -m osdface_trainer.restorer.benchmark paper  # Stable Diffusion 2.1's shapes, 512 px, bf16
    python -m osdface_trainer.restorer.benchmark mini --set restorer.batch_size=32 --steps 20
    python -m osdface_trainer.restorer.benchmark paper --json proof.json
    python -m osdface_trainer.restorer.benchmark paper --set run.device=cpu --set data.size=128 --steps 1

No file but the recipe is read: every network has its real shape and random weights. On a CPU, where nobody
counts tensors, the peak is the resident memory of the whole process.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function

from osdface_core.cli.allocator import keep_freed_memory
from osdface_core.console import complain, say
from osdface_core.errors import ConfigError, OSDFaceError
from osdface_core.models.backbone import Backbone
from osdface_core.models.full import build_full
from osdface_core.models.identity import IdentityNet
from osdface_core.models.identity_nets import IResNet
from osdface_core.models.sd21 import random_base
from osdface_core.models.vre import VRE

from ..distributed import make_accelerator, seed_all
from ..losses.features import Weights, untrained_features
from ..recipe.config import Recipe, load_recipe
from ..stage import FaceBatch
from .init import Initial, assemble, halve, known_config, model_config
from .losses import Networks
from .stage import RestorerStage

PREFIX = "part: "


class RandomNetworks(Networks):
    """Judges of the real shapes: torchvision's backbones, and ArcFace R50 for identity."""

    def features(self, net: str, file: str) -> Weights:
        """Build random weights whatever the file."""
        del file
        return untrained_features(net)

    def load_identity(self) -> IdentityNet:
        """Build ArcFace's R50."""
        return IdentityNet(IResNet((3, 4, 14, 3)), (0.5,) * 3, (0.5,) * 3)


def random_initial(recipe: Recipe, device: torch.device) -> Initial:
    """Build a generator of the recipe's shapes on the device; `lora` takes Stable Diffusion 2.1's.

    Raises:
        ConfigError: `restorer.init` is to give the architecture and is not there.
    """
    cfg = recipe.restorer
    known = known_config(cfg)
    config = model_config(cfg, known, known.vre if known else recipe.vre.model)
    if config.arch == "full" and config.unet is None:
        raise ConfigError(f"restorer.init {cfg.init} does not exist: the architecture comes from it")
    with device:
        backbone: Backbone = build_full(config) if cfg.mode == "full" else random_base()
        vre = VRE(config.vre)
    if cfg.mode == "lora" and recipe.run.precision == "bf16":
        halve(backbone)
    return assemble(cfg, config, vre, None, backbone)


def name_parts(stage: RestorerStage) -> None:
    """Label the parts of a step for torch's profiler; forward passes unless said otherwise."""
    core = stage.core
    _label(core.prompt.vre, "tokens", "VRE")
    _label(core.prompt.projection, "forward", "projection")
    _label(core, "encode", "codec encode")
    _label(core.predictor, "forward", "UNet")
    _label(core, "decode", "codec decode")
    _label(stage.objectives, "terms", "losses")
    for discriminator in stage.discriminators:
        _label(discriminator, "generator_loss", f"{discriminator.name}: in the generator's loss")
        _label(discriminator, "loss", f"{discriminator.name}: its own loss")
    _label(stage.adaptive_weight, "measure", "gradient norms, in steps that log them")
    _label(stage, "_update", "optimisers, average")
    # The first backward pass of a micro-batch is the generator's, the others are the discriminators'.
    rest = ["backward: discriminators"] * len(stage.discriminators)
    _label(stage.accelerator, "backward", "backward: generator", *rest)


def _label(owner: Any, method: str, *labels: str) -> None:
    """Run calls of a method under the labels in turn."""
    inner, turn = getattr(owner, method), cycle(labels)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + next(turn)):
            return inner(*args, **kwargs)

    setattr(owner, method, labelled)


def profile_step(stage: RestorerStage, batch: FaceBatch, step: int) -> dict[str, float]:
    """Run one step under torch's profiler: milliseconds by part, on the GPU where there is one."""
    name_parts(stage)
    with profile(acc_events=True) as profiler, record_function(f"{PREFIX}whole step"):
        stage.step(batch, step)
    on_gpu = stage.accelerator.device.type == "cuda"
    return {
        event.key.removeprefix(PREFIX): (event.device_time_total if on_gpu else event.cpu_time_total) / 1000
        for event in profiler.key_averages()
        if event.key.startswith(PREFIX)
    }


def measure(recipe: Recipe, steps: int, warmup: int) -> dict[str, Any]:
    """Run stage 2 and report: time per step and by part, peak memory, parameters.

    Every discriminator takes part from the first step; crops as the recipe says.
    """
    recipe = _from_the_start(recipe)
    accelerator = make_accelerator(recipe.run)
    device = accelerator.device
    seed_all(recipe.run.seed)
    networks = RandomNetworks(recipe.restorer, device)
    stage = RestorerStage(recipe, accelerator, random_initial(recipe, device), networks)
    count, side = recipe.restorer.batch_size // accelerator.num_processes, recipe.data.size
    faces = torch.rand(count, 3, side, side, device=device)
    batch = FaceBatch(faces, faces * 0.9, torch.arange(count))
    for step in range(warmup):
        stage.step(batch, step)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for step in range(warmup, warmup + steps):
        stage.step(batch, step)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / steps
    cuda = torch.cuda if device.type == "cuda" else None
    return {
        "device": cuda.get_device_name(device) if cuda else "cpu",
        "torch": torch.__version__, "precision": recipe.run.precision,
        "images": count, "size": side, "accumulate": recipe.restorer.accumulate, "steps": steps,
        "trained parameters": sum(p.numel() for p in stage.ema.parameters.values()),
        "milliseconds": 1000 * seconds, "images per second": count / seconds,
        "peak memory [GB]": cuda.max_memory_allocated(device) / 1e9 if cuda else _resident(),
        "reserved memory [GB]": cuda.max_memory_reserved(device) / 1e9 if cuda else None,
        "milliseconds by part, profiled": profile_step(stage, batch, warmup + steps),
    }  # fmt: skip


def _resident() -> float | None:
    """Read the largest resident memory of this process so far [GB]; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _from_the_start(recipe: Recipe) -> Recipe:
    gan = recipe.restorer.gan
    tables = {name: replace(getattr(gan, name), start=0) for name in ("diffusion", "feature", "patch", "vsd")}
    run = replace(recipe.run, validate_every=0, stop_metric="", stop_patience=0)
    return replace(recipe, run=run, restorer=replace(recipe.restorer, gan=replace(gan, **tables)))


def main(argv: list[str] | None = None) -> int:
    """Print the report; returns the exit code."""
    about = "time and memory of stage 2 on this machine, on random weights and random faces"
    parser = argparse.ArgumentParser(prog="python -m osdface_trainer.restorer.benchmark", description=about)
    parser.add_argument("recipe", help="TOML file, or paper | finetune | mini | smoke")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warmup", type=int, default=4, help="steps before")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    options = parser.parse_args(argv)
    try:
        report = measure(load_recipe(options.recipe, options.overrides), options.steps, options.warmup)
    except OSDFaceError as error:
        complain(str(error))
        return 2
    text = json.dumps(report, indent=2)
    say(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())

"""Processes, devices and seeds: what surrounds the loop."""

import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from osdface_core.errors import ConfigError, OSDFaceError

from . import sharding
from .config import RunConfig
from .seeds import mix

T = TypeVar("T")
INIT, STEP, SAMPLE = 1, 2, 3  # streams of randomness: initial weights, steps, samples and validation


def make_accelerator(run: RunConfig) -> Accelerator:
    """The device and its processes, as `accelerate launch` or `accelerate config` set them up.

    Raises:
        ConfigError: FSDP is asked for where it does not work, see sharding.py.
    """
    sharding.check(run.compile)
    # Buffers (batch norm statistics) are per process; broadcasting them would change them between the two
    # passes that a discriminator makes before its backward pass.
    # Newer torch has another word for it, which older torch does not know.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    precision = "bf16" if run.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=run.device == "cpu", kwargs_handlers=[ddp])
    torch.backends.cuda.matmul.allow_tf32 = run.tf32
    torch.backends.cudnn.allow_tf32 = run.tf32
    torch.backends.cudnn.benchmark = True
    if run.compile:
        _check_compiler(accelerator.device)
        # Adaptive weights look at gradients before the backward pass, so compiled graphs must outlive that.
        import torch._dynamo.config as dynamo
        import torch._functorch.config as functorch

        functorch.donated_buffer = False
        # Levels of a network share their code and differ in shape; past the limit torch gives up on them.
        setattr(dynamo, "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit", 64)
    return accelerator


def _check_compiler(device: torch.device) -> None:
    """Torch finds out in the first step only, and then in many lines.

    Raises:
        ConfigError: no compiler for what torch.compile writes.
    """
    if device.type == "cpu":
        default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        wanted, variable = [os.environ.get("CXX", default)], "CXX"
    elif device.type == "cuda":  # triton compiles its launchers
        wanted, variable = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cl"], "CC"
    else:
        return
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(
            f"run.compile needs a compiler, and {' or '.join(wanted)} is not there: install it, "
            f"name another in the environment variable {variable}, or set run.compile = false"
        )


def seed_all(seed: int, *path: int) -> None:
    """Seed Python, NumPy and torch (all devices) from a seed and a path of counters."""
    value = mix(seed, *path)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the first process only and give its result, or its error, to all.

    Raises:
        OSDFaceError: what `work` raised, on every process.
    """
    outcome: list[T | OSDFaceError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except OSDFaceError as error:
            outcome = [error]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(outcome)
    if isinstance(outcome[0], OSDFaceError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def local_batch(total: int, accumulate: int, accelerator: Accelerator) -> int:
    """Images of this process per optimiser step.

    Raises:
        ConfigError: the batch does not divide by processes and micro-batches.
    """
    parts = accelerator.num_processes * accumulate
    if total % parts:
        raise ConfigError(
            f"batch_size {total} does not divide by {accelerator.num_processes} processes x {accumulate} "
            "micro-batches: change batch_size or accumulate"
        )
    return total // accelerator.num_processes


def all_sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Sum of a tensor over the processes."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def all_mean(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Mean of a tensor over the processes."""
    return cast(Tensor, accelerator.reduce(tensor, "mean"))


def all_rows(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Tensors of all processes one after the other."""
    return cast(Tensor, accelerator.gather(tensor))

"""Processes, devices and seeds; networks as copies (DDP) or as shards (FSDP version 2) on several processes.

Accelerate starts the processes and says which of the two is wanted. Shards are made by torch's own
`fully_shard`: accelerate's way into FSDP is for one network with one optimiser on GPUs; a stage has several,
with frozen parts that are cheaper kept whole.
"""

import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, convert_to_fp32
from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.errors import ConfigError, OSDFaceError

from .optim import set_lr
from .recipe.config import RunConfig
from .seeds import mix

T = TypeVar("T")


def asked_for() -> bool:
    """Tell whether `accelerate launch` (or its environment) asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def check(compiled: bool) -> None:
    """Refuse what cannot be sharded.

    Args:
        compiled: the recipe's `run.compile`.
    Raises:
        ConfigError: FSDP version 1, an older torch, or compiled networks.
    """
    if not asked_for():
        return
    if os.environ.get("FSDP_VERSION", "1") == "1":
        # its flat optimiser state does not resume on other numbers of processes
        raise ConfigError("FSDP version 1 is not supported: set fsdp_version: 2 in the accelerate config")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7):
        raise ConfigError(f"FSDP needs PyTorch 2.7 or newer, this is {torch.__version__}: use DDP")
    if compiled:
        raise ConfigError("run.compile and FSDP do not go together: set run.compile = false, or use DDP")


def prepare(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Callable[[nn.Module], Optimizer],
    blocks: Iterable[nn.Module] = (),
    *,
    keep: bool = False,
) -> tuple[nn.Module, Optimizer]:
    """Spread a network over the processes, in place when it is sharded, and build its optimiser.

    Frozen parameters outside of `blocks` stay whole on every process: methods of the module may use them
    outside of its forward pass.

    Args:
        optimizer: from the network to what trains it.
        blocks: parts that are gathered one after the other; the rest is gathered together.
        keep: leave that rest whole from the forward to the backward pass, for who asks for gradients there.
    """
    if not (asked_for() and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return accelerator.prepare(module, optimizer(module))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # No loss changes a network's output in place, which is what torch warns of here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # shards have no channels-last layout
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    whole = {p for p in module.parameters() if not p.requires_grad and not _is_shard(p)}
    sharded: Any = fully_shard(
        module, mesh=mesh, reshard_after_forward=None if keep else True, ignored_params=whole
    )
    # Now, because torch notes here which parameters learn, and a discriminator's first pass is one in which
    # none does.
    sharded._get_fsdp_state()._lazy_init()
    sharded.forward = _like_accelerate(accelerator, sharded.forward)
    return sharded, optimizer(sharded)


def _like_accelerate(accelerator: Accelerator, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a forward pass in the recipe's precision and give float32."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return convert_to_fp32(forward(*args, **kwargs))

    return run


@contextmanager
def no_sync(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """Leave gradients unexchanged between the processes inside the block."""
    if not is_sharded(module):
        with accelerator.no_sync(module):
            yield
        return
    sharded: Any = module
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def accumulate(
    accelerator: Accelerator,
    nets: Iterable[nn.Module],
    micro_batches: Iterable[T],
    parts: int,
    backward: Callable[[T], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Gather gradients over micro-batches; processes exchange those of `nets` with the last one only.

    Args:
        parts: number of micro-batches.
        backward: from a micro-batch to scalars, 0-d, once their gradients are added.
    Returns:
        Means of the scalars, detached.
    """
    means: dict[str, Tensor] = {}
    for number, micro in enumerate(micro_batches):
        with ExitStack() as stack:
            for net in nets if number < parts - 1 else ():
                stack.enter_context(no_sync(accelerator, net))
            for key, value in backward(micro).items():
                share = value.detach() / parts
                means[key] = means[key] + share if key in means else share
    return means


def update(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], lr: float, factor: float, limit: float
) -> Tensor | None:
    """Make one optimiser step at `lr` · `factor` and clear the gradients.

    Args:
        limit: largest gradient norm; 0 = no clipping.
    Returns:
        The gradient norm before clipping, 0-d, the same on every process; None without clipping.
    """
    norm = nn.utils.clip_grad_norm_(list(parameters), limit).detach() if limit > 0 else None
    set_lr(optimizer, lr, factor)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return gather(norm)


def settle(module: nn.Module) -> None:
    """Free the weights that a pass without gradients gathered, so that only shards can change."""
    if is_sharded(module):
        sharded: Any = module
        sharded.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Tell whether `prepare` made shards of it."""
    return hasattr(module, "set_requires_gradient_sync")


def gather(value: Any) -> Any:
    """Gather a sharded tensor (every process must call it); return anything else as it is."""
    return value.full_tensor() if _is_shard(value) else value


def like(target: Tensor, value: Tensor) -> Tensor:
    """Move `value` to the target's device and shard it as the target is."""
    value = value.to(target.device)
    if not _is_shard(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, target.device_mesh, target.placements)  # type: ignore[attr-defined]


def _is_shard(value: Any) -> bool:
    return hasattr(value, "full_tensor")


INIT, STEP, SAMPLE = 1, 2, 3  # streams of randomness: initial weights, steps, samples and validation


def make_accelerator(run: RunConfig, logging_dir: Path | None = None) -> Accelerator:
    """Set up the device and its processes, as `accelerate launch` or `accelerate config` say.

    Args:
        logging_dir: where TensorBoard's event files go; None = no trackers at all.
    Raises:
        ConfigError: FSDP is asked for where it does not work, see `check`; W&B is not installed.
    """
    check(run.compile)
    if run.wandb and find_spec("wandb") is None:
        raise ConfigError("run.wandb: Weights & Biases is not installed: pip install wandb")
    names = ("tensorboard", "wandb") if logging_dir else ()
    # Buffers (batch norm statistics) are per process; broadcasting them would change them between the two
    # passes that a discriminator makes before its backward pass.
    # Newer torch has another word for it, which older torch does not know.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    precision = "bf16" if run.precision == "bf16" else "no"
    accelerator = Accelerator(
        mixed_precision=precision, cpu=run.device == "cpu" or only_cpu(), kwargs_handlers=[ddp],
        log_with=[name for name in names if getattr(run, name)] or None,
        project_config=ProjectConfiguration(logging_dir=str(logging_dir or "")),
    )  # fmt: skip
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


def only_cpu() -> bool:
    """Tell whether there is no accelerator: untold, accelerate then knows nothing of other processes."""
    if hasattr(torch, "accelerator"):
        return not torch.accelerator.is_available()
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def start_trackers(accelerator: Accelerator, recipe: Mapping[str, Any], folder: Path, resume_at: int) -> None:
    """Start TensorBoard (left out where it is not installed) and W&B, as the recipe asks.

    Args:
        recipe: shown as the run's configuration.
        folder: of the stage; gives the run its name.
        resume_at: TensorBoard hides what it has from later steps. For W&B each call is a run of its own.
    """
    name = f"{folder.parent.name}/{folder.name}"
    settings = {"name": name, "dir": str(folder), "config": dict(recipe)}
    options = {"tensorboard": {"purge_step": resume_at + 1}, "wandb": settings}
    accelerator.init_trackers("osdface", init_kwargs=options)


def _check_compiler(device: torch.device) -> None:
    """Look for a compiler: torch finds out in the first step only, and then in many lines.

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
    """Count the images of this process per optimiser step.

    Raises:
        ConfigError: the batch does not divide by processes and micro-batches.
    """
    parts = accelerator.num_processes * accumulate
    if total % parts:
        raise ConfigError(
            f"batch_size {total} does not divide by {accelerator.num_processes} processes x {accumulate} "
            "micro-batches: change batch_size or accumulate, or take recipe paper_8gpu instead of paper"
        )
    return total // accelerator.num_processes


def all_sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def all_mean(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Average a tensor over the processes."""
    return cast(Tensor, accelerator.reduce(tensor, "mean"))


def all_rows(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes."""
    return cast(Tensor, accelerator.gather(tensor))

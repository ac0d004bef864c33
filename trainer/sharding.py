"""Networks on several processes: copies (DDP), or shards (FSDP version 2) by torch's own `fully_shard`.

Accelerate starts the processes and says which of the two is wanted. Its own way into FSDP is for one network
with one optimiser on GPUs; a stage has several, with frozen parts that are cheaper kept whole.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.errors import ConfigError


def asked_for() -> bool:
    """Whether `accelerate launch` (or its environment) asks for FSDP."""
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
    """The recipe's precision inside, float32 outside."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return convert_to_fp32(forward(*args, **kwargs))

    return run


@contextmanager
def no_sync(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """Inside the block processes keep their gradients to themselves."""
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


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip gradients in place; their norm before, 0-d, the same on every process."""
    return gather(nn.utils.clip_grad_norm_(list(parameters), limit).detach())


def settle(module: nn.Module) -> None:
    """Let go of weights that a pass without gradients gathered, so that only shards can change."""
    if is_sharded(module):
        sharded: Any = module
        sharded.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether `prepare` made shards of it."""
    return hasattr(module, "set_requires_gradient_sync")


def gather(value: Any) -> Any:
    """A sharded tensor as a whole one (every process must ask); anything else as it is."""
    return value.full_tensor() if _is_shard(value) else value


def like(target: Tensor, value: Tensor) -> Tensor:
    """`value` on the target's device, sharded as the target is."""
    value = value.to(target.device)
    if not _is_shard(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, target.device_mesh, target.placements)  # type: ignore[attr-defined]


def _is_shard(value: Any) -> bool:
    return hasattr(value, "full_tensor")

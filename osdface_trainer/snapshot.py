"""The whole state of a stage as plain tensors, and back: one device, DDP, or FSDP (version 2) alike.

Frozen parameters come from their own files and are not stored. Sharded tensors are gathered to full ones,
so a run may continue on another number of processes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.errors import CheckpointError

from .distributed import gather, like
from .stage import TrainingStage


def collect(stage: TrainingStage, accelerator: Accelerator) -> dict[str, Any]:
    """Collect modules, optimisers and the rest of a stage. Every process must call it."""
    return {
        "modules": {k: module_state(accelerator.unwrap_model(m)) for k, m in stage.modules.items()},
        "optimizers": {k: _full(o.state_dict()) for k, o in stage.optimizers.items()},
        "stage": _full(stage.state_dict()),
    }


def restore(stage: TrainingStage, accelerator: Accelerator, state: Mapping[str, Any]) -> None:
    """Load what `collect` gave.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    for key, module in stage.modules.items():
        load_module(accelerator.unwrap_model(module), state["modules"].get(key, {}), key)
    for key, optimizer in stage.optimizers.items():
        if key not in state["optimizers"]:
            raise CheckpointError(f"the checkpoint has no optimiser {key}: it is of another version")
        _load_optimizer(optimizer, state["optimizers"][key])
    stage.load_state_dict(state["stage"])


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Collect all parameters and persistent buffers by name, gathered."""
    return _full(module.state_dict())


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Collect trained parameters and persistent buffers by name, gathered."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return _full({key: value for key, value in module.state_dict().items() if key not in frozen})


@torch.no_grad()
def load_module(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy what `module_state` gave into the module, in place."""
    own = module.state_dict()
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for name in own.keys() - frozen:
        if name not in tensors:
            raise CheckpointError(f"the checkpoint has no {where}.{name}: it is of another model or version")
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            raise CheckpointError(f"the checkpoint's {where}.{name} does not fit this model")
        own[name].copy_(like(own[name], value))


def _load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {key: _placed(parameters[index], value) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def _placed(parameter: Tensor, value: Any) -> Any:
    same = isinstance(value, Tensor) and value.shape == parameter.shape
    return like(parameter, value) if same else value


def _full(value: Any) -> Any:
    """Gather the sharded tensors of a tree."""
    if isinstance(value, Mapping):
        return {key: _full(item) for key, item in value.items()}
    return gather(value)

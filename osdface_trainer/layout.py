"""How pictures and convolutions lie in memory."""

import torch

from .recipe.config import RunConfig


def memory_format(run: RunConfig, device: torch.device) -> torch.memory_format:
    """Choose NHWC or NCHW as `run.channels_last` says, or what trains faster on the device where unset.

    On a CPU with AVX2 but no AVX-512, oneDNN's backward passes of convolutions are slower in NHWC.
    """
    slower = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    chosen = run.channels_last if run.channels_last is not None else not slower
    return torch.channels_last if chosen else torch.contiguous_format

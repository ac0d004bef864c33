"""What CUDA's autocast to bfloat16 would do, on the meta device: dtypes, and fused attention.

Torch has no autocast for meta tensors and answers attention there with the plain algorithm, which saves the
whole matrix of weights; neither is what a GPU keeps in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HALF = {F.conv1d, F.conv2d, torch.conv1d, torch.conv2d, F.linear, torch.matmul, torch.bmm, Tensor.matmul}
_FULL = {F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm, F.softmax, torch.softmax}


class FusedAttention(torch.autograd.Function):
    """Shapes of flash attention: it keeps query, key, value, output, and one number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


class LikeCUDA(TorchFunctionMode):
    """Inside the block, meta tensors get the dtypes of CUDA's autocast (`half`) and fused attention."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half = half

    def __enter__(self) -> "LikeCUDA":
        self._patch = mock.patch.object(torch, "autocast", self._autocast)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.stop()
        super().__exit__(*error)

    @contextmanager
    def _autocast(self, device_type: str, *_: Any, enabled: bool = True) -> Iterator[None]:
        """`torch.autocast` inside the block: parts of a network may switch it off."""
        del device_type
        before, self.half = self.half, self.half and enabled
        try:
            yield
        finally:
            self.half = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            inputs = args[:3] if len(args) >= 3 else [kwargs[name] for name in ("query", "key", "value")]
            dtype = torch.bfloat16 if self.half else inputs[0].dtype
            return FusedAttention.apply(*(tensor.to(dtype) for tensor in inputs))
        if self.half and func in _HALF:
            args, kwargs = _cast(args, torch.bfloat16), _cast(kwargs, torch.bfloat16)
        elif self.half and func in _FULL:
            args, kwargs = _cast(args, torch.float32), _cast(kwargs, torch.float32)
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value

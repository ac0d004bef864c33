"""Memory of training, computed: parameters by counting, activations by what autograd would save.

Networks are built on the meta device (shapes without data), so this needs neither their weights nor a GPU.
Torch has no autocast for meta tensors and answers attention there with the plain algorithm, which saves the
whole matrix of weights; neither is what a GPU keeps in memory. `LikeCUDA` does what autocast to bfloat16 and
fused attention would do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .stage import Part, Plan


def count(module: nn.Module) -> tuple[int, int]:
    """Numbers of trained and frozen parameters."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def saved_bytes(forward: Callable[[], Any], *modules: nn.Module) -> int:
    """Bytes of the activations that a forward pass keeps for its backward pass.

    Args:
        forward: runs the pass, on the meta device or any other.
        modules: their parameters and buffers are not counted again.
    """
    known = {t.data_ptr() if t.device.type != "meta" else id(t) for m in modules for t in _tensors(m)}
    storages: dict[int, int] = {}
    keep: list[Tensor] = []  # an id stays unique only while its object lives

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        key = id(base) if tensor.device.type == "meta" else base.data_ptr()
        if key not in known and not isinstance(base, nn.Parameter):
            keep.append(base)
            storages[key] = base.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storages.values())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def adam_part(
    name: str, module: nn.Module, activations: int = 0, note: str = "", weight_bytes: int = 4
) -> Part:
    """A network under Adam: float32 gradients and two moments for what is trained."""
    trained, frozen = count(module)
    return Part(
        name, trained, frozen,
        weights=trained * 4 + frozen * weight_bytes, gradients=trained * 4, optimizer=trained * 8,
        activations=activations, note=note,
    )  # fmt: skip


def table(plan: Plan) -> str:
    """The plan as text: steps by phase, then one line per network and the sum [MB = 10^6 bytes]."""
    steps = ", ".join(f"{name} {count:,}" for name, count in plan.steps.items())
    lines = [f"{plan.stage}: {sum(plan.steps.values()):,} steps ({steps})"]
    header = ("network", "trained", "frozen", "weights", "gradients", "optimizer", "activations", "sum MB")
    rows = [header, *(_row(part) for part in plan.parts)]
    rows.append(("all", "", "", "", "", "", "", f"{sum(p.total for p in plan.parts) / 1e6:,.0f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append("  " + "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    lines += [f"  {part.name}: {part.note}" for part in plan.parts if part.note]
    return "\n".join(lines)


def _row(part: Part) -> tuple[str, ...]:
    megabytes = (part.weights, part.gradients, part.optimizer, part.activations, part.total)
    return (part.name, f"{part.trained:,}", f"{part.frozen:,}", *(f"{b / 1e6:,.0f}" for b in megabytes))


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

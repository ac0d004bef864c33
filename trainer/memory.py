"""Memory of training, computed: parameters by counting, activations by what autograd would save.

Networks are built on the meta device (shapes without data), so this needs neither their weights nor a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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

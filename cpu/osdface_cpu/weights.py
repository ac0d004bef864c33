"""Weights of a model that its faster copy uses: shared, in float32, or lent and packed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Kind = TypeVar("Kind", bound=nn.Module)


class LentWeight:
    """A parameter that gives up its memory while its numbers are kept in a kernel's layout.

    The parameter is empty, of shape (0,), from the first `packed` to `give_back`: whoever computes with it
    meanwhile gets an error and no wrong numbers. Several threads may use one object.
    """

    def __init__(self, parameter: Tensor, unpack: Callable[[Tensor], Tensor]) -> None:
        """`unpack`: from what `packed` makes of the numbers back to them, in the same order."""
        self._parameter, self._unpack = parameter, unpack
        self._shape, self._stride, self._dtype = parameter.shape, parameter.stride(), parameter.dtype
        self._packed: Tensor | None = None
        self._lost: tuple[Tensor, Tensor] | None = None  # where packing rounds, and the numbers there
        self._returned = False
        self._lock = threading.Lock()

    def plain(self) -> Tensor:
        """Return the numbers as the layer has them."""
        with self._lock:
            return self._own() if self._packed is None else self._restored(self._packed)

    def packed(self, pack: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `pack` makes of the numbers; the first call takes them from the parameter.

        Raises:
            RuntimeError: they have been given back, or another copy has them.
        """
        if self._packed is None:
            with self._lock, torch.inference_mode(False), torch.no_grad():
                if self._packed is None:
                    self._packed = self._take(pack)
        return self._packed

    def give_back(self) -> None:
        """Give the parameter its numbers again, bit by bit and in the layout that they had."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._packed is not None:
                self._parameter.data = self._restored(self._packed)
            self._packed, self._lost, self._returned = None, None, True

    def _own(self) -> Tensor:
        if self._returned or self._parameter.shape != self._shape:
            raise RuntimeError("these weights are with another copy of the model, or were given back")
        return self._parameter.detach()

    def _take(self, pack: Callable[[Tensor], Tensor]) -> Tensor:
        own = self._own()
        packed = pack(own)
        lost = (
            (self._unpack(packed).reshape(self._shape).to(self._dtype) != own).flatten().nonzero().flatten()
        )
        if len(lost):
            self._lost = lost.int(), own.flatten()[lost]
        self._parameter.data = own.new_empty(0)
        return packed

    def _restored(self, packed: Tensor) -> Tensor:
        numbers = self._unpack(packed).reshape(self._shape).to(self._dtype)
        if self._lost is not None:
            where, lost = self._lost
            numbers = numbers.flatten().index_copy_(0, where.long(), lost).view(self._shape)
        return torch.empty_strided(self._shape, self._stride, dtype=self._dtype).copy_(numbers)


def give_back(*prepared: Any) -> None:
    """Give models the weights that their copies hold, which may not be used any more; others are ignored."""
    parts = [part for copy in prepared if isinstance(copy, nn.Module) for part in copy.modules()]
    for value in [value for part in parts for value in vars(part).values()]:
        if isinstance(value, LentWeight):
            value.give_back()


def in_float32(module: Kind, weightless: bool = False) -> Kind:
    """Return a copy with the same submodules and its own weights in float32, shared where they are so.

    Args:
        weightless: leave `weight` empty. Not absent: diffusers asks a block's parameters which precision to
            compute in.
    """
    copied = module.__new__(type(module))
    copied.__dict__.update(vars(module))
    copied._modules = dict(module._modules)
    copied._buffers = {k: _float32(v) for k, v in module._buffers.items()}
    copied._parameters = {
        k: v if v is None or v.dtype == torch.float32 else nn.Parameter(v.detach().float(), False)
        for k, v in module._parameters.items()
        if not (weightless and k == "weight")
    }
    if weightless:
        copied._parameters = {"weight": nn.Parameter(torch.empty(0), False), **copied._parameters}
    return copied


def _float32(buffer: Tensor | None) -> Tensor | None:
    return buffer.float() if buffer is not None and buffer.is_floating_point() else buffer

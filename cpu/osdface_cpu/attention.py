"""diffusers' attention in half precision."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .convolution import CHANNELS
from .library import Workspace, at, library


class _Attention(ctypes.Structure):
    """`struct Attention` of cpp/attend.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        *((name, ctypes.c_int64) for name in ("heads", "queries", "keys", "width", "threads")),
        ("scale", ctypes.c_float),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, workspace: Workspace) -> Tensor:
    """Compute softmax(q k^T / sqrt D) v for each head.

    Args:
        q: (B, N, heads * D), float32.
        k, v: (B, M, heads * D), float32.
    Returns:
        (B, N, heads * D), float32.
    """
    q, k, v = (rows.contiguous() for rows in (q, k, v))
    out = torch.empty_like(q)
    sizes = (heads, q.shape[1], k.shape[1], q.shape[2] // heads)
    for rows in zip(q, k, v, out, strict=True):
        call = _Attention(*(at(r) for r in rows), *sizes, torch.get_num_threads(), sizes[3] ** -0.5)
        room = workspace.get("room", library().osdface_half_attend_room(ctypes.byref(call)))
        library().osdface_half_attend(ctypes.byref(call), at(room))
    return out


class HalfAttention:
    """Stands in for diffusers' AttnProcessor2_0 where nothing is masked."""

    def __init__(self, plain: Any, workspace: Workspace) -> None:
        self.plain, self.workspace = plain, workspace

    @staticmethod
    def suits(attention: Any) -> bool:
        from diffusers.models.attention_processor import AttnProcessor2_0

        extras = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
        plain = type(attention.processor) is AttnProcessor2_0 and not any(
            getattr(attention, e) for e in extras
        )
        width = attention.inner_dim // attention.heads
        return plain and attention.inner_kv_dim == attention.inner_dim and width % CHANNELS == 0

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) or (B, C, H, W), and (B, M, C') to attend to, to the first's shape."""
        if attention_mask is not None:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        x = hidden_states
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        rows = (attn.to_q(x), attn.to_k(source), attn.to_v(source))
        x = attn.to_out[0](attend(*rows, attn.heads, self.workspace))
        if hidden_states.ndim == 4:
            x = x.transpose(1, 2).unflatten(2, hidden_states.shape[-2:])
        if attn.residual_connection:
            x = x + hidden_states
        return x / attn.rescale_output_factor

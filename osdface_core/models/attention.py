"""What the UNet's cross-attention looks at: each token's share at each place of a face (paper Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError


@dataclass
class AttentionRecord:
    """The softmax of each cross-attention layer, averaged over its heads: (B, places, tokens) each."""

    layers: list[Tensor] = field(default_factory=list)

    def maps(self, height: int, width: int) -> Tensor:
        """Average over the layers, each enlarged to the latent's size.

        Args:
            height, width: of the latent that the UNet was given [cells].
        Returns:
            (B, tokens, height, width) float32; at each place the tokens sum to 1.
        """
        whole = []
        for layer in self.layers:
            sides = _sides(layer.shape[1], height, width)
            grid = layer.transpose(1, 2).unflatten(2, sides)
            whole.append(F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False))
        return torch.stack(whole).mean(dim=0)


@contextmanager
def recorded_attention(unet: nn.Module) -> Iterator[AttentionRecord]:
    """Record the cross-attention of a diffusers UNet; its outputs stay the same, bit for bit.

    Of several passes within the block the last counts. The UNet's own processors return at its end.

    Raises:
        ConfigError: no layer of the UNet looks at a prompt, or the modules are none of diffusers'.
    """
    layers: list[Any] = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    if not layers or not all(hasattr(layer, "get_attention_scores") for layer in layers):
        raise ConfigError("attention maps: this model has no cross-attention that could be shown")
    record = AttentionRecord()
    own = [layer.processor for layer in layers]
    first = unet.register_forward_pre_hook(lambda *_: record.layers.clear())
    try:
        for layer, processor in zip(layers, own, strict=True):
            layer.processor = _Recorder(processor, record)
        yield record
    finally:
        first.remove()
        for layer, processor in zip(layers, own, strict=True):
            layer.processor = processor


class _Recorder:
    """A processor that notes the softmax and leaves the answer to the layer's own processor."""

    def __init__(self, own: Any, record: AttentionRecord) -> None:
        self.own, self.record = own, record

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Tensor:
        queries = attn.head_to_batch_dim(attn.to_q(hidden))
        keys = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        scores = attn.get_attention_scores(queries, keys)
        self.record.layers.append(scores.float().unflatten(0, (-1, attn.heads)).mean(dim=1))
        return self.own(attn, hidden, encoder_hidden_states=encoder_hidden_states, **rest)


def _sides(places: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a level of the UNet, each of which halves the sides and rounds up."""
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return height, width

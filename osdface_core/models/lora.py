"""Low-rank adapters of a base: read both released key styles, merge at a strength, or keep live.

W' = W + strength * (alpha / r) * B A, for linear layers and for convolutions (A of the layer's kernel size,
B 1x1). Source: the released file mixes `lora_A/lora_B` and `lora.down/lora.up` names; a loader that reads
one style only drops the other half silently, so every tensor has to find its layer here. Names are those
of the UNet's layers; those of the codec's encoder (OSEDiff) begin with `vae.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import LORA_TARGETS, LoRAConfig
from ..errors import CheckpointError
from ..weights import unusable
from .backbone import Backbone, UNetPredictor

_KEY = re.compile(
    r"^(?:unet\.)?(?:base_model\.model\.)?(?P<module>.+?)\.(?P<kind>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)(?:\.default)?\.weight$"
)
_DOWN = {"lora_A", "lora.down", "lora_down"}


class Factors(NamedTuple):
    """A: (r, in[, kh, kw]) and B: (out, r[, 1, 1])."""

    down: Tensor
    up: Tensor


def parse_lora(tensors: dict[str, Tensor]) -> dict[str, Factors]:
    """Parse both key styles to {module name: factors}.

    Raises:
        CheckpointError: a key of no known style, a factor without its partner, twice, or of no numbers.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    if problems := unusable(tensors):
        raise CheckpointError(f"LoRA: {problems[0]}; the file is damaged or of another kind")
    for key, value in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(
                f"LoRA: unexpected tensor {key}; expected <module>.lora_A.weight or .lora.down.weight"
            )
        side = "down" if match["kind"] in _DOWN else "up"
        if halves.setdefault(match["module"], {}).setdefault(side, value) is not value:
            raise CheckpointError(f"LoRA: {match['module']} has two {side} factors, the second is {key}")
    for module, pair in halves.items():
        if len(pair) != 2:
            raise CheckpointError(
                f"LoRA: {module} has only its {next(iter(pair))} factor; the file is incomplete"
            )
    for key, value in tensors.items():
        if not 2 <= value.ndim <= 4 or not value.numel():
            raise CheckpointError(f"LoRA: {key} is {tuple(value.shape)}, expected 2 to 4 sides; no factor")
    return {module: Factors(pair["down"], pair["up"]) for module, pair in halves.items()}


def by_module(backbone: Backbone, lora: dict[str, Factors]) -> list[tuple[nn.Module, dict[str, Factors]]]:
    """Pair the UNet, and the codec where it has some, with their adapters."""
    codec = {name: factors for name, factors in lora.items() if name.startswith("vae.")}
    unet = {name: factors for name, factors in lora.items() if name not in codec}
    pairs = (cast(UNetPredictor, backbone.predictor).unet, unet), (cast(nn.Module, backbone.codec), codec)
    return [pair for pair in pairs if pair[1]]


def delta(factors: Factors, alpha: float, shape: torch.Size) -> Tensor:
    """Compute (alpha / r) * B A in float32, in the layer's shape.

    Raises:
        CheckpointError: the factors are of another layer, or transposed; a 1x1 convolution counts as linear.
    """
    rank, (outputs, *inputs) = factors.down.shape[0], shape
    if [_padded(*f.shape) for f in factors] != [_padded(rank, *inputs), _padded(outputs, rank)]:
        a, b = (tuple(factor.shape) for factor in factors)
        raise CheckpointError(
            f"LoRA: factors A {a} and B {b} do not fit the layer {tuple(shape)}, expected A (r, "
            f"{', '.join(map(str, inputs))}) and B ({outputs}, r); the file is of another model or transposed"
        )
    product = factors.up.float().flatten(1) @ factors.down.float().flatten(1)
    return (alpha / rank) * product.reshape(shape)


def _padded(*shape: int) -> tuple[int, ...]:
    return (*shape, 1, 1)[:4]


def merge_lora(
    unet: nn.Module,
    lora: dict[str, Factors],
    alpha: float,
    strength: float = 1.0,
    base: Mapping[str, Tensor] | None = None,
) -> None:
    """Add the adapters to the UNet's weights, in place. Strength 0 leaves them untouched.

    Args:
        base: the weights to add to, by name, of any floating type; the UNet's own if None.
    Raises:
        CheckpointError: an adapter names a layer that the UNet lacks, or of another shape.
    """
    with torch.no_grad():
        for name, factors in lora.items():
            weight = _weight(unet, name)
            own = weight if base is None else base[f"{name}.weight"]
            if strength != 0.0:
                own = own.float() + strength * delta(factors, alpha, weight.shape).to(own.device)
            weight.copy_(own)


class MergedLoRA(NamedTuple):
    """What turns the strength of a merged LoRA: adapters, alpha, and the weights without it.

    Attributes:
        base: the tensors of UNet and VAE as the files have them, mapped: no memory until they are read.
    """

    adapters: dict[str, Factors]
    alpha: float
    base: Mapping[str, Tensor]

    def merge(self, backbone: Backbone, strength: float) -> None:
        """Merge at another strength, with the same bits as into weights that were just loaded."""
        for module, adapters in by_module(backbone, self.adapters):
            merge_lora(module, adapters, self.alpha, strength, self.base)


def attach_lora(unet: nn.Module, lora: dict[str, Factors], alpha: float, strength: float = 1.0) -> None:
    """Keep the adapters apart from the weights (through peft), so that `set_strength` can turn them.

    Raises:
        CheckpointError: as `merge_lora`, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    except ImportError as error:
        raise CheckpointError(
            "a live LoRA needs peft: pip install peft, or merge it (lora='merged')"
        ) from error
    for name, factors in lora.items():
        delta(factors, alpha, _weight(unet, name).shape)  # a clear error before peft's
    ranks = {name: factors.down.shape[0] for name, factors in lora.items()}
    rank = next(iter(ranks.values()))
    pattern = {name: r for name, r in ranks.items() if r != rank}
    alphas = dict.fromkeys(pattern, alpha)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(lora),
        rank_pattern=pattern,
        alpha_pattern=alphas,  # type: ignore[arg-type]
    )
    inject_adapter_in_model(config, unet)
    set_peft_model_state_dict(unet, to_peft(lora))
    set_strength(unet, strength)


def set_strength(whose: nn.Module | Backbone, strength: float) -> None:
    """Scale every live adapter: 0 is the base model, 1 the trained one."""
    from peft.tuners.lora import LoraLayer

    roots = (whose,) if isinstance(whose, nn.Module) else (whose.predictor, whose.codec)
    for module in (module for root in roots for module in cast(nn.Module, root).modules()):
        if isinstance(module, LoraLayer):
            for adapter in module.scaling:
                module.set_scale(adapter, strength)


def to_peft(lora: dict[str, Factors]) -> dict[str, Tensor]:
    """Rename to {module}.lora_A.weight / .lora_B.weight, the names of our checkpoints and of peft."""
    tensors = {f"{name}.lora_A.weight": f.down for name, f in lora.items()}
    return tensors | {f"{name}.lora_B.weight": f.up for name, f in lora.items()}


def extract_lora(unet: nn.Module) -> dict[str, Tensor]:
    """Collect the live adapters' tensors under our names."""
    from peft import get_peft_model_state_dict

    return {
        k.removeprefix("base_model.model."): v.detach() for k, v in get_peft_model_state_dict(unet).items()
    }


def lora_config(lora: dict[str, Factors], alpha: float) -> LoRAConfig:
    """Describe a set of adapters for a checkpoint: rank, alpha, and the layer kinds that carry one."""
    kinds = sorted({_kind(name) for name in lora})
    return LoRAConfig(rank=max(f.down.shape[0] for f in lora.values()), alpha=alpha, targets=tuple(kinds))


def _kind(name: str) -> str:
    """`down_blocks.0.attentions.1.…attn1.to_out.0` -> `to_out.0`: which kind of layer, without its place."""
    known = [target for target in LORA_TARGETS if name == target or name.endswith("." + target)]
    return max(known, key=len, default=name.rsplit(".", 1)[-1])


def _weight(unet: nn.Module, name: str) -> Any:
    try:
        layer = unet.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(
            f"LoRA: the base model has no layer {name}; is it a Stable Diffusion 2.1-base?"
        ) from error
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise CheckpointError(f"LoRA: {name} has no weight to adapt")
    return weight

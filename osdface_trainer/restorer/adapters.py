"""LoRA layers in training: attached, and switched off where the bare base has to answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


def add_lora(
    module: nn.Module, rank: int, alpha: float, targets: Sequence[str], name: str = "discriminator"
) -> None:
    """Attach trainable LoRA layers (float32, output zero at first) and freeze everything else of the module.

    Args:
        rank, alpha: 16 and 16 in the paper's lineage.
        name: of the adapter.
        targets: endings of layer names, as in `LoRAConfig.targets`; those the module lacks are ignored.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # type: ignore[arg-type]
    inject_adapter_in_model(config, module, adapter_name=name)
    for path, parameter in module.named_parameters():
        if "lora_" in path:
            parameter.data = parameter.data.float()


def encoder_layers(codec: nn.Module) -> list[str]:
    """Name all convolutions and linear layers on a KL codec's way to the latent: what OSEDiff adapts."""
    places = ("vae.encoder.", "vae.quant_conv")
    layers = ((n, m) for n, m in codec.named_modules() if n.startswith(places))
    return [name for name, layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Let a module answer without its LoRA layers inside the block."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)

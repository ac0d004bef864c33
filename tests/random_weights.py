"""Random weights in the layouts and under the file names of torchvision and TAESD."""

from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from osdface_core.models.tiny_codec import TinyCodec
from osdface_trainer.losses.features import BACKBONES


def save_random_backbones(folder: Path, *names: str) -> Path:
    """Write one weight file per backbone name (convolutional part only) and return the folder."""
    torch.manual_seed(0)
    for name in names:
        spec = BACKBONES[name]
        with torch.device("meta"):
            features = getattr(torchvision.models, spec.builder)(weights=None).features
        features = features.to_empty(device="cpu")
        for layer in features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
        state = {f"features.{key}": value for key, value in features.state_dict().items()}
        torch.save(state, folder / spec.file)
    return folder


def save_taesd(codec: TinyCodec, folder: Path) -> None:
    """A codec's weights as TAESD's two files name them; layer 0 of its decoder is a clamp without weights."""
    for name, part, shift in (("encoder", codec.encoder, 0), ("decoder", codec.decoder, 1)):
        state = {}
        for key, value in part.state_dict().items():
            _, number, rest = key.split(".", 2)
            state[f"{int(number) + shift}.{rest}"] = value.contiguous()
        save_file(state, folder / f"taesd_{name}.safetensors")

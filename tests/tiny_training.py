"""What training needs, random and tiny: a base model, a VRE, ImageNet networks, TAESD, a recipe, faces."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from osdface_core.checkpoint import save_checkpoint
from osdface_core.config import OSDFaceConfig, VREConfig
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_core.models.tiny_codec import TinyCodec
from osdface_core.models.vre import VRE
from osdface_trainer.losses.features import BACKBONES
from osdface_trainer.recipe import settings
from osdface_trainer.recipe.config import Recipe
from osdface_trainer.restorer.stage import RestorerStage, build
from osdface_trainer.stage import FaceBatch

SIDE = 64
TINY_VRE = VREConfig(
    resolution=64, base_channels=8, channel_multipliers=(1, 1, 2), res_blocks=1, attention_resolutions=(16,),
    z_channels=16, codebook_size=96, norm_groups=4, input_range=(-1.0, 1.0),
)  # fmt: skip
CODEC = {"kind": "tiny", "channels": 8, "decoder_blocks": [1, 1, 1, 1], "guide_channels": [4, 4, 4, 4]}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 1024,
    "attention_head_dim": (2, 4),
    "norm_num_groups": 8,
    "use_linear_projection": True,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 64,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


def write_files(folder: Path) -> Path:
    """base/, vre.safetensors, random judges and TAESD-like codec files that a recipe can name."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**UNET)
    vae: Any = AutoencoderKL(**VAE)
    unet.save_pretrained(folder / "base" / "unet")
    vae.save_pretrained(folder / "base" / "vae")
    vre = {f"vre.{name}": value for name, value in VRE(TINY_VRE).state_dict().items()}
    save_checkpoint(folder / "vre.safetensors", vre, OSDFaceConfig(vre=TINY_VRE))
    torch.save(MobileFaceNet().state_dict(), folder / "mobilefacenet.pt")
    save_random_backbones(folder, "squeezenet", "vgg16")
    save_taesd(TinyCodec(recipe_for(folder, "full").restorer.codec), folder)
    return folder


def recipe_for(folder: Path, mode: str, **restorer: Any) -> Recipe:
    """A recipe of the mode; `restorer` overrides keys of its table."""
    table: dict[str, Any] = {
        "mode": mode, "steps": 20, "batch_size": 2, "vre": str(folder / "vre.safetensors"), "warmup": 0,
        "lr": 1e-3, "ema": 0.9,
        "ea_dists": {"net": "squeezenet", "file": str(folder), "weight": 0.1},
        "perceptual": {"net": "squeezenet", "file": str(folder), "weight": 0.1},
        "identity": {"file": str(folder), "weight": 0.1},
        "color": {"weight": 0.1, "sigma": 4.0},
        "latent": {"mse": 1.0},
        "gan": {"diffusion": {"weight": 0.0}},
    }  # fmt: skip
    if mode == "full":
        table |= {
            "unet": {"block_out_channels": [16, 32], "cross_attention_levels": [True, False],
                     "attention_head_dim": 8, "norm_groups": 8},
            "codec": CODEC, "codec_init": str(folder), "projection": {"hidden": 8, "out": 32},
        }  # fmt: skip
    else:
        table["base"] = str(folder / "base")
    tables = {"run": {"dir": str(folder / "run"), "validate_every": 0}, "data": {"size": SIDE}}
    return settings.build(Recipe, {**tables, "restorer": {**table, **restorer}}, "")


def stage_for(recipe: Recipe, seed: int = 0) -> RestorerStage:
    """The stage on the CPU."""
    torch.manual_seed(seed)
    return build(recipe, Accelerator(cpu=True))


def faces(count: int = 2, seed: int = 1) -> FaceBatch:
    """Smooth random pictures and a blurred, noisy version of them."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, SIDE + 16, SIDE + 16, generator=generator)
    hq = torch.nn.functional.avg_pool2d(noise, 17, 1).sub(0.5).mul(6).add(0.5).clamp(0, 1)
    lq = (hq + 0.1 * torch.randn(hq.shape, generator=generator)).clamp(0, 1)
    return FaceBatch(hq, lq, torch.arange(count))


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

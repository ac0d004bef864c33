"""One autoencoder of stage 1 with its codebook, discriminator and two optimisers."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from .. import distributed
from ..distributed import all_rows, all_sum
from ..layout import memory_format
from ..losses.adversarial import discriminator_loss, frozen, generator_loss
from ..losses.discriminators import PatchDiscriminator
from ..recipe.config import RunConfig
from ..recipe.vre import VRETraining
from .codebook import CodebookUpdater, vq_loss
from .network import VQAutoencoder


@dataclass(frozen=True)
class Reconstruction:
    """What one pass through an autoencoder gives.

    Attributes:
        image: (B, 3, R, R), about `signed`.
        features: (B, D, h, w) before quantisation, float32.
        codes: (B, D, h, w) nearest codes, gradient to the codebook.
        indices: (B, h·w).
    """

    image: Tensor
    features: Tensor
    codes: Tensor
    indices: Tensor


class Autoencoding(nn.Module):
    """A `VQAutoencoder` whose forward pass is the training one, so that DDP and FSDP see it."""

    def __init__(self, net: VQAutoencoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, signed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the fields of `Reconstruction`; code distances stay float32 under autocast."""
        features = self.net.features(signed)
        with torch.autocast(signed.device.type, enabled=False):
            features = features.float()
            quantised = self.net.quantize(features)
        image = self.net.decoder(self.net.post_quant_conv(quantised.codes))
        return image, features, quantised.raw_codes, quantised.indices


class Branch:
    """Autoencoder, codebook, discriminator, and an Adam for each of the two networks."""

    def __init__(self, cfg: VRETraining, run: RunConfig, accelerator: Accelerator) -> None:
        self.cfg, self.accelerator = cfg, accelerator
        net, disc = build_networks(cfg)
        layout = memory_format(run, accelerator.device)
        net, disc = net.to(memory_format=layout), disc.to(memory_format=layout)
        net, disc = net.to(accelerator.device), disc.to(accelerator.device)
        if run.compile:
            compile_parts(net.net)
            disc.compile(dynamic=False)
        self.core = net.net
        self.net, self.optimizer = distributed.prepare(accelerator, net, self._adam, keep=True)
        self.disc, self.disc_optimizer = distributed.prepare(accelerator, disc, self._adam)
        self.codebook = CodebookUpdater(
            self.core.quantize.embedding.weight, cfg.codebook,
            reduce=lambda x: all_sum(accelerator, x), gather=lambda x: all_rows(accelerator, x),
        )  # fmt: skip

    def _adam(self, module: nn.Module) -> Optimizer:
        trained = [p for p in module.parameters() if p.requires_grad]
        fused = self.accelerator.device.type == "cuda"
        return Adam(trained, lr=self.cfg.lr, betas=self.cfg.betas, fused=fused or None)

    def reconstruct(self, signed: Tensor) -> Reconstruction:
        """Pass (B, 3, R, R) through encoder, codebook and decoder."""
        return Reconstruction(*self.net(signed))

    def vq_loss(self, result: Reconstruction) -> Tensor:
        """Compute the loss between features and codes, 0-d."""
        return vq_loss(result.features, result.codes, self.cfg.codebook)

    def adversarial_loss(self, result: Reconstruction) -> Tensor:
        """Compute what the autoencoder minimises; the discriminator's weights get no gradient."""
        with frozen(self.disc):  # under DDP unwrapped, because DDP waits for gradients of its parameters
            return generator_loss(self.cfg.gan.loss, self.accelerator.unwrap_model(self.disc)(result.image))

    def discriminator_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """Compute what the discriminator minimises; no gradient reaches the images.

        Two passes: its batch normalisation sees real and reconstructed images apart, as in the lineage.
        """
        return discriminator_loss(self.cfg.gan.loss, self.disc(target), self.disc(image.detach()))

    @property
    def last_layer(self) -> Tensor:
        """Return the weight of the decoder's last convolution: where the adaptive weight compares gradients.

        Between forward and backward pass this is the one that the graph knows, also when FSDP shards it.
        """
        return self.core.decoder.conv_out.weight

    def update(self, optimizer: Optimizer, module: nn.Module, factor: float) -> Tensor | None:
        """Clip, step, and clear one network; returns the gradient norm when clipping is on."""
        return distributed.update(optimizer, module.parameters(), self.cfg.lr, factor, self.cfg.clip)

    @torch.no_grad()
    def start_from(self, other: "Branch") -> None:
        """Copy weights, buffers and codebook statistics of another branch; optimisers stay fresh."""
        self.settle()
        other.settle()
        for mine, theirs in ((self.net, other.net), (self.disc, other.disc)):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.copy_(b)
            for a, b in zip(mine.buffers(), theirs.buffers(), strict=True):
                a.copy_(b)
        self.codebook.load_state_dict(other.codebook.state_dict())

    def settle(self) -> None:
        """Free gathered weights after passes without gradients, before weights are written."""
        distributed.settle(self.net)

    def state_dict(self) -> dict[str, Any]:
        return {"dictionary": self.codebook.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.codebook.load_state_dict(state["dictionary"])


def build_networks(cfg: VRETraining) -> tuple[Autoencoding, PatchDiscriminator]:
    """Build one branch's autoencoder and discriminator with random weights."""
    net = Autoencoding(VQAutoencoder(cfg.model))
    if cfg.codebook.update == "ema":
        net.net.quantize.requires_grad_(False)
    return net, PatchDiscriminator(cfg.gan.channels, cfg.gan.layers, cfg.gan.norm, cfg.gan.spectral)


def compile_parts(net: VQAutoencoder) -> None:
    """Compile everything but the last layer: a gradient there must not run through the whole network."""
    net.encoder.compile(dynamic=False)
    net.decoder.mid.compile(dynamic=False)
    for level in net.decoder.up:
        level.compile(dynamic=False)

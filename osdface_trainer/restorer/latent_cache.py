"""What the frozen encoders say of a pair, kept on the disk: on a CPU that is most of a step."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from osdface_core.files import replacing
from osdface_core.models.codebook import Tokens

from .generator import Generator


class Encoded(NamedTuple):
    """A batch of pairs as the generator sees them.

    Attributes:
        lq, hq: (B, C, H/8, W/8) float32, scaled latents of the degraded and of the clean face.
        lq_tokens, hq_tokens: their tokens, (B, 77) each.
        restored: (B, C, H/8, W/8), what the UNet makes of `lq`; None while prompt or UNet learn.
    """

    lq: Tensor
    hq: Tensor
    lq_tokens: Tokens
    hq_tokens: Tokens
    restored: Tensor | None = None


class LatentCache:
    """Encodings of pairs, found again by the pictures' content.

    Args:
        generator: what encodes; its frozen codec encoder and VRE. Other weights never find these files.
        folder: where they are kept, one file a pair (about 70 kB at 512 px, float16 latents); None keeps
            nothing.
        restores: UNet and prompt are frozen and get the plain input, so the restored latent is kept, too.
    """

    def __init__(self, generator: Generator, folder: Path | None, *, restores: bool = False) -> None:
        self.generator = generator
        self.restores = restores
        self.folder = folder / _fingerprint(generator, restores) if folder else None

    @torch.no_grad()
    def __call__(self, lq: Tensor, hq: Tensor) -> Encoded:
        """Encode a batch of pairs, (B, 3, H, W) signed each; what is on the disk is read instead."""
        if self.folder is None:
            return self._encode(lq, hq)
        pairs = zip(lq.split(1), hq.split(1), strict=True)
        return _joined([self._pair(*pair) for pair in pairs])

    def _pair(self, lq: Tensor, hq: Tensor) -> Encoded:
        assert self.folder is not None
        file = self.folder / f"{_content(lq, hq)}.npz"
        if file.is_file():
            return _read(file, lq.device)
        encoded = self._encode(lq, hq)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **_arrays(encoded))
        return _read(file, lq.device)  # rounded to float16, as every later pass will find it

    def _encode(self, lq: Tensor, hq: Tensor) -> Encoded:
        generator, vre = self.generator, self.generator.prompt.vre
        lq_latent, hq_latent = (generator.encode(image, generator.posterior).float() for image in (lq, hq))
        tokens = vre.tokens(lq)
        if not self.restores:
            return Encoded(lq_latent, hq_latent, tokens, vre.tokens(hq))
        restored = generator.one_step.denoise(lq_latent, generator.prompt.project(tokens))
        return Encoded(lq_latent, hq_latent, tokens, tokens, restored)


def _fingerprint(generator: Generator, restores: bool) -> str:
    digest = hashlib.sha256()
    encoder: nn.Module = getattr(generator.codec, "encoder", generator.codec)
    frozen = (generator.prompt, generator.predictor) if restores else (generator.prompt.vre,)
    for module in (encoder, *frozen):
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _content(lq: Tensor, hq: Tensor) -> str:
    digest = hashlib.sha256()
    for image in (lq, hq):
        digest.update(((image + 1) * 127.5).round().to(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _arrays(encoded: Encoded) -> dict[str, Any]:
    tokens = {"lq_tokens": encoded.lq_tokens, "hq_tokens": encoded.hq_tokens}
    return {
        "lq": encoded.lq.half().cpu().numpy(),
        "hq": encoded.hq.half().cpu().numpy(),
        **({} if encoded.restored is None else {"restored": encoded.restored.half().cpu().numpy()}),
        **{name: torch.stack(pair).short().cpu().numpy() for name, pair in tokens.items()},
    }


def _read(file: Path, device: torch.device) -> Encoded:
    with np.load(file) as arrays:

        def latent(name: str) -> Tensor:
            return torch.from_numpy(arrays[name]).float().to(device)

        def tokens(name: str) -> Tokens:
            return Tokens(*torch.from_numpy(arrays[f"{name}_tokens"]).long().to(device))

        restored = latent("restored") if "restored" in arrays else None
        return Encoded(latent("lq"), latent("hq"), tokens("lq"), tokens("hq"), restored)


def _joined(pairs: list[Encoded]) -> Encoded:
    lq, hq = (torch.cat([getattr(pair, name) for pair in pairs]) for name in ("lq", "hq"))
    lq_tokens, hq_tokens = (
        Tokens(*(torch.cat(part) for part in zip(*(getattr(pair, name) for pair in pairs), strict=True)))
        for name in ("lq_tokens", "hq_tokens")
    )
    restored = [pair.restored for pair in pairs if pair.restored is not None]
    return Encoded(lq, hq, lq_tokens, hq_tokens, torch.cat(restored) if restored else None)

"""What a training pass is given besides the plain input, so that prompt and decoder learn to be of use.

A UNet whose latent already says what its prompt says never listens to the prompt. So some samples get a
latent mixed with noise, and tokens of the clean face, which then know more than the latent; and some get no
prompt, so that "no prompt" is a fair comparison. A decoder with a fidelity branch copies its input instead of
painting what the latent shows, unless it sometimes has to do without.
"""

import torch
from torch import Tensor

from osdface_core.models.codebook import Tokens

from ..recipe.restorer import GuideTerm, PromptTerm
from .generator import Conditions, Decoding
from .latent_cache import Encoded


def draw_conditions(cfg: PromptTerm, encoded: Encoded, progress: float) -> Conditions:
    """Draw what each sample of a batch is given, from the global random generator.

    Args:
        progress: 0 at the first step, 1 at the last: noise falls to its end, clean tokens to none.
    """
    count = len(encoded.lq)
    share = cfg.noise + (cfg.noise_end - cfg.noise) * progress
    low, high = cfg.noise_range
    amount = torch.empty(count).uniform_(low, high) * _chosen(count, share)
    amount = amount.to(encoded.lq.device)[:, None, None, None]
    latent = torch.lerp(encoded.lq, torch.randn_like(encoded.lq), amount)
    clean = _chosen(count, cfg.clean_tokens * (1 - progress)).bool().to(latent.device)[:, None]
    pairs = zip(encoded.hq_tokens, encoded.lq_tokens, strict=True)
    tokens = Tokens(*(torch.where(clean, hq, lq) for hq, lq in pairs))
    prompted = 1 - _chosen(count, cfg.dropout).to(latent.device)[:, None, None]
    return Conditions(latent, tokens, prompted, encoded.restored)


def draw_decoding(cfg: GuideTerm, clean: Tensor, count: int) -> Decoding:
    """Draw how `count` windows (or faces) are decoded, from the global random generator.

    Args:
        clean: (B, C, h, w), the clean latents.
    """
    fidelity = torch.where(_chosen(count, cfg.partial).bool(), torch.rand(count), torch.ones(count))
    fidelity = fidelity * (1 - _chosen(count, cfg.dropout))
    swapped = _chosen(count, cfg.clean_latents).bool()
    shape = (count, 1, 1, 1)
    return Decoding(fidelity.view(shape).to(clean.device), swapped.view(shape).to(clean.device), clean)


def _chosen(count: int, share: float) -> Tensor:
    """(count,) ones with probability `share`, else zeros; on the CPU, so that devices draw alike."""
    return (torch.rand(count) < share).float()

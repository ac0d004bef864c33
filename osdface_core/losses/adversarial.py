"""Adversarial objectives on logits, their gradient penalties, and VQGAN's adaptive weight.

Logits are one tensor of any shape (one value per image or per patch) or a sequence of them (one per feature
level, each level counts the same).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

Logits = Tensor | Sequence[Tensor]
Objective = Literal["hinge", "softplus", "relativistic"]


def discriminator_loss(objective: Objective, real: Logits, fake: Logits) -> Tensor:
    """What the discriminator minimises.

    hinge: ½ (E relu(1 − D(real)) + E relu(1 + D(fake))), taming-transformers' form (recipe.md §1.3).
    softplus: E softplus(−D(real)) + E softplus(D(fake)), the logit form of OSDFace Eq. 16.
    relativistic: E softplus(−(D(real) − D(fake))), R3GAN's pairing (arXiv 2501.05441); needs paired logits.

    Returns:
        float32 scalar.
    Raises:
        ConfigError: for an unknown objective.
    """
    pairs = _pairs(real, fake)
    if objective == "hinge":
        return _mean([(F.relu(1 - r).mean() + F.relu(1 + f).mean()) / 2 for r, f in pairs])
    if objective == "softplus":
        return _mean([F.softplus(-r).mean() + F.softplus(f).mean() for r, f in pairs])
    if objective == "relativistic":
        return _mean([F.softplus(f - r).mean() for r, f in pairs])
    raise ConfigError(
        f"unknown adversarial objective {objective!r}: expected hinge, softplus or relativistic"
    )


def generator_loss(objective: Objective, fake: Logits, real: Logits | None = None) -> Tensor:
    """What the generator minimises.

    hinge: −E D(fake). softplus: E softplus(−D(fake)), OSDFace Eq. 15. relativistic: E softplus(D(real) −
        D(fake)).

    Args:
        real: logits of the paired real images; used (and needed) by "relativistic" only.
    Raises:
        ConfigError: for an unknown objective, or "relativistic" without `real`.
    """
    if objective == "hinge":
        return _mean([-f.float().mean() for f in _levels(fake)])
    if objective == "softplus":
        return _mean([F.softplus(-f.float()).mean() for f in _levels(fake)])
    if objective == "relativistic":
        if real is None:
            raise ConfigError(
                "the relativistic objective compares pairs: give the logits of the real images too"
            )
        return _mean([F.softplus(r - f).mean() for r, f in _pairs(real, fake)])
    raise ConfigError(
        f"unknown adversarial objective {objective!r}: expected hinge, softplus or relativistic"
    )


def gradient_penalty(discriminator: Callable[[Tensor], Logits], images: Tensor) -> Tensor:
    """R1 (on real images) or R2 (on generated ones): E ‖∇ D(x)‖², exact, by double backward.

    D(x) is the mean logit of each image, so the scale does not depend on the number of patches. Multiply with
    γ/2.

    Args:
        images: (B, …); gradients do not flow back to where they came from.
    Source: arXiv 1801.04406, Eq. 9; both together as in R3GAN (arXiv 2501.05441).
    """
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        score = _per_image(discriminator(images)).sum()
        (gradient,) = torch.autograd.grad(score, images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()


def approximate_gradient_penalty(
    discriminator: Callable[[Tensor], Logits],
    images: Tensor,
    logits: Logits,
    *,
    sigma: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """R1 by a finite difference: E ‖D(x) − D(x + σ ε)‖², without double backward (flash attention survives).

    For small σ it tends to σ² ‖∇ D(x)‖² in expectation (per logit), so its weight is large.

    Args:
        images: (B, …) real images or latents.
        logits: D(images), already computed in this step with gradient.
        sigma: noise scale [units of `images`].
    Source: Seaweed-APT (arXiv 2501.08316), approximated R1.
    """
    images = images.detach()
    noise = torch.randn(images.shape, device=images.device, dtype=images.dtype, generator=generator)
    return _mean([(a - b).square().mean() for a, b in _pairs(logits, discriminator(images + sigma * noise))])


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, weight: Tensor, *, scale: float = 0.8, maximum: float = 1e4
) -> Tensor:
    """VQGAN's factor for the generator's adversarial loss: both losses pull the last layer equally hard.

    λ = scale · clamp(‖∂reconstruction/∂W‖ / (‖∂adversarial/∂W‖ + 1e-4), 0, maximum)

    Args:
        reconstruction, adversarial: scalars whose graphs hold `weight`; both graphs are kept.
        weight: W, the decoder's last convolution.
    Returns:
        scalar without gradient.
    Source: taming-transformers (arXiv 2012.09841, Eq. 7); recipe.md §1.3.
    """
    (pull,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    ratio = pull.float().norm() / (push.float().norm() + 1e-4)
    return (ratio.clamp(0, maximum) * scale).detach()


def _levels(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def _pairs(real: Logits, fake: Logits) -> list[tuple[Tensor, Tensor]]:
    return [(r.float(), f.float()) for r, f in zip(_levels(real), _levels(fake), strict=True)]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _per_image(logits: Logits) -> Tensor:
    """(B,): the mean logit of each image, levels counting the same."""
    return torch.stack([level.float().flatten(1).mean(1) for level in _levels(logits)]).mean(0)

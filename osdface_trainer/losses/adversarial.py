"""Adversarial objectives on logits, their gradient penalties, and VQGAN's adaptive weight.

Logits are one tensor of any shape (one value per image or per patch) or a sequence of them (one per feature
level, each level counts the same).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.errors import ConfigError

Logits = Tensor | Sequence[Tensor]
Objective = Literal["hinge", "softplus", "relativistic"]


def discriminator_loss(objective: Objective, real: Logits, fake: Logits) -> Tensor:
    """What the discriminator minimises.

    hinge: ½ (E relu(1 − D(real)) + E relu(1 + D(fake))), taming-transformers' form.
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


def gradient_penalty(
    discriminator: Callable[[Tensor], Logits], images: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """R1 (on real images) or R2 (on generated ones), exact: the mean of ‖∇ D(x)‖² over all logits.

    With one logit per image this is Eq. 9 of arXiv 1801.04406; R3GAN (arXiv 2501.05441) uses both. With
    patches one backward pass covers all logits by giving each a random sign, which is right in expectation.
    Multiply with γ/2.

    Args:
        images: (B, …); gradients do not flow back to where they came from.
        generator: draws the signs; on the device of `images`.
    Returns:
        float32 scalar with gradient to the discriminator's parameters.
    """
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        levels = _levels(discriminator(images))
        score = torch.stack([_signed_sum(level.float(), generator) for level in levels]).sum()
        (gradient,) = torch.autograd.grad(score / len(levels) ** 0.5, images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()


def approximate_gradient_penalty(
    discriminator: Callable[[Tensor], Logits],
    images: Tensor,
    logits: Logits,
    *,
    sigma: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`gradient_penalty` by a finite difference, without double backward (flash attention survives it).

    E (D(x) − D(x + σ ε))² / σ², which tends to mean ‖∇ D(x)‖² for small σ, so γ keeps its meaning. APT's own
    weight λ multiplies the difference without the 1/σ²: γ/2 = λ σ².

    Rounding in half precision adds to the difference, the more the smaller σ is.

    Args:
        images: (B, …) real images or latents.
        logits: D(images), already computed in this step with gradient.
        sigma: noise scale [units of `images`].
        generator: draws the noise; on the device of `images`.
    Source: Seaweed-APT (arXiv 2501.08316), approximated R1; the default σ is unverified.
    """
    images = images.detach()
    noise = torch.randn(images.shape, device=images.device, dtype=images.dtype, generator=generator)
    moved = discriminator(images + sigma * noise)
    return _mean([(a - b).square().mean() for a, b in _pairs(logits, moved)]) / sigma**2


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    weight: Tensor,
    *,
    scale: float = 0.8,
    maximum: float = 1e4,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """VQGAN's factor for the generator's adversarial loss: both losses pull the last layer equally hard.

    λ = scale · clamp(‖∂reconstruction/∂W‖ / (‖∂adversarial/∂W‖ + 1e-4), 0, maximum)

    Args:
        reconstruction, adversarial: scalars whose graphs hold `weight`; both graphs are kept.
        weight: W, the decoder's last convolution.
        reduce: averages a gradient over the processes of a distributed run.
    Returns:
        scalar without gradient.
    Source: taming-transformers (arXiv 2012.09841, Eq. 7)
    """
    (pull,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    if reduce is not None:
        pull, push = reduce(pull), reduce(push)
    ratio = pull.float().norm() / (push.float().norm() + 1e-4)
    return (ratio.clamp(0, maximum) * scale).detach()


def _levels(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def _pairs(real: Logits, fake: Logits) -> list[tuple[Tensor, Tensor]]:
    return [(r.float(), f.float()) for r, f in zip(_levels(real), _levels(fake), strict=True)]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _signed_sum(level: Tensor, generator: torch.Generator | None) -> Tensor:
    """Σ ± logit / √(logits per image): its squared gradient is the mean over logits, in expectation."""
    count = level[0].numel()
    if count == 1:
        return level.sum()
    signs = torch.randint(0, 2, level.shape, device=level.device, generator=generator) * 2 - 1
    return (level * signs).sum() / count**0.5


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block no parameter of `module` requires a gradient, as the generator's step wants it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

"""Adversarial objectives on logits, and VQGAN's adaptive weight.

Logits are one tensor of any shape (one value per image or per patch) or a sequence of them (one per feature
level, each level counts the same).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Logits = Tensor | Sequence[Tensor]
Objective = Literal["hinge", "softplus", "log"]


def discriminator_loss(objective: Objective, real: Logits, fake: Logits) -> Tensor:
    """Compute what the discriminator minimises.

    hinge: ½ (E relu(1 − D(real)) + E relu(1 + D(fake))), taming-transformers' form.
    softplus, log: E softplus(−D(real)) + E softplus(D(fake)), the logit form of OSDFace Eq. 16.

    Returns:
        0-d float32.
    """
    pairs = [(r.float(), f.float()) for r, f in zip(levels_of(real), levels_of(fake), strict=True)]
    if objective == "hinge":
        return _mean([(F.relu(1 - r).mean() + F.relu(1 + f).mean()) / 2 for r, f in pairs])
    return _mean([F.softplus(-r).mean() + F.softplus(f).mean() for r, f in pairs])


def generator_loss(objective: Objective, fake: Logits) -> Tensor:
    """Compute what the generator minimises.

    hinge: −E D(fake). softplus: E softplus(−D(fake)), OSDFace Eq. 15. log: E log(1 − σ(D(fake))), the
    term of Eq. 8 as printed, whose pull fades where the discriminator is sure.

    Returns:
        0-d float32.
    """
    if objective == "hinge":
        return _mean([-f.float().mean() for f in levels_of(fake)])
    if objective == "log":
        return _mean([F.logsigmoid(-f.float()).mean() for f in levels_of(fake)])
    return _mean([F.softplus(-f.float()).mean() for f in levels_of(fake)])


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    weight: Tensor,
    *,
    scale: float = 0.8,
    maximum: float = 1e4,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute VQGAN's factor on the adversarial loss: both losses pull the last layer equally hard.

    λ = scale · clamp(‖∂reconstruction/∂W‖ / (‖∂adversarial/∂W‖ + 1e-4), 0, maximum)

    Args:
        reconstruction, adversarial: scalars whose graphs hold `weight`; both graphs are kept.
        weight: W, the decoder's last convolution.
        reduce: averages a gradient over the processes of a distributed run.
    Returns:
        0-d, without gradient.
    Source: taming-transformers (arXiv 2012.09841, Eq. 7)
    """
    (pull,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    if reduce is not None:
        pull, push = reduce(pull), reduce(push)
    ratio = pull.float().norm() / (push.float().norm() + 1e-4)
    return (ratio.clamp(0, maximum) * scale).detach()


def levels_of(logits: Logits) -> Sequence[Tensor]:
    """List the logits of each level."""
    return [logits] if isinstance(logits, Tensor) else logits


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Switch the gradients of a module's parameters off inside the block, for the generator's step."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

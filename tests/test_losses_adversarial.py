"""Adversarial objectives, penalties and the adaptive weight against formulas written out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osdface_core.errors import ConfigError
from osdface_trainer.losses.adversarial import (
    Objective,
    adaptive_weight,
    approximate_gradient_penalty,
    discriminator_loss,
    frozen,
    generator_loss,
    gradient_penalty,
)

REAL = torch.tensor([[2.0, 0.5], [-1.0, 3.0]]).view(2, 1, 1, 2)
FAKE = torch.tensor([[-2.0, 0.3], [1.5, -0.2]]).view(2, 1, 1, 2)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.log(1 + np.exp(x))


def test_discriminator_objectives() -> None:
    real, fake = REAL.numpy().astype(float), FAKE.numpy().astype(float)
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(hinge)
    # Eq. 16 as printed, with D = sigmoid(logit): -log D(real) - log(1 - D(fake))
    real_p, fake_p = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    printed = -np.log(real_p).mean() - np.log(1 - fake_p).mean()
    assert discriminator_loss("softplus", REAL, FAKE).item() == pytest.approx(printed)
    paired = _softplus(-(real - fake)).mean()
    assert discriminator_loss("relativistic", REAL, FAKE).item() == pytest.approx(paired)


def test_generator_objectives() -> None:
    real, fake = REAL.numpy().astype(float), FAKE.numpy().astype(float)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(-fake.mean())
    assert generator_loss("softplus", FAKE).item() == pytest.approx(-np.log(1 / (1 + np.exp(-fake))).mean())
    assert generator_loss("relativistic", FAKE, REAL).item() == pytest.approx(_softplus(real - fake).mean())


def test_levels_count_the_same_whatever_their_size() -> None:
    small, large = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 8, 8), -1.0)
    assert generator_loss("hinge", [small, large]).item() == pytest.approx(-1.0)
    both = discriminator_loss("softplus", [small, large], [large, small])
    alone = (discriminator_loss("softplus", small, large) + discriminator_loss("softplus", large, small)) / 2
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("objective", ["hinge", "softplus", "relativistic"])
def test_the_players_pull_in_opposite_directions(objective: Objective) -> None:
    real, fake = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    discriminator_loss(objective, real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()  # descending raises D(real) …
    assert (fake.grad > 0).all()  # … and lowers D(fake)
    fake.grad = None
    generator_loss(objective, fake, real.detach()).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()


def test_unknown_objective_and_missing_pair() -> None:
    with pytest.raises(ConfigError, match="hinge, softplus or relativistic"):
        discriminator_loss("wgan", REAL, FAKE)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="real images"):
        generator_loss("relativistic", FAKE)
    with pytest.raises(ValueError, match="longer"):
        discriminator_loss("hinge", [REAL], [FAKE, FAKE])


def test_exact_penalty_of_known_functions() -> None:
    torch.manual_seed(0)
    direction = torch.randn(12, requires_grad=True)
    x = torch.randn(5, 3, 2, 2)
    linear = gradient_penalty(lambda v: v.flatten(1) @ direction.view(-1, 1), x)
    torch.testing.assert_close(linear, direction.square().sum())
    (gradient,) = torch.autograd.grad(linear, direction)
    torch.testing.assert_close(gradient, 2 * direction)  # double backward reaches the parameters
    square = gradient_penalty(lambda v: v.square().flatten(1).sum(1), x)
    torch.testing.assert_close(square, 4 * x.square().flatten(1).sum(1).mean())


def test_exact_penalty_is_the_mean_over_patches_and_levels() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 12)
    orthogonal = torch.linalg.qr(rows.T).Q.T * torch.arange(1.0, 7)[:, None]  # |row i| = i
    expected = torch.tensor([1, 4, 9, 16, 25, 36.0]).mean()
    x = torch.randn(3, 12)
    torch.testing.assert_close(gradient_penalty(lambda v: v @ orthogonal.T, x), expected)
    levels = gradient_penalty(lambda v: [v @ orthogonal[:3].T, v @ orthogonal[3:].T], x)
    torch.testing.assert_close(levels, (torch.tensor(14 / 3) + 77 / 3) / 2)
    generator = torch.Generator().manual_seed(0)
    draws = [gradient_penalty(lambda v: v @ rows.T, x[:1], generator=generator).item() for _ in range(600)]
    assert np.mean(draws) == pytest.approx(rows.square().sum(1).mean().item(), rel=0.1)  # in expectation


def test_approximate_penalty_tends_to_the_exact_one() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1), nn.Flatten(1)
    net = nn.Sequential(*layers).double()
    pool = nn.Linear(64, 1).double()

    def discriminator(x: Tensor) -> Tensor:
        return pool(net(x))

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    exact = gradient_penalty(discriminator, x).item()
    generator = torch.Generator().manual_seed(0)
    many = x.repeat(1000, 1, 1, 1)
    found = approximate_gradient_penalty(
        discriminator, many, discriminator(many), sigma=1e-3, generator=generator
    )
    assert found.item() == pytest.approx(exact, rel=0.1)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim > 1)


def test_penalties_leave_the_generator_alone() -> None:
    made = torch.randn(2, 4, requires_grad=True)
    weight = torch.randn(4, requires_grad=True)
    fake = made * 2
    near = approximate_gradient_penalty(lambda v: v @ weight, fake, fake.detach() @ weight)
    (gradient_penalty(lambda v: v @ weight, fake) + near).backward()
    assert made.grad is None
    assert weight.grad is not None


def test_adaptive_weight_follows_vqgan() -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(4, 3, 3, padding=1)
    features, target = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    image = last(features)
    nll, adversarial = (image - target).abs().mean(), -image.square().mean()
    weight = adaptive_weight(nll, adversarial, last.weight)
    norms = []
    for loss in ((last(features) - target).abs().mean(), -last(features).square().mean()):
        last.weight.grad = None
        loss.backward()
        assert last.weight.grad is not None
        norms.append(math.sqrt((last.weight.grad.double() ** 2).sum().item()))
    assert weight.item() == pytest.approx(0.8 * norms[0] / (norms[1] + 1e-4), rel=1e-4)
    assert not weight.requires_grad
    (nll + weight * adversarial).backward()  # both graphs are still there
    dead = adaptive_weight(last(features).sum(), (last(features) * 0).sum(), last.weight)
    assert dead.item() == pytest.approx(0.8e4)  # clamped


def test_frozen_restores_what_was_trained() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    x = torch.randn(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="stop"), frozen(net):
        assert not any(parameter.requires_grad for parameter in net.parameters())
        net(x).sum().backward()
        raise RuntimeError("stop")
    assert x.grad is not None
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())

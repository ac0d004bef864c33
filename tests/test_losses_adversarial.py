"""Adversarial objectives and the adaptive weight against formulas written out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from osdface_trainer.losses.adversarial import (
    Objective,
    adaptive_weight,
    discriminator_loss,
    frozen,
    generator_loss,
)

REAL = torch.tensor([[2.0, 0.5], [-1.0, 3.0]]).view(2, 1, 1, 2)
FAKE = torch.tensor([[-2.0, 0.3], [1.5, -0.2]]).view(2, 1, 1, 2)


def test_discriminator_objectives() -> None:
    real, fake = REAL.numpy().astype(float), FAKE.numpy().astype(float)
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(hinge)
    # Eq. 16 as printed, with D = sigmoid(logit): -log D(real) - log(1 - D(fake))
    real_p, fake_p = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    printed = -np.log(real_p).mean() - np.log(1 - fake_p).mean()
    assert discriminator_loss("softplus", REAL, FAKE).item() == pytest.approx(printed)


def test_generator_objectives() -> None:
    fake = FAKE.numpy().astype(float)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(-fake.mean())
    assert generator_loss("softplus", FAKE).item() == pytest.approx(-np.log(1 / (1 + np.exp(-fake))).mean())
    # Eq. 8 as printed: log(1 - D(fake))
    assert generator_loss("log", FAKE).item() == pytest.approx(np.log(1 - 1 / (1 + np.exp(-fake))).mean())


def test_levels_count_the_same_whatever_their_size() -> None:
    small, large = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 8, 8), -1.0)
    assert generator_loss("hinge", [small, large]).item() == pytest.approx(-1.0)
    both = discriminator_loss("softplus", [small, large], [large, small])
    alone = (discriminator_loss("softplus", small, large) + discriminator_loss("softplus", large, small)) / 2
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("objective", ["hinge", "softplus"])
def test_the_players_pull_in_opposite_directions(objective: Objective) -> None:
    real, fake = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    discriminator_loss(objective, real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()  # descending raises D(real) …
    assert (fake.grad > 0).all()  # … and lowers D(fake)
    fake.grad = None
    generator_loss(objective, fake).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()


def test_a_missing_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer"):
        discriminator_loss("hinge", [REAL], [FAKE, FAKE])


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

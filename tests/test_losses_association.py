"""The association loss against loops over single tokens."""

import math
from typing import Literal

import numpy as np
import pytest
import torch

from osdface_trainer.losses.association import association_accuracy, association_loss


def _brute_force(hq: np.ndarray, lq: np.ndarray, temperature: float) -> float:
    """Eq. 9-10 token by token; (N, C) each."""
    unit_h = [v / math.sqrt(sum(x * x for x in v)) for v in hq.astype(np.float64)]
    unit_l = [v / math.sqrt(sum(x * x for x in v)) for v in lq.astype(np.float64)]
    count, losses = len(unit_h), []
    for rows, columns in ((unit_h, unit_l), (unit_l, unit_h)):
        total = 0.0
        for i in range(count):
            scores = [math.exp(float(np.dot(rows[i], columns[j])) / temperature) for j in range(count)]
            total -= math.log(scores[i] / sum(scores))
        losses.append(total / count)
    return sum(losses) / 2


def _tokens(features: torch.Tensor) -> np.ndarray:
    """(C, H, W) → (H·W, C), row by row."""
    _, height, width = features.shape
    return np.stack([features[:, y, x].numpy() for y in range(height) for x in range(width)])


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_brute_force(temperature: float) -> None:
    torch.manual_seed(0)
    hq = torch.randn(3, 5, 2, 4)
    lq = hq + torch.randn(3, 5, 2, 4)
    everything = _brute_force(*(np.concatenate([_tokens(x) for x in side]) for side in (hq, lq)), temperature)
    assert association_loss(hq, lq, temperature=temperature).item() == pytest.approx(everything, rel=1e-5)
    pairs = zip(hq, lq, strict=True)
    singly = np.mean([_brute_force(_tokens(h), _tokens(low), temperature) for h, low in pairs])
    found = association_loss(hq, lq, temperature=temperature, scope="image").item()
    assert found == pytest.approx(float(singly), rel=1e-5)
    assert found < everything  # fewer wrong answers to choose from


def test_known_values() -> None:
    same = torch.ones(2, 3, 4, 4)
    assert association_loss(same, 5 * same).item() == pytest.approx(math.log(32), rel=1e-5)  # N tokens alike
    orthogonal = torch.eye(16).reshape(1, 16, 4, 4)
    wrong = math.exp(-1 / 0.07) * 15
    assert association_loss(orthogonal, orthogonal).item() == pytest.approx(math.log(1 + wrong), rel=1e-2)


def test_is_symmetric_and_blind_to_length() -> None:
    torch.manual_seed(0)
    hq, lq = torch.randn(2, 2, 6, 3, 3).unbind(0)
    value = association_loss(hq, lq)
    torch.testing.assert_close(association_loss(lq, hq), value)
    torch.testing.assert_close(association_loss(7 * hq, lq / 9), value)


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_training_on_it_makes_the_pairs_find_each_other(scope: Literal["batch", "image"]) -> None:
    torch.manual_seed(0)
    hq = torch.randn(2, 8, 4, 4, requires_grad=True)
    lq = torch.randn(2, 8, 4, 4, requires_grad=True)
    optimiser = torch.optim.Adam([hq, lq], lr=0.1)
    before = association_accuracy(hq, lq, scope=scope)
    for _ in range(40):
        optimiser.zero_grad()
        loss = association_loss(hq, lq, scope=scope)
        loss.backward()
        assert all(x.grad is not None and x.grad.abs().amin(1).max() > 0 for x in (hq, lq))
        optimiser.step()
    assert before < 0.5
    assert association_accuracy(hq, lq, scope=scope) == 1
    assert loss < 0.1


def test_accuracy_counts_both_directions() -> None:
    eye = torch.eye(4).reshape(1, 4, 2, 2)
    assert association_accuracy(eye, eye) == 1
    swapped = eye.flatten(2)[:, :, [1, 0, 2, 3]].reshape(1, 4, 2, 2)
    assert association_accuracy(eye, swapped) == 0.5


def test_half_precision_input_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    hq, lq = torch.randn(2, 1, 8, 4, 4).bfloat16().unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        value = association_loss(hq, lq)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, association_loss(hq.float(), lq.float()))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\)"):
        association_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4))

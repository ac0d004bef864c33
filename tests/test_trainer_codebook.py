"""The codebook: VQ loss, running means by hand, revival, and its health."""

import math

import pytest
import torch

from osdface_trainer.recipe.vre import CodebookConfig
from osdface_trainer.vre.codebook import CodebookUpdater, usage, vq_loss


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def test_vq_loss_places_beta_as_asked() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes = torch.randn(2, 4, 3, 3, requires_grad=True)
    gap = (features - codes).square().mean()
    for beta_on, on_features, on_codes in (("commitment", 0.25, 1.0), ("codebook", 1.0, 0.25)):
        loss = vq_loss(features, codes, CodebookConfig(beta=0.25, beta_on=beta_on))
        assert loss.item() == pytest.approx(1.25 * gap.item())
        got = torch.autograd.grad(loss, (features, codes))
        whole = 2 * (features - codes).detach() / features.numel()
        torch.testing.assert_close(got[0], on_features * whole)
        torch.testing.assert_close(got[1], -on_codes * whole)


def test_with_running_means_only_the_commitment_remains() -> None:
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    codes = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = vq_loss(features, codes, CodebookConfig(update="ema", beta=0.25))
    assert torch.autograd.grad(loss, codes, allow_unused=True) == (None,)


def test_usage_against_plain_counting() -> None:
    indices = torch.tensor([[0, 0, 1, 2], [3, 3, 3, 3]])
    health = usage(indices, size=8, tokens=2)
    shares = [2 / 8, 1 / 8, 1 / 8, 4 / 8]
    entropy = -sum(s * math.log(s) for s in shares)
    assert health["perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-5)
    assert health["used"].item() == 4
    assert health["distinct"].item() == 2.0  # 3 and 1
    assert health["distinct_min"].item() == 1.0
    assert health["filled"].item() == pytest.approx((1.0 + 0.5) / 2)


def test_running_mean_equals_the_recurrence_written_out() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 2))
    start, decay = weight.detach().clone(), 0.9
    codebook = CodebookUpdater(weight, CodebookConfig(update="ema", decay=decay), same, same)
    features, indices = torch.randn(1, 5, 2), torch.tensor([[0, 0, 1, 1, 1]])
    codebook.update(features, indices, 0, 10)
    hits = [decay + (1 - decay) * n for n in (2, 3, 0)]
    sums = [features[0, :2].sum(0), features[0, 2:].sum(0), torch.zeros(2)]
    for code in range(3):
        total = decay * start[code] + (1 - decay) * sums[code]
        torch.testing.assert_close(weight[code].detach(), total / hits[code], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_codes_that_nothing_uses_move_onto_features(update: str) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 2))
    before = weight.detach().clone()
    codebook = CodebookUpdater(
        weight, CodebookConfig(update=update, revive_every=2, revive_until=0.5), same, same
    )
    features = 100 + torch.randn(2, 4, 2)
    indices = torch.tensor([[0, 1] * 2] * 2)
    codebook.update(features, indices, 0, 8)
    if update == "gradient":
        assert torch.equal(weight, before)
    codebook.update(features, indices, 1, 8)
    moved = weight.detach()[2:]
    assert all(any(torch.equal(row, feature) for feature in features.flatten(0, 1)) for row in moved)
    kept = weight.detach().clone()
    if update == "gradient":
        assert torch.equal(kept[:2], before[:2])
    for step in range(4, 8):  # past `revive_until`: nothing jumps any more
        codebook.update(features, indices, step, 8)
    torch.testing.assert_close(weight.detach()[2:], kept[2:], rtol=1e-3, atol=1e-2)


def test_used_codes_are_never_moved() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    codebook = CodebookUpdater(weight, CodebookConfig(revive_every=1), same, same)
    codebook.update(torch.ones(1, 4, 2), torch.arange(4)[None], 0, 10)
    assert torch.equal(weight, torch.zeros(4, 2))


def test_start_puts_every_code_onto_a_feature_and_state_survives() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(5, 3))
    codebook = CodebookUpdater(weight, CodebookConfig(init="data", update="ema"), same, same)
    features = torch.randn(3, 3, 3)
    codebook.start(features)
    assert all(any(torch.equal(row, f) for f in features.flatten(0, 1)) for row in weight.detach())
    other = CodebookUpdater(torch.nn.Parameter(torch.zeros(5, 3)), codebook.settings, same, same)
    other.load_state_dict(codebook.state_dict())
    for one in (codebook, other):
        one.update(features, torch.arange(9).reshape(3, 3) % 5, 0, 4)
    for key, value in codebook.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_two_processes_move_the_same_codes_as_one() -> None:
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 2)
    parts = [batch[0::2], batch[1::2]]  # how the samples are dealt out
    moved = []
    for features, gather in ((batch, same), (parts[0], lambda _: torch.cat(parts))):
        weight = torch.nn.Parameter(torch.zeros(5, 2))
        CodebookUpdater(weight, CodebookConfig(init="data"), same, gather).start(features)
        moved.append(weight.detach())
    assert torch.equal(*moved)

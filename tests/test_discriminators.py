"""Pixel discriminators: shapes, which parameters train, and that they learn."""

from pathlib import Path

import pytest
import torch
from torch import nn

from osdface_core.errors import ConfigError
from osdface_trainer.losses.adversarial import discriminator_loss, generator_loss
from osdface_trainer.losses.discriminators import FeatureDiscriminator, PatchDiscriminator, shift_flip
from tests.tiny_training import save_random_backbones


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_backbones(tmp_path_factory.mktemp("weights"), "squeezenet")


def test_patch_discriminator_has_the_lineages_layout() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator()
    convolutions = [layer for layer in net.stack if isinstance(layer, nn.Conv2d)]
    shapes = [
        (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convolutions
    ]
    inner = [(64, 128, 4, 2, 1), (128, 256, 4, 2, 1), (256, 512, 4, 1, 1)]
    assert shapes == [(3, 64, 4, 2, 1), *inner, (512, 1, 4, 1, 1)]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net.stack) == 3
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_765_633  # no bias before BatchNorm
    assert convolutions[3].weight.std().item() == pytest.approx(0.02, rel=0.02)
    with torch.device("meta"):
        assert PatchDiscriminator()(torch.zeros(1, 3, 512, 512)).shape == (1, 1, 62, 62)


def test_spectral_patch_discriminator_is_normalised() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(width=8, norm="none", spectral=True)
    for _ in range(30):
        net(torch.randn(1, 3, 32, 32))  # the power iteration settles
    for layer in net.stack:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.05)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.stack)


def test_feature_discriminator_trains_its_heads_only(weights: Path) -> None:
    net = FeatureDiscriminator("squeezenet", weights)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    image.requires_grad_(True)
    logits = net(image)
    assert [tuple(x.shape) for x in logits] == [(2, 1, 29, 29), (2, 1, 14, 14), (2, 1, 7, 7), (2, 1, 3, 3)]
    assert all(x.dtype == torch.float32 for x in logits)
    discriminator_loss("hinge", logits, [-x for x in logits]).backward()
    names = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert names == {name for name, _ in net.named_parameters() if name.startswith("heads.")}
    assert names == {name for name, p in net.named_parameters() if p.requires_grad}
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(key.startswith("typical") for key in net.state_dict())


def test_typical_sizes_do_not_touch_the_global_seed(weights: Path) -> None:
    first = FeatureDiscriminator("squeezenet", weights).typical
    torch.manual_seed(123)
    torch.testing.assert_close(FeatureDiscriminator("squeezenet", weights).typical, first, rtol=0, atol=0)
    assert (first > 0).all()


def test_levels_can_be_chosen_and_are_checked(weights: Path) -> None:
    net = FeatureDiscriminator("squeezenet", weights, levels=(6, 2), width=16)
    assert len(net(torch.zeros(1, 3, 64, 64))) == 2
    assert net.features.channels == (256, 512)
    with pytest.raises(ConfigError, match="below 7"):
        FeatureDiscriminator("squeezenet", weights, levels=(7,))


def _striped(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real: noise with stripes; fake: the same noise without."""
    fake = torch.randn(count, 3, 48, 48).clamp(-2, 2) / 4
    return fake + 0.3 * torch.sin(torch.arange(48.0) * 1.5), fake


@pytest.mark.parametrize("kind", ["patch", "feature"])
def test_a_few_steps_tell_real_from_generated(weights: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "patch":
        net: nn.Module = PatchDiscriminator(width=16, norm="none", spectral=True)
    else:
        net = FeatureDiscriminator("squeezenet", weights, levels=(0,), width=16)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3, betas=(0.5, 0.9))
    for _ in range(12):
        real, fake = _striped(3)
        optimiser.zero_grad()
        loss = discriminator_loss("hinge", net(real), net(fake))
        loss.backward()
        optimiser.step()
    real, fake = _striped(8)
    with torch.no_grad():
        assert discriminator_loss("hinge", net(real), net(fake)) < 0.6
        assert generator_loss("hinge", net(real)) < generator_loss("hinge", net(fake))


def test_shift_flip_moves_pairs_together() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(16.0).view(1, 1, 1, 16).expand(32, 3, 16, 16).contiguous().requires_grad_(True)
    a, b = shift_flip(images, images.detach() + 100, generator=generator)
    torch.testing.assert_close(b - a.detach(), torch.full_like(b, 100))
    slopes = a.detach()[:, 0, 0, 3:13].diff(dim=1)
    assert set(slopes[:, 4].tolist()) == {1.0, -1.0}  # some mirrored, some not
    assert len({row[8].item() for row in a.detach()[:, 0, 0]}) > 3  # shifted by different amounts
    a.sum().backward()
    assert images.grad is not None
    assert images.grad.sum() == a.numel()
    again = shift_flip(images.detach(), generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, a.detach())


def test_shift_flip_with_no_shift_is_a_mirror_or_nothing() -> None:
    images = torch.rand(16, 3, 8, 8)
    moved = shift_flip(images, max_shift=0.0)[0]
    for before, after in zip(images, moved, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))

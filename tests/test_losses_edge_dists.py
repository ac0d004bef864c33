"""EA-DISTS against torchmetrics' DISTS and a Sobel filter written with numpy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from osdface_core.errors import CheckpointError, ConfigError
from osdface_trainer.losses.edge_dists import EdgeAwareDists, StructureTexture, sobel_magnitude
from osdface_trainer.losses.features import BACKBONES, load_features
from osdface_trainer.losses.perceptual import PerceptualLoss
from tests.tiny_training import save_random_backbones


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_backbones(tmp_path_factory.mktemp("weights"), "vgg16", "squeezenet")


def _pictures(count: int = 2, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, 3, size + 4, size + 4, generator=generator)
    target = nn.functional.avg_pool2d(noise, 5, 1) * 4 - 2
    return target + 0.2 * torch.randn(target.shape, generator=generator), target  # beyond [-1, 1] at places


def test_sobel_equals_a_loop() -> None:
    image = torch.rand(1, 3, 7, 9)
    grey = np.pad(image[0].mean(0).numpy().astype(np.float64), 1)
    expected = np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            window = grey[y : y + 3, x : x + 3]
            gx = (window[:, 2] - window[:, 0]) @ [1, 2, 1]
            gy = [1, 2, 1] @ (window[2] - window[0])
            expected[y, x] = (gx**2 + gy**2 + 1e-6) ** 0.5
    found = sobel_magnitude(image)
    assert found.shape == (1, 1, 7, 9)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-4)


def test_vgg16_is_torchmetrics_dists(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dists = pytest.importorskip("torchmetrics.functional.image.dists")
    monkeypatch.setattr(dists, "vgg16", lambda **_: SimpleNamespace(features=load_features("vgg16", weights)))
    a, b = _pictures()
    ours = EdgeAwareDists("vgg16", weights)
    unit_a, unit_b = (a + 1) / 2, (b + 1) / 2
    plain = dists.deep_image_structure_and_texture_similarity(unit_a, unit_b)
    torch.testing.assert_close(ours.distance(unit_a, unit_b), plain.detach(), rtol=1e-4, atol=1e-5)
    edges = [sobel_magnitude(x).repeat(1, 3, 1, 1) for x in (unit_a, unit_b)]
    both = (plain + dists.deep_image_structure_and_texture_similarity(*edges)).detach()
    torch.testing.assert_close(ours.per_image(a, b), both, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours(a, b), both.mean(), rtol=1e-4, atol=2e-5)


def test_lpips_takes_the_place_of_dists(weights: Path) -> None:
    lpips, (a, b) = PerceptualLoss("vgg16", weights), _pictures()
    edges = [2 * sobel_magnitude((x + 1) / 2).repeat(1, 3, 1, 1) - 1 for x in (a, b)]
    expected = lpips.per_image(a, b) + lpips.per_image(*edges)
    a.requires_grad_(True)
    found = EdgeAwareDists("vgg16", weights, "lpips")(a, b)
    torch.testing.assert_close(found.detach(), expected.mean(), rtol=1e-4, atol=1e-5)
    found.backward()
    assert a.grad is not None and a.grad.abs().sum() > 0


def test_published_weights_sum_to_one_and_are_not_trained(weights: Path) -> None:
    distance = StructureTexture("vgg16", weights)
    assert distance.alpha.shape == distance.beta.shape == (1475,)
    torch.testing.assert_close(distance.alpha.sum() + distance.beta.sum(), torch.tensor(1.0))
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not {"alpha", "beta"} & {name for name, _ in distance.named_parameters()}


def test_squeezenet_form_is_the_mean_over_levels(weights: Path) -> None:
    """The same formula, computed with numpy statistics per channel."""
    loss = EdgeAwareDists("squeezenet", weights)
    a, b = ((x + 1) / 2 for x in _pictures(1))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    levels = [(a, b)]
    x, y = (a - mean) / std, (b - mean) / std
    for index, layer in enumerate(load_features("squeezenet", weights)):
        x, y = layer(x), layer(y)
        if index in BACKBONES["squeezenet"].taps:
            levels.append((x, y))
    total = 0.0
    for p, q in levels:
        p, q = (v[0].flatten(1).double().numpy() for v in (p, q))
        mp, mq = p.mean(1), q.mean(1)
        covariance = ((p - mp[:, None]) * (q - mq[:, None])).mean(1)
        texture = (2 * mp * mq + 1e-6) / (mp**2 + mq**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (p.var(1) + q.var(1) + 1e-6)
        total += (texture.mean() + structure.mean()) / 2 / len(levels)
    torch.testing.assert_close(loss.distance(a, b), torch.tensor([1 - total]).float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backbone", ["vgg16", "squeezenet"])
def test_gradient_reaches_the_restored_image_only_even_out_of_range(weights: Path, backbone: str) -> None:
    loss = EdgeAwareDists(backbone, weights)
    a, b = _pictures()
    a = (a * 3).requires_grad_(True)  # mostly outside [-1, 1], where a clamp would give no gradient
    loss(a, b).backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert (a.grad[a.detach().abs() > 1] != 0).float().mean() > 0.9
    assert b.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.parametrize("backbone", ["vgg16", "squeezenet"])
def test_equal_and_flat_images(weights: Path, backbone: str) -> None:
    loss = EdgeAwareDists(backbone, weights)
    _, b = _pictures()
    torch.testing.assert_close(loss.per_image(b, b.clone()), torch.zeros(2), atol=2e-5, rtol=0)
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    loss(flat, torch.zeros(1, 3, 64, 64)).backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_stays_float32_under_autocast(weights: Path) -> None:
    loss = EdgeAwareDists("squeezenet", weights)
    a, b = _pictures()
    expected = loss.per_image(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss.per_image(a, b), expected)


def test_missing_weights_and_wrong_backbone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vgg16-397923af\.pth.*torchvision"):
        EdgeAwareDists("vgg16", tmp_path)
    with pytest.raises(ConfigError, match="fitted on vgg16"):
        EdgeAwareDists("vgg19", tmp_path)

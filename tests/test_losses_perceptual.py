"""Perceptual losses against torchmetrics' LPIPS and plain formulas."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from osdface_core.errors import CheckpointError, ConfigError
from osdface_trainer.losses.features import BACKBONES, FrozenFeatures
from osdface_trainer.losses.perceptual import PerceptualLoss, lpips_weights
from tests.tiny_training import save_random_backbones


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_backbones(tmp_path_factory.mktemp("weights"), "vgg16", "squeezenet", "squeezenet1_1")


def _pictures(count: int = 2, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(-1, 1), target


@pytest.mark.parametrize(("backbone", "net"), [("vgg16", "vgg"), ("squeezenet1_1", "squeeze")])
def test_is_lpips_where_its_weights_exist(
    weights: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, net: str
) -> None:
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    ours = PerceptualLoss(backbone, weights)
    features = FrozenFeatures(backbone, weights).features
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: features)
    theirs = lpips._LPIPS(pretrained=True, net=net)
    a, b = _pictures()
    torch.testing.assert_close(ours.per_image(a, b), theirs(a, b).flatten(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours(a, b), theirs(a, b).mean(), rtol=1e-4, atol=1e-6)


def test_squeezenet_1_0_counts_channels_and_levels_alike(weights: Path) -> None:
    assert lpips_weights("squeezenet") is None
    loss = PerceptualLoss("squeezenet", weights)
    a, b = _pictures()
    expected = torch.zeros(2)
    for maps_a, maps_b in zip(loss.features(a), loss.features(b), strict=True):
        cosine = torch.cosine_similarity(maps_a.double(), maps_b.double(), dim=1)
        expected += (2 - 2 * cosine).mean((1, 2)).float() / 7  # |â − b̂|² of unit vectors
    torch.testing.assert_close(loss.per_image(a, b), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.per_image(a, a), torch.zeros(2))


def test_plain_distances(weights: Path) -> None:
    a, b = _pictures()
    maps = list(zip(*(FrozenFeatures("squeezenet", weights)(x) for x in (a, b)), strict=True))
    l1 = torch.stack([(x - y).abs().mean() for x, y in maps]).mean()
    mse = torch.stack([((x - y) ** 2).mean() for x, y in maps]).mean()
    torch.testing.assert_close(PerceptualLoss("squeezenet", weights, "l1")(a, b), l1, rtol=1e-4, atol=0)
    torch.testing.assert_close(PerceptualLoss("squeezenet", weights, "mse")(a, b), mse, rtol=1e-4, atol=0)


def test_features_are_torchvisions_on_imagenet_input(weights: Path) -> None:
    features = FrozenFeatures("vgg16", weights, taps=(3, 15))
    image, _ = _pictures(1, 48)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x = torchvision.transforms.functional.normalize((image + 1) / 2, mean, std)
    for tap, found in zip((3, 15), features(image), strict=True):
        expected = x
        for layer in list(features.features)[: tap + 1]:
            expected = layer(expected)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert found.min() == 0  # after the ReLU
    assert features.channels == (64, 256)


def test_gradients_reach_the_restored_image_only(weights: Path) -> None:
    loss = PerceptualLoss("squeezenet", weights)
    loss.train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    a, b = _pictures()
    a.requires_grad_(True)
    loss(a, b).backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert all((a.grad[i].abs().amax((1, 2)) > 0).all() for i in range(2))
    assert b.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_flat_images_and_odd_sizes_stay_finite(weights: Path) -> None:
    loss = PerceptualLoss("squeezenet", weights)
    flat = torch.zeros(1, 3, 77, 53, requires_grad=True)
    loss(flat, torch.zeros(1, 3, 77, 53)).backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_autocast_runs_features_low_and_the_mean_in_float32(weights: Path) -> None:
    loss = PerceptualLoss("squeezenet", weights)
    a, b = _pictures()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss.features(a)[-1].dtype == torch.bfloat16
        value = loss(a, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(a, b), rtol=0.03, atol=0)


def test_missing_and_wrong_weights_stop_in_one_line(weights: Path, tmp_path: Path) -> None:
    expected = r"vgg19-dcbb9e9d\.pth.*torchvision: https://download\.pytorch\.org"
    with pytest.raises(CheckpointError, match=expected) as error:
        PerceptualLoss("vgg19", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="does not hold squeezenet1_1"):
        PerceptualLoss("squeezenet1_1", weights / BACKBONES["squeezenet"].file)
    with pytest.raises(ConfigError, match="expected one of vgg16"):
        PerceptualLoss("resnet", tmp_path)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_taps_end_on_an_activation(backbone: str) -> None:
    spec = BACKBONES[backbone]
    with torch.device("meta"):
        layers = getattr(torchvision.models, spec.builder)(weights=None).features
        x, channels = torch.zeros(1, 3, 64, 64), []
        for index, layer in enumerate(layers):
            x = layer(x)
            if index in spec.taps:
                assert type(layer).__name__ in ("ReLU", "Fire")
                channels.append(x.shape[1])
    assert tuple(channels) == spec.channels


@pytest.mark.shared
def test_published_squeezenet_ranks_blur_and_noise(shared: Path) -> None:
    """On a real face the distance grows with the damage."""
    import numpy as np
    from PIL import Image

    loss = PerceptualLoss("squeezenet", shared / "weights" / "squeezenet1_0_deepcompressed_fp16.pth")
    face = sorted((shared / "faces" / "val").iterdir())[0]
    image = torch.from_numpy(np.array(Image.open(face).convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    distances = []
    for factor in (1, 2, 4, 8, 16):
        small = nn.functional.interpolate(image, scale_factor=1 / factor, mode="area")
        back = nn.functional.interpolate(small, size=image.shape[-2:], mode="bilinear")
        distances.append(loss(back, image).item())
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[-1] > 0.3

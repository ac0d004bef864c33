"""Pixel losses, the low-frequency colour loss and the loss of fine detail."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from osdface_trainer.losses.reconstruction import detail_loss, l1, low_frequency_loss, mse, relative_l1


def test_pixel_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 3, 8, 8).unbind(0)
    d = (a - b).double().numpy()
    assert mse(a, b).item() == pytest.approx((d**2).mean(), rel=1e-5)
    assert l1(a, b).item() == pytest.approx(np.abs(d).mean(), rel=1e-5)
    assert mse(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_relative_l1_is_a_share_of_each_inputs_own() -> None:
    target = torch.zeros(3, 3, 16, 16)
    degraded = torch.stack([torch.full((3, 16, 16), value) for value in (0.4, 0.1, 0.001)])
    restored = torch.stack([torch.full((3, 16, 16), value) for value in (0.2, 0.09, 0.015)])
    shares = (0.2 / 0.4, 0.09 / 0.1, 0.015 / 0.03)  # the last input is nearer than the least that counts
    assert relative_l1(restored, target, degraded).item() == pytest.approx(sum(shares) / 3)


@pytest.mark.parametrize("sigma", [3.0, 8.0])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    """Below 4 px to the last digits; above, at a quarter of the size, as far as smooth pictures tell."""
    ndimage = pytest.importorskip("scipy.ndimage")
    torch.manual_seed(0)
    a, b = (F.interpolate(torch.randn(1, 3, 12, 12), size=128, mode="bicubic") for _ in range(2))
    planes = (a - b)[0].double().numpy()
    blurred = [ndimage.gaussian_filter(plane, sigma, mode="mirror", truncate=3.0) for plane in planes]
    expected = float(np.abs(blurred).mean())
    assert low_frequency_loss(a, b, sigma).item() == pytest.approx(expected, rel=1e-4 if sigma < 4 else 0.03)


def test_colour_loss_sees_colour_but_not_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1, size=256, mode="bicubic")
    shift = torch.tensor([0.06, -0.05, -0.06]).view(1, 3, 1, 1)
    assert low_frequency_loss(image + shift, image).item() == pytest.approx(0.17 / 3, rel=1e-4)
    noise = 0.2 * torch.randn(image.shape, generator=generator)
    assert l1(image + noise, image) > 0.15
    assert low_frequency_loss(image + noise, image) < 0.02


def test_detail_loss_is_its_formula() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))

    def residual(image: torch.Tensor) -> np.ndarray:
        grey = np.tensordot([0.299, 0.587, 0.114], image[0].double().numpy(), 1)
        return grey - ndimage.gaussian_filter(grey, 2.0, mode="mirror", truncate=3.0)

    def amplitudes(plane: np.ndarray) -> np.ndarray:
        squares = [plane[y : y + 16, x : x + 16] ** 2 for y in (0, 8, 16) for x in (0, 8, 16)]
        return np.sqrt(np.mean(squares, axis=(1, 2)) + 1e-5)

    ours, theirs = residual(a), residual(b)
    mean_cell = (ours - theirs).reshape(4, 8, 4, 8).mean((0, 2))
    expected = np.abs(amplitudes(ours) - amplitudes(theirs)).mean() + np.abs(mean_cell).mean()
    assert detail_loss(a, b).item() == pytest.approx(expected, rel=1e-3)


def test_detail_loss_asks_how_much_and_not_where() -> None:
    generator = torch.Generator().manual_seed(0)
    texture, other = (0.2 * torch.randn(1, 3, 128, 128, generator=generator) for _ in range(2))
    flat, grid = torch.zeros_like(texture), other[..., :8, :8].repeat(1, 1, 16, 16)
    missing = detail_loss(flat, texture)
    assert detail_loss(other, texture) < 0.25 * missing
    assert l1(other, texture) > l1(flat, texture)
    assert detail_loss(grid, texture) > 3 * detail_loss(other, texture)


def test_detail_loss_learns_after_a_validation() -> None:
    """What inference mode has computed cannot be kept for a backward pass."""
    restored, target = torch.randn(2, 1, 3, 24, 24).unbind(0)
    with torch.inference_mode():
        detail_loss(restored, target)
    detail_loss(restored.requires_grad_(), target).backward()
    assert restored.grad is not None and restored.grad.abs().sum() > 0

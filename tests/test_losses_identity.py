"""The identity loss (Eq. 13)."""

from pathlib import Path

import pytest
import torch

from osdface_core.models.identity import face_crop_112, load_identity
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_trainer.losses.identity import IdentityLoss


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilefacenet.pt"
    torch.manual_seed(0)
    torch.save(MobileFaceNet().state_dict(), path)
    return path


def test_is_one_minus_the_cosine_of_unit_faces(weights: Path) -> None:
    loss = IdentityLoss(load_identity(weights))
    a, b = torch.rand(2, 2, 3, 128, 128).unbind(0)
    net = MobileFaceNet().eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sums = []
    for faces in (a, b):
        x = (face_crop_112(faces) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        sums.append(net(x) + net(x.flip(-1)))
    expected = 1 - torch.cosine_similarity(sums[0], sums[1])
    torch.testing.assert_close(loss.per_image(a * 2 - 1, b * 2 - 1), expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(loss(a * 2 - 1, b * 2 - 1), expected.mean(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(loss(a * 2 - 1, a * 2 - 1), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_gradient_reaches_the_restored_face_only(weights: Path) -> None:
    loss = IdentityLoss(load_identity(weights)).train()
    restored, target = (torch.rand(1, 3, 128, 128, requires_grad=True) for _ in range(2))
    loss(restored, target).backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.modules())
    assert restored.grad[..., :14, :].abs().sum() == 0  # above the fixed crop
    assert restored.grad[..., 60:70, 60:70].abs().sum() > 0

"""The identity network: layout, crop, and (with the reference data) that it tells people apart."""

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from osdface_core.errors import CheckpointError
from osdface_core.models.identity import face_crop_112, load_identity, similarity
from osdface_core.models.identity_nets import IResNet, MobileFaceNet


@pytest.fixture(scope="module")
def mobilefacenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilefacenet.pt"
    torch.manual_seed(0)
    torch.save(MobileFaceNet().state_dict(), path)
    return path


def test_mobilefacenet_has_the_published_layout() -> None:
    state = MobileFaceNet().state_dict()
    assert len(state) == 307
    assert state["features.12.conv.0.0.weight"].shape == (512, 128, 1, 1)
    assert state["gdconv.depthwise.weight"].shape == (512, 1, 7, 7)
    assert state["conv3.bias"].shape == (128,)


def test_embedding_has_length_one_and_ignores_mirroring(mobilefacenet: Path) -> None:
    net = load_identity(mobilefacenet)
    crops = torch.rand(2, 3, 112, 112)
    vectors = net(crops)
    assert vectors.shape == (2, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors, net(crops.flip(-1)), atol=1e-5, rtol=0)


def test_network_is_frozen_in_eval_mode_and_passes_gradients(mobilefacenet: Path) -> None:
    net = load_identity(mobilefacenet).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    faces = torch.rand(2, 3, 128, 128, requires_grad=True)
    similarity(net, faces, torch.rand(2, 3, 128, 128)).sum().backward()
    assert faces.grad is not None
    assert faces.grad.abs().sum() > 0
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_autocast_does_not_touch_the_cosine(mobilefacenet: Path) -> None:
    net, faces = load_identity(mobilefacenet), torch.rand(2, 3, 64, 64)
    plain = similarity(net, faces, faces.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(similarity(net, faces, faces.flip(0)), plain)


def test_crop_maps_the_ffhq_template_to_the_arcface_template() -> None:
    """A bright dot at each FFHQ-512 landmark lands on ArcFace's landmark, within the fit's 2.5 px."""
    ffhq = [(192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)]
    arcface = [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
    grid = torch.arange(512.0)
    grid112 = torch.arange(112.0)
    for (x, y), (u, v) in zip(ffhq, arcface, strict=True):
        dot = torch.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / 50)
        crop = face_crop_112(dot.expand(1, 3, 512, 512))[0, 0]
        total = crop.sum()
        found = ((crop * grid112[None]).sum() / total, (crop * grid112[:, None]).sum() / total)
        assert abs(found[0] - u) <= 2.5
        assert abs(found[1] - v) <= 2.5
        torch.testing.assert_close(found[0], torch.tensor(0.29209 * x - 18.93), atol=0.02, rtol=0)
        torch.testing.assert_close(found[1], torch.tensor(0.29209 * y - 17.86), atol=0.02, rtol=0)


def test_crop_is_the_antialiased_resampling_of_torch() -> None:
    """On a window with whole edges the same weights are F.interpolate's, except at the window's border."""
    torch.manual_seed(0)
    image = F.avg_pool2d(torch.rand(1, 3, 560, 560), 49, stride=1)  # 512, smooth
    crop = face_crop_112(image)
    side, left, top = 112 / 0.29209, (18.93 - 0.5) / 0.29209 + 0.5, (17.86 - 0.5) / 0.29209 + 0.5
    window = image[..., round(top) : round(top + side), round(left) : round(left + side)]
    reference = F.interpolate(window, (112, 112), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(crop[..., 4:-4, 4:-4], reference[..., 4:-4, 4:-4], atol=2e-3, rtol=0)


def test_crop_does_not_depend_on_the_size_of_the_face() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 1024), torch.linspace(0, 1, 1024), indexing="ij")
    large = torch.stack([x, y, (x * 9).sin() * (y * 7).cos() / 2 + 0.5])[None]
    crop = face_crop_112(F.avg_pool2d(large, 2))
    torch.testing.assert_close(face_crop_112(large), crop, atol=2e-3, rtol=0)
    torch.testing.assert_close(face_crop_112(F.avg_pool2d(large, 4)), crop, atol=2e-3, rtol=0)
    flat = face_crop_112(torch.full((1, 3, 96, 80), 0.25))
    torch.testing.assert_close(flat, torch.full((1, 3, 112, 112), 0.25))


def test_crop_after_inference_mode_still_passes_gradients() -> None:
    with torch.inference_mode():
        face_crop_112(torch.rand(1, 3, 90, 94))
    faces = torch.rand(1, 3, 90, 94, requires_grad=True)
    face_crop_112(faces).sum().backward()
    assert faces.grad is not None


def test_insightface_layout_loads_by_its_keys(tmp_path: Path) -> None:
    net = IResNet((1, 2, 1, 1))
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    loaded = load_identity(tmp_path / "backbone.pth")
    crops = torch.rand(1, 3, 112, 112)
    net.eval()
    both = net(torch.cat([crops, crops.flip(-1)]) * 2 - 1)
    torch.testing.assert_close(loaded(crops), F.normalize(both[:1] + both[1:], dim=1))


def test_iresnet50_has_the_published_size() -> None:
    with torch.device("meta"):
        net = IResNet((3, 4, 14, 3))
    names = net.state_dict()
    assert sum(parameter.numel() for parameter in net.parameters()) == 43_590_848
    assert {"layer3.13.prelu.weight", "layer2.0.downsample.1.running_var", "features.bias"} <= set(names)


def test_facexlib_layout_loads_by_its_keys(tmp_path: Path) -> None:
    arch = pytest.importorskip("facexlib.recognition.arcface_arch")
    net = arch.Backbone(50, 0.6, "ir_se").eval()
    torch.save(net.state_dict(), tmp_path / "recognition_arcface_ir_se50.pth")
    loaded = load_identity(tmp_path / "recognition_arcface_ir_se50.pth")
    crops = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        expected = F.normalize(net(crops * 2 - 1) + net(crops.flip(-1) * 2 - 1), dim=1)
    torch.testing.assert_close(loaded(crops), expected)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mobilefacenet\.pt.*foamliu/MobileFaceNet \(Apache-2.0\)"):
        load_identity(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no known face recognition network"):
        load_identity(tmp_path / "other.pt")


def _read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255


@pytest.mark.shared
def test_published_weights_tell_people_apart(shared: Path) -> None:
    """Pairs from one studio (neutral and smiling): no two people come as close as one does to himself."""
    net = load_identity(shared / "weights")
    with (shared / "faces" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source_repo"] == "debruine/webmorphR.stim"]
    people: dict[str, list[str]] = {}
    for row in rows:
        people.setdefault(row["identity"], []).append(row["file"])
    pairs = [files[:2] for files in people.values() if len(files) > 1][:8]
    assert len(pairs) == 8
    with torch.no_grad():
        faces = [[_read(shared / "faces" / pair[side]) for pair in pairs] for side in (0, 1)]
        first, second = (torch.cat([net(face_crop_112(face)) for face in side]) for side in faces)
    cosines = first @ second.T
    same = cosines.diagonal()
    different = torch.stack([cosines[i, j] for i, j in combinations(range(8), 2)])
    assert same.min() > 0.6
    assert different.max() < 0.5

"""Metric definitions against independent formulas on fixed arrays, and networks on random weights."""

import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage
from torch import Tensor

from osdface_core.errors import CheckpointError, ConfigError
from osdface_trainer.losses.features import BACKBONES
from osdface_trainer.metrics import METRICS, Metric, WeightFinder, distribution, load_metrics
from osdface_trainer.metrics.arcface_resnet import ArcFaceResNet18
from osdface_trainer.metrics.fidelity import COLOUR_SHIFT, DETAIL, PSNR, SSIM
from osdface_trainer.metrics.identity import ARCFACE, DEG, angle_degrees, arcface_degrees, face_identity
from osdface_trainer.metrics.landmarks import (
    AWING,
    MTCNN,
    awing_landmarks,
    heatmap_points,
    mean_distance,
)

CPU = torch.device("cpu")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two smooth pictures (2,3,48,56) with different noise; fixed."""
    rng = np.random.default_rng(5)
    clean = ndimage.gaussian_filter(rng.random((2, 3, 48, 56)), (0, 0, 3, 3))
    clean = (clean - clean.min()) / (clean.max() - clean.min())
    noisy = np.clip(clean + 0.05 * rng.standard_normal(clean.shape), 0, 1)
    return torch.from_numpy(noisy).float(), torch.from_numpy(clean).float()


def compare(measure: Metric, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
    values = torch.atleast_2d(measure.compare(measure.features(image), measure.features(reference)))
    return {column.name: row for column, row in zip(measure.columns, values, strict=True)}


@pytest.fixture(autouse=True)
def no_other_weights(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Only what a test provides is found, whatever caches this machine has."""
    monkeypatch.delenv("OSDFACE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_psnr_is_ten_log_of_the_mean_squared_error(pair) -> None:
    image, reference = pair
    error = ((image.double() - reference.double()) ** 2).numpy()
    expected = [10 * math.log10(1 / error[i].mean()) for i in range(2)]
    assert compare(PSNR, image, reference)["psnr"].tolist() == pytest.approx(expected, abs=1e-4)
    assert compare(PSNR, image, image)["psnr"].tolist() == [100.0, 100.0]


def test_ssim_equals_scikit_image(pair) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    image, reference = pair
    expected = [
        skimage.structural_similarity(
            image[i].numpy(), reference[i].numpy(), data_range=1.0, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for i in range(2)
    ]  # fmt: skip
    assert compare(SSIM, image, reference)["ssim"].tolist() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_one_image_keeps_its_batch_dimension(pair) -> None:
    assert compare(SSIM, pair[0][:1], pair[1][:1])["ssim"].shape == (1,)


def test_high_frequency_energy_is_the_energy_of_luma_minus_its_blur(pair) -> None:
    image, reference = pair

    def energy(one: Tensor) -> float:
        red, green, blue = one.double().numpy()
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return float(np.mean((luma - ndimage.gaussian_filter(luma, 2, mode="mirror", truncate=3.0)) ** 2))

    expected = [energy(image[i]) / energy(reference[i]) for i in range(2)]
    found = compare(DETAIL, image, reference)["hf_energy"].tolist()
    assert found == pytest.approx(expected, rel=1e-3)
    assert min(found) > 1.2  # noise adds energy


def test_high_frequency_energy_of_a_flat_reference_has_no_value() -> None:
    flat = torch.zeros(1, 3, 32, 32)
    assert torch.isnan(compare(DETAIL, torch.rand(1, 3, 32, 32), flat)["hf_energy"]).all()


def test_colour_shift_is_in_eight_bit_levels() -> None:
    reference = torch.full((1, 3, 8, 8), 0.5)
    image = reference + torch.tensor([3.0, -6.0, 0.0]).view(1, 3, 1, 1) / 255
    assert compare(COLOUR_SHIFT, image, reference)["colour_shift"].item() == pytest.approx(3.0, abs=1e-3)


def save_random(folder, file: str, module: torch.nn.Module, prefix: str = "") -> None:
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, folder / file)


@pytest.mark.parametrize(
    ("backbone", "net", "metric"),
    [("vgg16", "vgg", "lpips_vgg"), ("alexnet", "alex", "lpips_alex")],
)
def test_lpips_equals_torchmetrics_on_the_same_weights(backbone, net, metric, pair, tmp_path) -> None:
    import torchvision
    from torchmetrics.functional.image import lpips

    torch.manual_seed(3)
    with torch.device("meta"):
        builder = getattr(torchvision.models, BACKBONES[backbone].builder)(weights=None)
    features = builder.features.to_empty(device="cpu")
    for parameter in features.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_random(tmp_path, BACKBONES[backbone].file, features, "features.")
    peer = lpips._LPIPS(net=net, pnet_rand=True)
    own = {f"slice{k}.{name}": value for k, name, value in _sliced(peer.net, features)}
    peer.net.load_state_dict(own)
    image, reference = (torch.nn.functional.interpolate(one, (96, 96)) for one in pair)
    expected = peer(2 * image - 1, 2 * reference - 1).flatten()
    found = next(
        iter(
            compare(load_metrics([metric], WeightFinder(tmp_path), CPU).metrics[0], image, reference).values()
        )
    )
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def _sliced(net: torch.nn.Module, features: torch.nn.Module):
    """Names of LPIPS' slices for the parameters of torchvision's `features`."""
    for name in net.state_dict():
        piece, index, kind = name.split(".")
        yield piece.removeprefix("slice"), f"{index}.{kind}", features.state_dict()[f"{index}.{kind}"]


def test_squeezenet_distance_is_the_mean_over_levels_of_unit_feature_differences(pair, shared) -> None:
    measure = load_metrics(["perceptual"], WeightFinder(shared / "weights"), CPU).metrics[0]
    image, reference = pair
    maps = zip(measure.features(image), measure.features(reference), strict=True)
    levels = []
    for a, b in ((one.double().numpy(), two.double().numpy()) for one, two in maps):
        a, b = (m / np.sqrt((m**2).sum(axis=1, keepdims=True) + 1e-8) for m in (a, b))
        levels.append(((a - b) ** 2).sum(axis=1).mean(axis=(1, 2)))
    assert len(levels) == 7
    found = compare(measure, image, reference)["perceptual"]
    assert found.tolist() == pytest.approx(np.mean(levels, axis=0).tolist(), rel=1e-3)
    assert compare(measure, image, image)["perceptual"].tolist() == [0.0, 0.0]


def test_angle_between_embeddings() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1e-3]])
    b = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 0.0]])
    assert angle_degrees(a, b).tolist() == pytest.approx([0.0, 90.0, 180.0, math.degrees(1e-3)], abs=1e-6)


def test_identity_falls_with_blur_and_keeps_to_itself(shared) -> None:
    measure = face_identity(WeightFinder(shared / "weights"), CPU)
    face = _face(shared)
    same, soft, blind = face, _soften(face, 8), _soften(face, 32)
    values = compare(measure, torch.cat([same, soft, blind]), face.expand(3, -1, -1, -1))
    cosine, degrees = values["identity_cos"].tolist(), values["identity_deg"].tolist()
    assert cosine[0] == pytest.approx(1.0, abs=1e-6)
    assert cosine[0] > cosine[1] > cosine[2]
    assert degrees == pytest.approx([math.degrees(math.acos(min(c, 1.0))) for c in cosine], abs=1e-3)


def _soften(images: Tensor, factor: int) -> Tensor:
    small = torch.nn.functional.avg_pool2d(images, factor)
    return torch.nn.functional.interpolate(small, images.shape[2:], mode="bilinear")


def _face(shared) -> Tensor:
    from PIL import Image

    file = sorted((shared / "faces" / "val").iterdir())[0]
    pixels = np.asarray(Image.open(file).convert("RGB")).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_deg_loads_weights_with_data_parallel_names_and_sees_opencv_grey(tmp_path) -> None:
    torch.manual_seed(0)
    save_random(tmp_path, ARCFACE.names[0], ArcFaceResNet18(), "module.")
    measure = arcface_degrees(WeightFinder(tmp_path), CPU)
    seen = []
    measure.features.args[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 256, (2, 3, 256, 256), generator=torch.manual_seed(1)).float() / 255
    features = measure.features(image)
    assert features.shape == (2, 512)
    assert measure.compare(features, features).tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    cv2 = pytest.importorskip("cv2")
    bgr = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1].copy()
    expected = cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), (128, 128), interpolation=cv2.INTER_LINEAR)
    gap = np.abs(seen[0][0, 0].numpy() * 127.5 + 127.5 - expected.astype(np.float64))
    assert gap.max() <= 1.01
    assert gap.mean() < 0.2  # ties of the two roundings


def test_deg_leaves_nearly_identical_pairs_out_of_the_mean() -> None:
    from osdface_trainer.evaluation.scores import Row, summarise

    rows = [Row(str(i), "", {"deg": value}) for i, value in enumerate((0.2, 40.0, 60.0))]
    line = summarise("", None, rows, [DEG], 0).lines[0]
    assert (line.restored.mean, line.restored.n) == (50.0, 2)


def test_landmark_distance_is_a_mean_of_euclidean_distances() -> None:
    points = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert mean_distance(points, torch.zeros(1, 2, 2)).tolist() == [2.5]


def test_awing_landmarks_run_on_weights_of_the_right_shape(tmp_path) -> None:
    facexlib = pytest.importorskip("facexlib.alignment")
    torch.manual_seed(0)
    net = facexlib.FAN(num_modules=4, num_landmarks=98, device="cpu")
    torch.save({"state_dict": net.state_dict()}, tmp_path / AWING.names[0])
    measure = awing_landmarks(WeightFinder(tmp_path), CPU)
    points = measure.features(torch.rand(1, 3, 512, 512))
    assert points.shape == (1, 98, 2)
    assert points.min() >= 0 and points.max() <= 512  # pixels of the given picture
    assert measure.compare(points, points).tolist() == [0.0]


def test_heatmap_peaks_move_a_quarter_pixel_to_the_higher_neighbour() -> None:
    maps = torch.zeros(1, 3, 64, 64)
    maps[0, 0, 10, 20], maps[0, 0, 10, 21], maps[0, 0, 9, 20] = 1.0, 0.5, 0.3
    maps[0, 1, 40, 5] = 1.0
    maps[0, 2, 0, 63], maps[0, 2, 1, 63], maps[0, 2, 0, 62] = 1.0, 0.5, 0.5
    assert heatmap_points(maps)[0].tolist() == [[20.75, 10.25], [5.5, 40.5], [63.5, 0.5]]


def test_mtcnn_landmarks_follow_a_shifted_face(shared) -> None:
    face = _face(shared)
    measure = MTCNN
    moved = torch.roll(face, (0, 6), dims=(2, 3))
    value = compare(measure, moved, face)["lmd_mtcnn5"].item()
    assert value == pytest.approx(6.0, abs=2.0)
    assert torch.isnan(compare(measure, torch.zeros_like(face), face)["lmd_mtcnn5"]).all()


def test_frechet_distance_equals_the_formula_with_a_matrix_root() -> None:
    rng = np.random.default_rng(0)
    for n in (12, 400):  # fewer and more images than features
        a, b = rng.normal(size=(n, 16)), rng.normal(0.3, 1.4, size=(n + 5, 16))
        root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
            np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * np.real(root)
        )
        found = distribution.frechet(torch.from_numpy(a), *distribution.moments(torch.from_numpy(b)))
        assert found == pytest.approx(expected, rel=1e-4)
    same = torch.from_numpy(rng.normal(size=(50, 16)))
    assert distribution.frechet(same, *distribution.moments(same)) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(distribution.frechet(same[:1], *distribution.moments(same)))


class Passthrough(torch.nn.Module):
    """Stands where torchmetrics expects a feature network."""

    num_features = 12

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_frechet_distance_equals_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.manual_seed(2)
    a, b = torch.randn(60, 12, generator=generator), 0.5 + 2 * torch.randn(70, 12, generator=generator)
    peer = FrechetInceptionDistance(feature=Passthrough())
    peer.update(b, real=True)
    peer.update(a, real=False)
    assert distribution.frechet(a, *distribution.moments(b)) == pytest.approx(float(peer.compute()), rel=1e-4)


def test_kernel_distance_is_the_unbiased_polynomial_mmd() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 8)), rng.normal(0.5, 1, size=(40, 8))

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / 8 + 1) ** 3

    xx, yy, xy = kernel(a, a), kernel(b, b), kernel(a, b)
    n = 40
    expected = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * xy.mean()
    first, again = (
        distribution.kernel_distance(torch.from_numpy(a), torch.from_numpy(b), seed=4) for _ in "12"
    )
    assert first == again
    assert first == pytest.approx(
        expected, rel=0.15
    )  # the mean over half-size subsets estimates the same value
    assert math.isnan(distribution.kernel_distance(torch.from_numpy(a[:3]), torch.from_numpy(b)))


def test_fid_statistics_are_read_in_both_formats(tmp_path) -> None:
    mean, covariance = np.arange(4.0), np.eye(4)
    np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance)
    torch.save({"mean": mean, "cov": covariance}, tmp_path / "b.pth")
    torch.save({"mean": mean}, tmp_path / "c.pth")
    for name in ("a.npz", "b.pth"):
        found = distribution.read_moments(tmp_path / name)
        assert torch.equal(found[0], torch.from_numpy(mean)) and torch.equal(found[1], torch.eye(4).double())
    with pytest.raises(CheckpointError, match="holds no FID statistics"):
        distribution.read_moments(tmp_path / "c.pth")


def test_inception_distances_use_one_pass_and_name_their_mode(tmp_path) -> None:
    class Tiny(torch.nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            assert images.dtype == torch.uint8
            return (images.float().flatten(2).mean(2),)

    stored = distribution.moments(torch.randn(30, 3))
    measure = distribution.InceptionDistances(Tiny(), stored)
    a, b = measure.features(torch.rand(20, 3, 8, 8)), measure.features(torch.rand(20, 3, 8, 8) * 0.5)
    values = measure.compute(a, b)
    assert set(values) == {"fid", "kid", "fid_stats"} and values["fid"] > 0
    assert set(measure.compute(a, None)) == {"fid_stats"}
    assert "not comparable with clean-fid" in measure.mode


def test_inception_weights_of_another_network_are_refused(tmp_path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / distribution.INCEPTION.names[0])
    panel = load_metrics(["fid"], WeightFinder(tmp_path), CPU)
    assert panel.sets is None
    assert "does not fit Inception-v3" in panel.missing["fid"]


def test_missing_weights_are_named_with_file_and_source(tmp_path) -> None:
    panel = load_metrics(None, WeightFinder(tmp_path), CPU)
    for metric, file in {
        "perceptual": "squeezenet1_0-b66bff10.pth", "lpips_vgg": "vgg16-397923af.pth",
        "dists": "vgg16-397923af.pth",
        "lpips_alex": "alexnet-owt-7be5be79.pth", "identity": "mobilefacenet.pt", "deg": "resnet18_110.pth",
        "lmd": "alignment_WFLW_4HG.pth", "niqe": "niqe_pris_params.npz", "fid": "6726825d.pth",
    }.items():  # fmt: skip
        assert file in panel.missing[metric] and "from " in panel.missing[metric], metric
    assert {"psnr", "ssim", "hf_energy", "colour_shift"} <= {column.name for column in panel.columns}
    assert not {column.name for column in panel.columns} & set(panel.missing)


def test_unreadable_weights_do_not_end_the_evaluation(tmp_path) -> None:
    (tmp_path / "squeezenet1_0-b66bff10.pth").write_bytes(b"no weights")
    panel = load_metrics(["perceptual", "psnr"], WeightFinder(tmp_path), CPU)
    assert "cannot be read" in panel.missing["perceptual"]
    assert [column.name for column in panel.columns] == ["psnr"]


def test_weights_are_sought_in_the_given_folder_then_the_environment(tmp_path, monkeypatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (second / ARCFACE.names[0]).touch()
    monkeypatch.setenv("OSDFACE_WEIGHTS", str(second))
    assert WeightFinder(first).find(ARCFACE) == second / ARCFACE.names[0]
    (first / ARCFACE.names[0]).touch()
    assert WeightFinder(first).find(ARCFACE) == first / ARCFACE.names[0]


def test_an_unknown_metric_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="unknown metric 'lpip'"):
        load_metrics(["lpip"], WeightFinder(tmp_path), CPU)
    assert len(set(METRICS)) == len(METRICS)


def test_optional_scores_go_through_pyiqa_where_it_is_installed(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert "pip install pyiqa" in load_metrics(["musiq"], WeightFinder(tmp_path), CPU).missing["musiq"]
    stand_in = types.ModuleType("pyiqa")
    stand_in.__version__ = "9"  # type: ignore[attr-defined]
    stand_in.create_metric = lambda name, device: lambda images: images.mean((1, 2, 3))[:, None]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", stand_in)
    panel = load_metrics(["musiq"], WeightFinder(tmp_path), CPU)
    values = panel.score(None, {"x": torch.full((2, 3, 4, 4), 0.25)})
    assert values["x"]["musiq"] == pytest.approx([0.25, 0.25])


def test_panel_sends_the_reference_through_each_network_once(pair) -> None:
    seen: list[int] = []

    def count(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    panel = load_metrics([], WeightFinder(), CPU)
    panel.metrics.append(replace(PSNR, features=count))
    scores = panel.score(pair[1], {"a": pair[0], "b": pair[1]})
    assert len(seen) == 3
    assert scores["b"]["psnr"] == [100.0, 100.0] and scores["a"]["psnr"][0] < 40

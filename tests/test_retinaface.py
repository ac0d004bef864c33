"""RetinaFace: network, anchors and decoding against facexlib; weights found, fetched once, checked."""

import hashlib
import io
import urllib.error

import numpy as np
import pytest
import torch

from osdface_core.errors import DetectorError
from osdface_core.faces import detect, download, retinaface
from osdface_core.faces.detect import choose_detector, load_detector
from osdface_core.faces.retinaface_nets import VARIANTS, Network

CPU = torch.device("cpu")
RELEASE = retinaface.RELEASES["retinaface_mobile0.25"]


@pytest.mark.parametrize("size", [(64, 96), (65, 33), (8, 8)])
def test_anchors_equal_facexlibs(size):
    pytest.importorskip("facexlib")
    from facexlib.detection.retinaface import generate_config
    from facexlib.detection.retinaface_utils import PriorBox

    theirs = PriorBox(generate_config("mobile0.25"), image_size=size).forward()
    ours = retinaface.make_priors(*size, CPU) / torch.tensor([size[1], size[0]] * 2)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_decoding_equals_facexlibs():
    pytest.importorskip("facexlib")
    from facexlib.detection.retinaface_utils import decode, decode_landm

    priors = retinaface.make_priors(64, 64, CPU)
    shifts, points = torch.randn(len(priors), 4), torch.randn(len(priors), 10)
    boxes, _, marks = retinaface.decode(shifts, points, priors, torch.zeros(len(priors)))
    relative = priors / 64
    assert torch.allclose(boxes + 0.5, decode(shifts, relative, [0.1, 0.2]) * 64, atol=1e-2)
    assert torch.allclose(marks + 0.5, decode_landm(points, relative, [0.1, 0.2]) * 64, atol=1e-3)


@pytest.fixture
def random_weights(tmp_path):
    """A file of the released layout: every key begins with `module.`."""
    torch.manual_seed(0)
    state = Network("mobile0.25").state_dict()
    path = tmp_path / RELEASE.file
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    return path


def test_loads_the_released_layout_and_runs(random_weights):
    net = load_detector("retinaface_mobile0.25", random_weights.parent, CPU)
    rows = net(torch.rand(2, 3, 70, 50), 12)
    assert len(rows) == 2 and all(part.shape[1] == 15 for part in rows)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert isinstance(load_detector("auto", random_weights.parent, CPU), retinaface.RetinaFace)
    assert isinstance(
        detect(np.zeros((40, 40, 3), np.uint8), "auto", detector_dir=random_weights.parent), list
    )


def test_resnet50_is_built_and_named_weights_are_preferred(tmp_path):
    net = retinaface.RetinaFace(Network("resnet50"))
    assert len(net(torch.rand(1, 3, 64, 64), 12)) == 1
    for release in retinaface.RELEASES.values():
        (tmp_path / release.file).write_bytes(b"x")
    assert next(iter(retinaface.RELEASES)) == "retinaface_resnet50"
    assert retinaface.find_local("retinaface_resnet50", tmp_path) == tmp_path / "detection_Resnet50_Final.pth"


@pytest.mark.parametrize("damage", ["cut", "text", "other", "pickle"])
def test_damaged_weights_are_one_line(random_weights, damage):
    data = random_weights.read_bytes()
    if damage == "cut":
        random_weights.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        random_weights.write_bytes(b"<html>not found</html>")
    elif damage == "other":
        torch.save({"weight": torch.zeros(3)}, random_weights)
    else:
        torch.save({"run": print}, random_weights)  # anything but tensors is refused
    with pytest.raises(DetectorError) as error:
        retinaface.load("retinaface_mobile0.25", random_weights.parent, CPU)
    assert "\n" not in str(error.value) and str(random_weights) in str(error.value)


def answer(monkeypatch, result):
    """Let the network answer with bytes, or fail with an exception; count the calls."""
    calls = []

    def urlopen(url, timeout=None):
        calls.append(url)
        if isinstance(result, Exception):
            raise result
        return io.BytesIO(result)

    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
    return calls


def test_fetched_once_and_checked(monkeypatch, tmp_path):
    body = b"weights" * 1000
    url, sha256 = "https://github.com/somebody/files/file.pth", hashlib.sha256(body).hexdigest()
    calls = answer(monkeypatch, body)
    path = download.fetch(url, sha256, tmp_path / "new")
    assert path.read_bytes() == body and [p.name for p in path.parent.iterdir()] == ["file.pth"]
    assert calls == [url]
    answer(monkeypatch, body[:-1])
    with pytest.raises(DetectorError, match="damaged"):
        download.fetch(url, sha256, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_offline_and_full_disk_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))
    for error in (
        urllib.error.URLError("no route"),
        TimeoutError("timed out"),
        OSError(28, "No space left on device"),
    ):
        answer(monkeypatch, error)
        with pytest.raises(DetectorError, match="choose mtcnn") as caught:
            retinaface.load("retinaface_resnet50", None, CPU)
        assert "\n" not in str(caught.value) and "detection_Resnet50_Final.pth" in str(caught.value)
        assert list((tmp_path / "home").iterdir()) == []


def test_auto_never_fetches(monkeypatch, tmp_path):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    calls = answer(monkeypatch, OSError("offline"))
    load_detector("auto", tmp_path, CPU)
    assert calls == []


def test_the_detector_and_the_reason_are_named(monkeypatch, tmp_path, random_weights, caplog):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))
    empty = tmp_path / "empty"
    name, reason = choose_detector("auto", empty)
    assert name == "mtcnn" and str(empty) in reason and str(tmp_path / "home") in reason
    assert choose_detector("mtcnn", random_weights.parent) == ("mtcnn", "asked for")
    with caplog.at_level("INFO", logger="osdface_core"):
        for _ in range(2):
            load_detector("auto", random_weights.parent, CPU)
    assert caplog.messages == [f"face detector: retinaface_mobile0.25 (its weights are {random_weights})"]


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.filterwarnings("ignore")  # facexlib calls torchvision in an outdated way
def test_the_network_is_facexlibs(name):
    """The weight files' names and shapes, and the same numbers, with every statistic drawn at random."""
    theirs = pytest.importorskip("facexlib.detection.retinaface").RetinaFace(name, device="cpu")
    torch.manual_seed(0)
    state = {
        key: torch.rand_like(v) * 0.05 if v.is_floating_point() else v
        for key, v in theirs.state_dict().items()
    }
    state |= {key: value * 10 + 0.5 for key, value in state.items() if key.endswith("running_var")}
    theirs.load_state_dict(state)
    ours = Network(name).eval()
    ours.load_state_dict(state)
    image = torch.rand(2, 3, 75, 101) * 255 - 110  # odd sizes: the pyramid's levels do not double exactly
    with torch.inference_mode():
        for got, expected in zip(ours(image), theirs(image), strict=True):
            assert expected[..., -1].std() > 1e-3  # not a constant
            assert got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_real_weights_agree_with_facexlibs_own_detection(shared):
    from PIL import Image

    theirs = pytest.importorskip("facexlib.detection.retinaface").RetinaFace("mobile0.25", device="cpu")
    folder = shared / "weights"
    assert hashlib.sha256((folder / RELEASE.file).read_bytes()).hexdigest() == RELEASE.sha256
    net = retinaface.load("retinaface_mobile0.25", folder, CPU)
    theirs.requires_grad_(False).load_state_dict(net.network.state_dict())
    for path in sorted((shared / "faces/group").glob("*.jpg"))[-2:]:
        photo = np.array(Image.open(path).convert("RGB"))
        image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        bgr = image.flip(1) * 255 - torch.tensor(retinaface.MEAN_BGR).view(1, 3, 1, 1)
        with torch.inference_mode():
            assert all(map(torch.equal, net.network(bgr), theirs(bgr)))
        rows = theirs.detect_faces(photo[..., ::-1].astype(np.float32), conf_threshold=0.9)
        ours = net(image)[0]
        ours = ours[ours[:, 4] > 0.9]
        assert len(ours) == len(rows) >= 3
        assert np.abs(ours[:, :4] + 0.5 - rows[:, :4]).max() < 0.05
        assert np.abs(ours[:, 5:] + 0.5 - rows[:, 5:]).max() < 0.05

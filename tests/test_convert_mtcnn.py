"""The script that made MTCNN's weight file: layouts, refusals, and the file itself against the wheel."""

import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from osdface_core.faces.mtcnn import WEIGHTS, Mtcnn
from tests.tools import load_tool


@pytest.fixture(scope="module")
def script():
    return load_tool("convert_mtcnn")


def stored(value: torch.Tensor, name: str) -> np.ndarray:
    """As the wheel stores it: kernels (h, w, in, out), dense (in, out), slopes of maps (1, 1, out)."""
    if value.dim() == 4:
        return value.permute(2, 3, 1, 0).numpy()
    if name.startswith("features") and name.endswith("weight"):
        return value[None, None].numpy()
    return value.T.numpy() if value.dim() == 2 else value.numpy()


def test_arrays_get_the_layout_of_the_networks(script):
    torch.manual_seed(0)
    state = {name: torch.rand_like(value) for name, value in Mtcnn().state_dict().items()}
    lists = {
        net: [
            stored(value, name.split(".", 1)[1]) for name, value in state.items() if name.split(".")[0] == net
        ]
        for net in ("pnet", "rnet", "onet")
    }
    # The proposal net's heads are 1x1 convolutions, stored like every other kernel.
    made = script.to_state_dict(lists)
    assert made.keys() == state.keys() and all(torch.equal(made[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="got 12 arrays, expected 13"):
        script.to_state_dict({**lists, "pnet": lists["pnet"][1:]})
    with pytest.raises(ValueError, match="got shape"):
        script.to_state_dict({**lists, "pnet": [*lists["pnet"][:-1], np.zeros(3)]})


def test_another_wheel_is_never_unpickled(script, monkeypatch, tmp_path):
    joblib = pytest.importorskip("joblib")
    monkeypatch.setattr(joblib, "load", lambda file: pytest.fail("unpickled"))
    wheel = tmp_path / "mtcnn-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mtcnn/assets/weights/pnet.lz4", b"cos\nsystem\n")
    with pytest.raises(ValueError, match="sha256"):
        script.read_wheel(wheel)


def test_the_file_holds_the_wheels_numbers(script):
    """Where the package and what reads it are installed: bit for bit."""
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("mtcnn is not installed")
    joblib, _ = pytest.importorskip("joblib"), pytest.importorskip("lz4")
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "weights"
    lists = {
        name: joblib.load(io.BytesIO((folder / f"{name}.lz4").read_bytes()))
        for name in ("pnet", "rnet", "onet")
    }
    expected, found = script.to_state_dict(lists), load_file(WEIGHTS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in found)


def test_the_file_names_its_source_and_licence():
    with safe_open(WEIGHTS, "pt") as file:
        assert file.metadata()["license"] == "MIT" and "mtcnn 1.0.0" in file.metadata()["source"]
    notice = WEIGHTS.with_name("mtcnn_license.txt").read_text(encoding="utf-8")
    assert notice.startswith("MIT License") and "Iván de Paz Centeno" in notice

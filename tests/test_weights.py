"""Third-party weight files: every way they can be wrong ends in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from osdface_core.errors import CheckpointError
from osdface_core.weights import find_weights, load_strictly, read_state_dict


def test_missing_file_names_file_and_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        find_weights(tmp_path, "net.pth", "Net", "https://example.org/net")
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "net.pth") in message
    assert "https://example.org/net" in message


def test_none_looks_in_torchs_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="checkpoints"):
        find_weights(None, "net.pth", "Net", "somewhere")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "net.pth").touch()
    assert find_weights("", "net.pth", "Net", "somewhere") == tmp_path / "checkpoints" / "net.pth"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04truncated"])
def test_unreadable_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path, "Net", "somewhere")
    assert "\n" not in str(error.value)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net\.pth"):
        read_state_dict(tmp_path / "net.pth", "Net", "somewhere")


def test_half_precision_and_wrappers_are_undone(tmp_path: Path) -> None:
    net = nn.Linear(3, 2).half()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}
    torch.save(wrapped, tmp_path / "net.pth")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        state = read_state_dict(tmp_path / name, "Net", "somewhere")
        assert set(state) == {"weight", "bias"}
        assert state["weight"].dtype == torch.float32
        assert torch.equal(state["weight"], net.weight.float())


def test_strict_load_names_what_does_not_fit(tmp_path: Path) -> None:
    net, path = nn.Linear(3, 2), tmp_path / "net.pth"
    state = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    expected = r"1 tensors missing, first bias.*unexpected.*extra.*\(2, 4\), expected \(2, 3\)"
    with pytest.raises(CheckpointError, match=expected):
        load_strictly(net, state, path, "Net", "somewhere")
    good = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    load_strictly(net, good, path, "Net", "somewhere")
    assert torch.equal(net.weight, good["weight"])

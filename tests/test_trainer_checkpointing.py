"""Checkpoints: exact, limited in file size, pruned, and damaged ones passed over."""

from pathlib import Path

import pytest
import torch

from osdface_core.errors import CheckpointError
from osdface_trainer import checkpointing as cp


def state(value: float = 0.0) -> dict:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "modules": {"net": network.state_dict()},
        "optimizers": {"net": optimizer.state_dict()},
        "stage": {
            "value": value,
            "none": None,
            "list": [1, {"t": torch.arange(5)}],
            "half": torch.ones(3).bfloat16(),
        },
        "layout": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "big": torch.randn(40_000),
    }


def assert_same(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b and type(a) is type(b)


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before = state(1.5)
    path = cp.save_state(tmp_path, 7, before)
    step, after = cp.load_state(path)
    assert step == 7
    assert_same(before, after)
    fresh = torch.optim.Adam(torch.nn.Conv2d(3, 8, 3).parameters())
    fresh.load_state_dict(after["optimizers"]["net"])  # integer keys survived JSON


def test_only_the_newest_are_kept_and_nothing_partial_remains(tmp_path: Path) -> None:
    for step in range(1, 6):
        cp.save_state(tmp_path, step, state(), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_00000004", "step_00000005"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("00.safetensors", cut),
        ("00.safetensors", flip),
        ("00.safetensors", Path.unlink),
        ("state.json", cut),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, name: str, damage) -> None:
    cp.save_state(tmp_path, 1, state(1.0))
    cp.save_state(tmp_path, 2, state(2.0))
    damage(tmp_path / "step_00000002" / name)
    warnings: list[str] = []
    found = cp.latest_state(tmp_path, warnings)
    assert found is not None and found[0] == 1 and found[1]["stage"]["value"] == 1.0
    assert len(warnings) == 1 and "step_00000002 is damaged" in warnings[0]
    with pytest.raises(CheckpointError, match="step_00000002"):
        cp.load_state(tmp_path / "step_00000002")
    cp.save_state(tmp_path, 2, state(3.0))  # the step is reached again: the damaged one is replaced
    assert cp.load_state(tmp_path / "step_00000002")[1]["stage"]["value"] == 3.0


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert cp.latest_state(tmp_path / "absent") is None


def test_nan_is_never_stored(tmp_path: Path) -> None:
    bad = state()
    bad["modules"]["net"]["weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"step 3: state\.modules\.net\.weight holds NaN"):
        cp.save_state(tmp_path, 3, bad)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch) -> None:
    cp.save_state(tmp_path, 1, state())
    written = []

    def full(path: Path, data: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(cp, "_write_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        cp.save_state(tmp_path, 2, state())
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert cp.latest_state(tmp_path) is not None


def test_what_cannot_be_stored_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.stage"):
        cp.save_state(tmp_path, 1, {"stage": object()})

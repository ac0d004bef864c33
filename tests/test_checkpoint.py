"""One file, one model: round trips, and every way a file can be wrong ends in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from osdface_core import checkpoint as module
from osdface_core.checkpoint import (
    from_dict,
    load_checkpoint,
    load_config,
    load_strict,
    read_header,
    save_checkpoint,
)
from osdface_core.config import OSDFaceConfig
from osdface_core.errors import CheckpointError

TENSORS = {"vre.a": torch.arange(6.0).reshape(2, 3), "projection.b": torch.ones(4, dtype=torch.float16)}


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def damaged(source: Path, target: Path, **metadata: str) -> Path:
    """A copy with other metadata."""
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        before = file.metadata()
    save_file(load_file(source), target, before | metadata)
    return target


def test_round_trip(tiny_config: OSDFaceConfig, tmp_path: Path) -> None:
    training = {"steps": 3, "seed": 1, "parent": None, "note": "ünïcode"}
    save_checkpoint(tmp_path / "new" / "a.safetensors", TENSORS, tiny_config, training)
    read = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert read.config == tiny_config
    assert read.training == training
    assert {k: v.dtype for k, v in read.tensors.items()} == {k: v.dtype for k, v in TENSORS.items()}
    assert all(read.tensors[k].equal(v) for k, v in TENSORS.items())
    assert read.part("vre")["a"].equal(TENSORS["vre.a"])
    assert load_config(tmp_path / "new" / "a.safetensors") == tiny_config
    assert read.missing_parts == ["unet", "codec"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=4), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64]),
    timestep=st.integers(0, 999),
    low=st.floats(-5, 0),
)
def test_any_tensors_come_back_bit_for_bit(
    tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype, timestep: int, low: float
) -> None:
    tensors = {f"vre.{i}": (torch.randn(shape) * 100).to(dtype) for i, shape in enumerate(shapes)}
    plain = OSDFaceConfig()
    config = dataclasses.replace(
        plain, timestep=timestep, vre=dataclasses.replace(plain.vre, input_range=(low, 1.0))
    )
    save_checkpoint(tmp_path / "a.safetensors", tensors, config)
    read = load_checkpoint(tmp_path / "a.safetensors")
    assert read.config == config
    assert all(read.tensors[k].dtype == dtype and read.tensors[k].equal(v) for k, v in tensors.items())


def test_the_model_spec_names_it(tiny_checkpoint: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["osdface.format"] == "1"
    assert metadata["modelspec.title"] == "tiny"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert json.loads(metadata["osdface.config"])["arch"] == "full"


def test_tensors_must_belong_to_a_part(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save optimizer\.x"):
        save_checkpoint(tmp_path / "a.safetensors", {"optimizer.x": torch.ones(1)}, OSDFaceConfig())
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at") as error:
        load_checkpoint(tmp_path / "none.safetensors")
    assert str(tmp_path / "none.safetensors") in one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 9, 200, 0.5, 0.999])
def test_truncated_anywhere(tiny_checkpoint: Path, tmp_path: Path, keep: float) -> None:
    data = tiny_checkpoint.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is truncated.*download it again") as error:
        read_header(path)
    one_line(error)


def test_another_programs_file(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no OSDFace checkpoint") as error:
        read_header(tmp_path / "x.safetensors")
    one_line(error)


@pytest.mark.parametrize("version", ["2", "99", "next", "-1", "", "²", "1" * 5000])
def test_newer_format(tiny_checkpoint: Path, tmp_path: Path, version: str) -> None:
    path = damaged(tiny_checkpoint, tmp_path / "new.safetensors", **{"osdface.format": version})
    with pytest.raises(CheckpointError, match="reads up to 1; update osdface") as error:
        read_header(path)
    one_line(error)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{not json", "missing or damaged"),
        (json.dumps({"arch": "full", "wings": 2}), "unknown keys wings; update osdface"),
        (json.dumps({"arch": "half"}), "got 'half', expected one of"),
        (json.dumps({"timestep": "soon"}), "timestep: got 'soon', expected int"),
        (json.dumps({"timestep": True}), "timestep: got True"),
        (json.dumps({"vre": {"channel_multipliers": [1, "x"]}}), "channel_multipliers: got 'x'"),
        (json.dumps({"unet": {"layers_per_block": 1}}), "block_out_channels"),
        (json.dumps([1, 2]), "damaged|expected"),
        ("[" * 100_000, "missing or damaged"),
        (json.dumps({"timestep": -1}), r"timestep: got -1, expected 0\.\.99999"),
        (json.dumps({"beta_end": float("nan")}), "beta_end: got nan, expected"),
        (json.dumps({"vre": {"resolution": 10**12}}), r"resolution: got 1000000000000, expected 8\.\.1024"),
        (json.dumps({"vre": {"res_blocks": 10**9}}), "res_blocks: got 1000000000, expected"),
        (json.dumps({"vre": {"channel_multipliers": [1] * 99}}), "got 99 values, expected 1..8 values"),
        (json.dumps({"vre": {"channel_multipliers": []}}), "got 0 values, expected 1..8 values"),
        (json.dumps({"vre": {"input_range": [1.0]}}), "input_range: got 1 values, expected 2..2 values"),
        (json.dumps({"codec": {"scaling_factor": 0.0}}), "scaling_factor: got 0.0, expected"),
    ],
)
def test_damaged_config(tiny_checkpoint: Path, tmp_path: Path, config: str, message: str) -> None:
    path = damaged(tiny_checkpoint, tmp_path / "bad.safetensors", **{"osdface.config": config})
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    one_line(error)


def test_unknown_part(tiny_checkpoint: Path, tiny_config: OSDFaceConfig, tmp_path: Path) -> None:
    tensors = load_file(tiny_checkpoint) | {"sidecar.x": torch.ones(1)}
    from safetensors import safe_open

    with safe_open(tiny_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "more.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"unexpected tensor sidecar\.x"):
        load_checkpoint(tmp_path / "more.safetensors")


def test_strict_load_names_what_does_not_fit() -> None:
    layer = torch.nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="x: 1 tensors missing, first bias"):
        load_strict(layer, {"weight": good["weight"]}, "x")
    with pytest.raises(CheckpointError, match="x: 1 unexpected tensors, first other"):
        load_strict(layer, good | {"other": torch.ones(1)}, "x")
    with pytest.raises(CheckpointError, match=r"x: weight is \(3, 2\), expected \(2, 3\)"):
        load_strict(layer, good | {"weight": torch.ones(3, 2)}, "x")
    load_strict(layer, good, "x")
    assert layer.weight.equal(good["weight"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int64), "weight is torch.int64, expected floating point"),
        (torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "weight holds NaN or infinity"),
    ],
)
def test_tensors_that_are_no_weights(value: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_strict(torch.nn.Linear(2, 2, bias=False), {"weight": value}, "x")


def test_a_module_without_memory_gets_its_own_copy() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2, bias=False)
    weight = torch.ones(2, 2, dtype=torch.float16)
    load_strict(module, {"weight": weight}, "x")
    weight.zero_()
    assert module.weight.equal(torch.ones(2, 2)) and module.weight.requires_grad


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, TENSORS, OSDFaceConfig())
    before = path.read_bytes()

    def full(tensors: object, target: Path, metadata: object) -> None:
        Path(target).write_bytes(before[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing was replaced") as error:
        save_checkpoint(path, TENSORS, OSDFaceConfig(name="other"))
    one_line(error)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(tensors: object, target: Path, metadata: object) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a.safetensors", TENSORS, OSDFaceConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_others_may_read_it_if_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_checkpoint(tmp_path / "a.safetensors", TENSORS, OSDFaceConfig())
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / f"{'ä' * 115}.safetensors"
    save_checkpoint(path, TENSORS, OSDFaceConfig())
    assert load_config(path) == OSDFaceConfig()


def test_config_round_trip_through_json(tiny_config: OSDFaceConfig) -> None:
    for config in (OSDFaceConfig(), tiny_config):
        assert from_dict(OSDFaceConfig, json.loads(json.dumps(config.to_dict()))) == config

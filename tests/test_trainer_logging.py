"""Scalars of every step, NaN with its step and name, and metrics that a resume does not repeat."""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType

from osdface_core.errors import ConfigError
from osdface_trainer.distributed import make_accelerator, start_trackers
from osdface_trainer.logging import History, MetricsWriter, read_metrics
from osdface_trainer.recipe.config import RunConfig
from osdface_trainer.report import phase_starts, read_panels


def test_means_by_name_also_when_names_change() -> None:
    history = History()
    history.add(0, {"a": torch.tensor(1.0), "b": torch.tensor(4)})
    history.add(1, {"a": torch.tensor(3.0), "c": torch.tensor(5.0, dtype=torch.float64)})
    means, bad = history.flush()
    assert means == {"a": 2.0, "b": 4.0, "c": 5.0} and bad is None
    assert history.flush() == ({}, None)


def test_the_first_value_that_is_not_finite_is_named() -> None:
    history = History()
    history.add(4, {"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    assert not history.latest_is_broken()
    history.add(5, {"a": torch.tensor(1.0), "b": torch.tensor(float("inf"))})
    assert history.latest_is_broken()
    history.add(6, {"a": torch.tensor(float("nan")), "b": torch.tensor(1.0)})
    _, bad = history.flush()
    assert bad is not None and bad.step == 5 and list(bad.values) == ["b"]
    assert str(bad) == "step 5: b is inf"


def test_other_processes_are_averaged_in_and_their_nan_shows() -> None:
    history = History(reduce=lambda x: (x + torch.full_like(x, float("nan"))) / 2)
    history.add(0, {"a": torch.tensor(1.0)})
    assert history.flush()[1] is not None


def test_a_resumed_run_drops_lost_work_and_a_line_that_was_cut(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, Accelerator(cpu=True), resume_at=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)}, kind="train", phase="hq")
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricsWriter(tmp_path, Accelerator(cpu=True), resume_at=2).write(
        3, {"loss": 9.0}, kind="train", phase="lq"
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = make_accelerator(RunConfig(device="cpu"), tmp_path / "tensorboard")
    start_trackers(accelerator, {}, tmp_path, 0)
    writer = MetricsWriter(tmp_path, accelerator, resume_at=0)
    writer.write(5, {"hq/l1": 0.25}, kind="train", phase="hq")
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "osdface"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("hq/l1")] == [(5, 0.25)]


def test_wandb_is_one_line_without_its_package_and_gets_recipe_and_numbers_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own package stays out of the tests: accelerate talks to this stand-in."""
    run = RunConfig(device="cpu", tensorboard=False, wandb=True)
    if find_spec("wandb") is None:
        with pytest.raises(ConfigError, match="pip install wandb"):
            make_accelerator(run, tmp_path / "tensorboard")
    wandb, said = ModuleType("wandb"), []
    wandb.__spec__ = ModuleSpec("wandb", None)
    logged = SimpleNamespace(log=lambda values, step, **_: said.append((values, step)), finish=lambda: None)
    wandb.init = lambda **settings: said.append(settings) or logged  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    accelerator = make_accelerator(run, tmp_path / "tensorboard")
    start_trackers(accelerator, {"run": {"seed": 7}}, tmp_path / "vre", 0)
    writer = MetricsWriter(tmp_path, accelerator, resume_at=0)
    writer.write(5, {"hq/l1": 0.25}, kind="train", phase="hq")
    writer.close()
    assert said[0]["config"] == {"run": {"seed": 7}} and said[0]["name"] == f"{tmp_path.name}/vre"
    assert said[1] == ({"hq/l1": 0.25}, 5)


def test_curves_share_a_panel_by_quantity(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "kind": "train", "phase": "hq", "hq/l1": 0.5, "hq/codes/distinct": 80.0},
        {"step": 2, "kind": "train", "phase": "lq", "lq/l1": 0.4, "grad_norm": float("inf")},
        {
            "step": 2,
            "kind": "val",
            "phase": "lq",
            "lq/l1": 0.6,
            "mild/identity": 0.5,
            "mild/identity_lq": 0.4,
        },
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    panels = read_panels(tmp_path / "m.jsonl")
    assert sorted(panels) == ["codes/distinct", "identity", "l1"]
    assert [(line.label, line.validated) for line in panels["l1"]] == [
        ("hq", False),
        ("lq", False),
        ("lq", True),
    ]
    assert [line.label for line in panels["identity"]] == ["mild", "mild (input)"]
    assert phase_starts(tmp_path / "m.jsonl") == [(1, "hq"), (2, "lq")]

"""Scalars of every step, NaN with its step and name, and a journal that a resume does not repeat."""

import json
from pathlib import Path

import torch

from osdface_trainer.logging import History, MetricsWriter, read_metrics
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


def test_a_resumed_journal_drops_lost_work_and_a_line_that_was_cut(tmp_path: Path) -> None:
    journal = MetricsWriter(tmp_path, tensorboard=False, resume_at=0)
    for step in (1, 2, 3):
        journal.write(step, {"loss": float(step)}, kind="train", phase="hq")
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricsWriter(tmp_path, tensorboard=False, resume_at=2).write(3, {"loss": 9.0}, kind="train", phase="lq")
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = MetricsWriter(tmp_path, tensorboard=True, resume_at=0)
    journal.write(5, {"hq/l1": 0.25}, kind="train", phase="hq")
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("hq/l1")] == [(5, 0.25)]


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
    assert [(line.label, line.held_out) for line in panels["l1"]] == [
        ("hq", False),
        ("lq", False),
        ("lq", True),
    ]
    assert [line.label for line in panels["identity"]] == ["mild", "mild (input)"]
    assert phase_starts(tmp_path / "m.jsonl") == [(1, "hq"), (2, "lq")]

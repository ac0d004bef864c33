"""The loop around stage 1, in this process: files, resuming, stops, refusals, bad values."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

from osdface_core.checkpoint import load_checkpoint
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.models.vre import VRE
from osdface_trainer import logging
from osdface_trainer.cli import main
from osdface_trainer.logging import DivergedError, read_metrics
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import Recipe, load_recipe
from osdface_trainer.run_folder import only_one, open_run
from osdface_trainer.stage import FaceBatch
from osdface_trainer.vre import stage as vre_stage


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The number of threads decides the order of sums, and with it the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in globals."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def smoke(faces: Path, folder: Path, *overrides: str) -> Recipe:
    places = (f"data.train={faces}", f"data.val={faces}", f"run.dir={folder}", "run.report=false")
    return load_recipe("smoke", [*places, *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "vre" / "export.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(one_thread: None, tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe's stage 1, run through."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = train(smoke(tiny_faces, folder, "run.report=true"), "vre", quiet=True)
    assert (outcome.reason, outcome.step, outcome.total) == ("done", 6, 6)
    return folder


def test_a_run_leaves_model_report_samples_recipe_and_checkpoints(whole: Path) -> None:
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*")}
    assert {"export.safetensors", "vre/export.safetensors", "vre/recipe.toml", "vre/report.html"} <= names
    assert {"vre/curves.png", "vre/samples/step_00000002.png", "vre/samples/step_00000006.png"} <= names
    kept = {name for name in names if re.fullmatch(r"vre/checkpoints/step_\d+", name)}
    assert kept == {"vre/checkpoints/step_00000005", "vre/checkpoints/step_00000006"}  # run.keep = 2
    assert not [name for name in names if "partial" in name]
    with Image.open(whole / "vre/samples/step_00000006.png") as grid:
        assert grid.size == (4 * 64, 2 * 64 + 4)


def test_the_report_is_one_offline_file(whole: Path) -> None:
    page = (whole / "vre/report.html").read_text(encoding="utf-8")
    assert "distinct codes per face" in page and page.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"(src|href)=[\"']?(http|//)", page)


def test_every_step_is_in_the_journal_with_phase_and_codes(whole: Path) -> None:
    rows = read_metrics(whole / "vre/metrics.jsonl")
    trained = [row for row in rows if row["kind"] == "train"]
    assert [(row["step"], row["phase"]) for row in trained] == [
        (1, "hq"), (2, "hq"), (3, "lq"), (4, "lq"), (5, "assoc"), (6, "assoc"),
    ]  # fmt: skip
    assert {"hq/l1", "hq/codes/perplexity", "hq/codes/distinct", "hq/codes/used"} <= trained[0].keys()
    assert "assoc/loss" in trained[-1] and "lq/disc" in trained[-1]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [2, 4, 6]


def test_the_export_loads_and_tells_where_it_comes_from(whole: Path) -> None:
    checkpoint = load_checkpoint(whole / "export.safetensors")
    VRE(checkpoint.config.vre).load_state_dict(checkpoint.part("vre"), strict=True)
    training = checkpoint.training
    assert (training["stage"], training["step"], training["steps"], training["seed"]) == ("vre", 6, 6, 0)
    assert len(training["data"]) == 64 and training["recipe"]["vre"]["hq"]["steps"] == 2
    assert str(whole) not in json.dumps(training)


def test_stopping_by_time_and_continuing_gives_the_same_bits(
    whole: Path, tiny_faces: Path, tmp_path: Path
) -> None:
    reasons = []
    for _ in range(7):
        recipe = smoke(tiny_faces, tmp_path, "run.max_minutes=1e-9", "run.checkpoint_every=0")
        reasons.append(train(recipe, "vre", quiet=True).reason)
    assert reasons == ["time"] * 5 + ["done", "done"]
    assert_same(weights(whole), weights(tmp_path))
    strip = [
        {k: v for k, v in row.items() if "speed" not in k}
        for row in read_metrics(tmp_path / "vre/metrics.jsonl")
    ]
    assert strip == [
        {k: v for k, v in row.items() if "speed" not in k}
        for row in read_metrics(whole / "vre/metrics.jsonl")
    ]


def test_a_truncated_checkpoint_costs_one_interval_and_no_bit(
    whole: Path, tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(smoke(tiny_faces, tmp_path, "run.keep=9"), "vre", quiet=True)
    for step in (5, 6):
        shard = tmp_path / f"vre/checkpoints/step_0000000{step}/00.safetensors"
        shard.write_bytes(shard.read_bytes()[:1000])
    (tmp_path / "vre/checkpoints/.partial_00000006").mkdir()
    train(smoke(tiny_faces, tmp_path, "run.keep=9"), "vre", quiet=True)
    assert_same(weights(whole), weights(tmp_path))
    assert "step_00000006 is damaged" in capsys.readouterr().out
    assert not (tmp_path / "vre/checkpoints/.partial_00000006").exists()


def test_another_seed_gives_another_model(whole: Path, tiny_faces: Path, tmp_path: Path) -> None:
    train(smoke(tiny_faces, tmp_path, "run.seed=1"), "vre", quiet=True)
    other = weights(tmp_path)
    assert not torch.equal(other["vre.quant_conv.weight"], weights(whole)["vre.quant_conv.weight"])


def test_a_differing_recipe_is_refused_and_fresh_keeps_the_old_run(
    whole: Path, tiny_faces: Path, tmp_path: Path
) -> None:
    train(smoke(tiny_faces, tmp_path), "vre", quiet=True)
    changed = smoke(tiny_faces, tmp_path, "vre.lr=0.1", "run.log_every=2")
    with pytest.raises(ConfigError, match=r"these keys differ: vre\.lr\."):
        train(changed, "vre", quiet=True)
    train(changed, "vre", fresh=True, quiet=True)
    assert_same(weights(whole), load_file(tmp_path / "vre.1/export.safetensors"))


def test_a_run_of_a_former_version_goes_on(whole: Path, tiny_faces: Path, tmp_path: Path) -> None:
    """Its recipe.toml holds every key of then, also those that are gone."""
    recipe = smoke(tiny_faces, tmp_path, "run.max_minutes=1e-9")
    train(recipe, "vre", quiet=True)
    saved = tmp_path / "vre/recipe.toml"
    saved.write_text(saved.read_text() + "\n[restorer.gan.patch_of_old]\nr1 = 0.0\n")
    assert train(smoke(tiny_faces, tmp_path), "vre", quiet=True).reason == "done"
    assert_same(weights(whole), weights(tmp_path))


def test_other_faces_are_refused_and_moved_ones_are_not(tiny_faces: Path, tmp_path: Path) -> None:
    faces, run = tmp_path / "faces", tmp_path / "run"
    shutil.copytree(tiny_faces, faces)
    train(smoke(faces, run), "vre", quiet=True)
    faces.rename(tmp_path / "moved")
    train(smoke(tmp_path / "moved", run), "vre", quiet=True)
    (tmp_path / "moved" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"data\.train holds other faces"):
        train(smoke(tmp_path / "moved", run), "vre", quiet=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    whole: Path, tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(logging, "write_png", full)
        with pytest.raises(CheckpointError, match="No space left on device; free some space") as caught:
            train(smoke(tiny_faces, tmp_path), "vre", quiet=True)
    assert "\n" not in str(caught.value)
    train(smoke(tiny_faces, tmp_path), "vre", quiet=True)
    assert_same(weights(whole), weights(tmp_path))


def test_a_recipe_may_change_until_something_was_learned(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="squeezenet"):
        wrong = ("vre.perceptual.weight=1", "vre.perceptual.net=squeezenet", "vre.perceptual.file=nowhere")
        train(smoke(tiny_faces, tmp_path, *wrong), "vre", quiet=True)
    assert train(smoke(tiny_faces, tmp_path), "vre", quiet=True).reason == "done"


def test_two_processes_never_share_a_folder(tiny_faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    recipe = smoke(tiny_faces, tmp_path)
    with only_one(open_run(recipe, "vre")), pytest.raises(ConfigError, match="another process trains in"):
        train(recipe, "vre", quiet=True)
    with only_one(open_run(recipe, "vre")), pytest.raises(ConfigError, match="another process trains in"):
        train(recipe, "vre", fresh=True, quiet=True)
    assert train(recipe, "vre", quiet=True).reason == "done" and not (tmp_path / "vre.1").exists()


def test_resume_insists_on_a_run(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(smoke(tiny_faces, tmp_path / "new"), "vre", resume=True, quiet=True)
    assert not (tmp_path / "new").exists()


def test_nan_stops_with_step_name_and_batch_and_no_checkpoint_of_it(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = vre_stage.VREStage.step
    seen = {}

    def poisoned(self, batch, number):
        scalars = step(self, batch, number)
        if number == 3:
            seen["lq"] = batch.lq.clone()
            scalars["lq/l1"] = scalars["lq/l1"] * float("nan")
        return scalars

    monkeypatch.setattr(vre_stage.VREStage, "step", poisoned)
    with pytest.raises(DivergedError, match=r"step 3: lq/l1 is nan.*last checkpoint is step_00000003"):
        train(smoke(tiny_faces, tmp_path), "vre", quiet=True)
    (saved,) = (tmp_path / "vre").glob("not_finite_step_00000003*.safetensors")
    assert torch.equal(load_file(saved)["lq"], seen["lq"])
    assert {p.name for p in (tmp_path / "vre/checkpoints").iterdir()} == {"step_00000002", "step_00000003"}


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let the validations of the 8 faces give these scores, one after the other, the start's first."""
    given, state = iter(scores), {"rows": 8, "score": 0.0}

    def validate(self: object, batch: FaceBatch) -> dict[str, torch.Tensor]:
        if state["rows"] == 8:
            state.update(rows=0, score=next(given))
        state["rows"] += len(batch)
        return {"identity": torch.tensor(state["score"])}

    monkeypatch.setattr(vre_stage.VREStage, "validate", validate)


BY_IDENTITY = ("run.validate_every=1", 'run.stop_metric="identity"', "run.stop_patience=2")


def test_training_stops_early_and_exports_the_best(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.5, 0.7, 0.6, 0.6, 0.9)
    outcome = train(smoke(tiny_faces, tmp_path, *BY_IDENTITY), "vre", quiet=True)
    assert (outcome.reason, outcome.step, outcome.best) == ("early stop", 4, 2)
    assert load_checkpoint(outcome.export).training["step"] == 2
    again = train(smoke(tiny_faces, tmp_path, *BY_IDENTITY), "vre", quiet=True)
    assert (again.reason, again.step, again.best) == ("early stop", 4, 2)


def test_training_that_only_harms_exports_its_start(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.8, 0.5, 0.7)
    outcome = train(smoke(tiny_faces, tmp_path, *BY_IDENTITY), "vre", quiet=True)
    assert (outcome.reason, outcome.step, outcome.best) == ("early stop", 2, 0)
    assert load_checkpoint(outcome.export).training["step"] == 0


def test_an_unknown_stop_metric_is_named(tiny_faces: Path, tmp_path: Path) -> None:
    stop = ('run.stop_metric="beauty"', "run.stop_patience=1")
    with pytest.raises(ConfigError, match=r"run\.stop_metric.*beauty.*hq/l1"):
        train(smoke(tiny_faces, tmp_path, *stop), "vre", quiet=True)


def test_the_runs_export_is_not_lost_when_stage_1_is_trained_again(tiny_faces: Path, tmp_path: Path) -> None:
    from osdface_core.checkpoint import save_checkpoint
    from osdface_core.config import OSDFaceConfig

    save_checkpoint(
        tmp_path / "export.safetensors", {"vre.a": torch.ones(1), "unet.a": torch.ones(1)}, OSDFaceConfig()
    )
    train(smoke(tiny_faces, tmp_path), "vre", quiet=True)
    assert "unet.a" in load_file(tmp_path / "export.previous.safetensors")
    assert "unet.a" not in load_file(tmp_path / "export.safetensors")


def test_both_stages_from_the_command_line_give_one_model(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"data.train={tiny_faces}", f"data.val={tiny_faces}", f"run.dir={tmp_path}", "run.report=false"]
    sets = [word for place in places for word in ("--set", place)]
    for stage in ("vre", "restorer"):
        assert main(["train", stage, "smoke", "--quiet", *sets]) == 0
        assert f"{stage}: done at step" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "export.safetensors")
    assert checkpoint.missing_parts == [] and checkpoint.training["stage"] == "restorer"
    vre = load_file(tmp_path / "vre/export.safetensors")
    assert all(torch.equal(checkpoint.tensors[name], vre[name]) for name in vre)


def test_the_restorer_resumes_with_the_same_bits(tiny_faces: Path, tmp_path: Path) -> None:
    results = []
    for name, limit in (("whole", "0.0"), ("parts", "1e-9")):
        changes = (
            "restorer.steps=4",
            "run.sample_every=0",
            f"run.max_minutes={limit}",
            "run.checkpoint_every=0",
        )
        recipe = smoke(tiny_faces, tmp_path / name, *changes)
        while train(recipe, "vre", quiet=True).reason != "done":
            pass
        while train(recipe, "restorer", quiet=True).reason != "done":
            pass
        results.append(load_file(tmp_path / name / "restorer/export.safetensors"))
    assert_same(*results)


def test_dry_run_prints_and_touches_nothing(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--set", f"data.train={tiny_faces}", "--set", f"run.dir={tmp_path}/run"]
    assert main(["train", "vre", "smoke", *places, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "base_channels = 16" in out and "6 steps (hq 2, lq 2, assoc 2)" in out
    assert "lq autoencoder" in out and "lq discriminator" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["train", "vre", "smoke"], 2, "data.train is empty"),
        (["train", "vre", "nowhere.toml"], 2, "recipe nowhere.toml does not exist"),
        (["train", "vre", "smoke", "--set", "run.sede=1"], 2, "did you mean seed"),
        (["prepare", ".", "faces"], 2, "no photos"),
        (["report", "nowhere"], 2, "has no metrics.jsonl"),
        (["degrade", "nowhere", "-o", "x.png"], 2, "nowhere"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_degrade_writes_a_preview(tiny_faces: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    assert (
        main(
            [
                "degrade",
                str(tiny_faces),
                "-o",
                str(target),
                "--profile",
                "mild,severe",
                "--count",
                "2",
                "--side",
                "64",
            ]
        )
        == 0
    )
    with Image.open(target) as grid:
        assert grid.width == 3 * 64

"""The ablation runner on two tiny variants: it trains, scores, averages over seeds and goes on."""

from pathlib import Path

import pytest

from osdface_trainer import ablation
from osdface_trainer.interrupt import StopRequest
from osdface_trainer.recipe.config import load_recipe


def test_variants_take_one_part_away() -> None:
    whole = load_recipe("mini").restorer
    changed = {name: load_recipe("mini", sets).restorer for name, sets in ablation.variants("").items()}
    assert changed.pop("everything") == whole
    assert all(cfg != whole for cfg in changed.values())
    assert changed["without GAN"].gan.feature.weight == changed["without GAN"].gan.diffusion.weight == 0
    assert ablation.OTHER_VRE in ablation.variants("other.safetensors")


def test_table_has_mean_and_spread() -> None:
    seeds = [{"mild/psnr": 20.0, "mild/perceptual": 0.5, "mild/identity": 0.8}]
    assert "| all | 20.00 | 0.500 | 0.800 |" in ablation.table({"all": seeds}, ["mild"])
    seeds.append({"mild/psnr": 22.0, "mild/perceptual": 0.5, "mild/identity": 0.6})
    both = ablation.table({"all": seeds}, ["mild"])
    assert "| all | 21.00 ± 1.41 | 0.500 ± 0.000 | 0.700 ± 0.141 |" in both


def two_variants(faces: Path, folder: Path) -> list[str]:
    sets = [
        f"data.train={faces}", f"data.val={faces}", "run.report=false", "restorer.steps=2",
        "run.validate_every=2", "restorer.prompt=learned", "restorer.validation.metrics=['psnr']",
    ]  # fmt: skip
    words = ["smoke", "--seeds", "1", "--only", "everything,no prompt", "--out", str(folder)]
    return [*words, *(word for key in sets for word in ("--set", key))]


def test_runs_are_scored_and_kept(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "METRICS", ("psnr",))
    words = two_variants(tiny_faces, tmp_path)
    assert ablation.main(words) == 0
    table = (tmp_path / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == ["everything", "no prompt"]
    metrics = tmp_path / "no_prompt_1" / "restorer" / "metrics.jsonl"
    trained = metrics.read_text()
    assert ablation.main(words) == 0 and (tmp_path / "table.md").read_text() == table
    assert metrics.read_text() == trained, "a finished run is only read"
    capsys.readouterr()
    missing = f"data.train={tmp_path / 'none'}"
    broken = ["smoke", "--set", "restorer.prompt=learned", "--set", missing, "--out", str(tmp_path / "b")]
    assert ablation.main(broken) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_was_asked_to_stop_is_the_last(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal asks for: save after the step, begin no other variant; the same command goes on."""
    monkeypatch.setattr(ablation, "METRICS", ("psnr",))
    words = two_variants(tiny_faces, tmp_path)

    def asked(stop: StopRequest) -> StopRequest:
        stop.requested = True
        return stop

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__enter__", asked)
        assert ablation.main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "no_prompt_1").exists() and not (tmp_path / "table.md").exists()
    assert ablation.main(words) == 0

"""`osdface evaluate recognition`: pairs, LFW's protocol against counting by hand, and the command itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from osdface_core.errors import ConfigError
from osdface_core.models.identity_nets import MobileFaceNet
from osdface_trainer import cli
from osdface_trainer.evaluation import recognition
from osdface_trainer.evaluation.recognition import Picture, own_pairs, read_pairs
from osdface_trainer.evaluation.verification import verify


def test_lfws_list_is_read(tmp_path: Path) -> None:
    lines = ["2\t1", "Ada\t1\t4", "Ada\t2\tBen\t1", "Cy\t1\t2", "Cy\t1\tDee\t12"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines), encoding="utf-8")
    pairs = read_pairs(tmp_path / "pairs.txt", tmp_path / "lfw")
    assert [(pair.same, pair.fold) for pair in pairs] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    assert pairs[0].b == Picture(tmp_path / "lfw" / "Ada" / "Ada_0004.jpg")
    assert pairs[3].b == Picture(tmp_path / "lfw" / "Dee" / "Dee_0012.jpg")
    (tmp_path / "pairs.txt").write_text("2 1\nAda 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'Ada 1' is neither"):
        read_pairs(tmp_path / "pairs.txt", tmp_path)


def test_own_pairs_take_people_from_a_manifest_and_crop_again_where_one_is_alone(tiny_faces: Path) -> None:
    manifest = tiny_faces.parent / "people.csv"
    rows = [f"{tiny_faces.name}/{number}.png,{who}" for number, who in enumerate("aabc")]
    manifest.write_text("\n".join(["file,identity", *rows]), encoding="utf-8")
    pairs, recropped = own_pairs(str(manifest), None)
    same = [(pair.a.path.stem, pair.b.path.stem, pair.b.recrop) for pair in pairs if pair.same]
    assert same == [("0", "1", False), ("2", "2", True), ("3", "3", True)] and recropped
    assert len(pairs) - len(same) == 3 * 2
    assert not own_pairs(str(manifest), 1)[1]


def test_scores_equal_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(300) % 3 == 0
    cosines = rng.normal(np.where(same, 0.6, 0.2), 0.2).clip(-1, 1)
    folds = np.arange(300) % 5
    found = verify(cosines, same, folds)
    better = cosines[same][:, None] > cosines[~same][None]
    assert found["auc"] == pytest.approx(better.mean(), abs=1e-5), "Mann and Whitney"
    grid = np.linspace(-1, 1, 401)
    f1 = [2 * (same & (cosines >= t)).sum() / (same.sum() + (cosines >= t).sum()) for t in grid]
    assert found["best_f1"]["value"] == pytest.approx(max(f1), abs=1e-3)

    def accuracy(t: float, where: np.ndarray) -> float:
        return ((cosines >= t)[where & same].mean() + (cosines < t)[where & ~same].mean()) / 2

    by_fold = []
    for fold in range(5):
        best = max(grid, key=lambda t, f=fold: accuracy(t, folds != f))
        by_fold.append(accuracy(best, folds == fold))
    assert found["accuracy"]["mean"] == pytest.approx(np.mean(by_fold))
    assert found["distance"]["same"] == pytest.approx(np.sqrt(2 - 2 * cosines[same]).mean())
    assert sum(found["histogram"]["different"]) == 200
    apart = verify(np.where(same, 0.9, 0.1), same, folds)
    assert (apart["accuracy"]["mean"], apart["auc"], apart["best_f1"]["value"]) == (1, 1, 1)
    with pytest.raises(ConfigError, match="pairs of one person and of different"):
        verify(cosines, same | True, folds)


def test_the_command_writes_numbers_plots_and_pictures(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(MobileFaceNet().state_dict(), tmp_path / "mobilefacenet.pt")
    monkeypatch.setattr(recognition, "restorer", lambda args: lambda faces: faces)
    words = ["evaluate", "recognition", str(tiny_faces), "--aligned", "--limit", "3", "--device", "cpu",
             "--length", "20000", "--side", "32", "--identity", str(tmp_path), "--out", str(tmp_path / "out"),
             "--save-images", "--quiet"]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out/recognition.json").read_text(encoding="utf-8"))
    assert list(report["conditions"]) == ["clean", "20 km", "20 km restored"]
    clean, air, restored = report["conditions"].values()
    assert clean["pairs"] == {"same": 3, "different": 6}
    assert restored["distance"] == air["distance"] != clean["distance"], (
        "a model that does nothing changes nothing"
    )
    assert "mirrored" in said and "20 km restored" in said
    assert (tmp_path / "out/recognition.png").stat().st_size > 10_000
    assert len(list((tmp_path / "out/20_km_restored").glob("*.png"))) == 6
    assert cli.main([*words[:-4], "--length", "far", "--out", str(tmp_path)]) == 2
    assert "metres of air" in capsys.readouterr().err

"""`--preset` and `--write-fid-stats`: folders, published numbers beside ours, the radar chart, statistics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core.errors import CheckpointError
from osdface_trainer import cli
from osdface_trainer.evaluation import collect
from osdface_trainer.evaluation.presets import COLUMNS, PRESETS, PUBLISHED, PaperSet, open_set
from osdface_trainer.evaluation.scores import Report, Row
from osdface_trainer.metrics import METRICS, MetricCollection
from osdface_trainer.metrics.base import Column
from osdface_trainer.metrics.distribution import InceptionDistances, frechet, read_moments, write_moments


def test_every_published_column_is_one_that_is_measured() -> None:
    measured = {*METRICS, "fid_stats"}
    assert all(name in measured for names in COLUMNS.values() for name in names)
    assert [PUBLISHED["sets"][name]["count"] for name in PRESETS] == [3000, 970, 1711, 407]
    for facts in PUBLISHED["sets"].values():
        columns = [list(one) for one in facts["methods"].values()]
        assert len(columns) == 10 and all(one == columns[0] and set(one) <= COLUMNS.keys() for one in columns)


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    published = {"OSDFace": {"lpips": 0.3, "musiq": 75.0}, "Other": {"lpips": 0.4, "musiq": 60.0}}
    columns = (
        Column("lpips_alex", "lower", ""),
        Column("lpips_vgg", "lower", ""),
        Column("musiq", "higher", ""),
    )
    rows = [Row(str(i), "", {"lpips_alex": 0.1 + i / 5, "lpips_vgg": 0.5}) for i in range(2)]
    test_set, report = PaperSet(tmp_path, None, published, "2 of 3"), Report(columns, rows=rows)
    assert test_set.metrics == ("lpips_alex", "lpips_vgg", "musiq")
    text = test_set.compare(report)
    assert "lpips ↓" in text and "musiq ↑" in text and "2 of 3" in text
    cells = {line.split("  ")[1].strip(): line for line in text.splitlines()[2:]}
    assert "0.2 / 0.5" in cells["this run"] and cells["this run"].endswith("-")
    assert "0.4" in cells["Other"] and "60" in cells["Other"]
    test_set.radar(report, tmp_path / "radar.png")
    with Image.open(tmp_path / "radar.png") as chart:
        assert chart.size == (600, 700)


def test_the_command_with_a_preset(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(tiny_faces),
        str(tmp_path),
        "--preset",
        "celeba-test",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert cli.main(words) == 2
    assert "no lq/ and no hq/: celeba-test is 3,000 aligned faces" in capsys.readouterr().err
    for part in ("lq", "hq"):
        (tmp_path / part).symlink_to(tiny_faces, target_is_directory=True)
    assert open_set("celeba-test", tmp_path).reference == tmp_path / "hq"
    assert cli.main([*words, "--metrics", "psnr", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "8 of the set's 3,000 pictures, so not comparable" in said and "0.3365" in said
    assert (tmp_path / "out/radar.png").is_file()
    assert "17.06" in json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["notes"][-1]
    assert cli.main([*words, "--lq", str(tiny_faces)]) == 2


def test_statistics_are_written_and_read_again(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tiny(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (images.float().flatten(2).mean(2),)

    words = ["evaluate", str(tiny_faces), "--metrics", "fid", "--device", "cpu", "--quiet"]
    assert cli.main([*words, "--weights", str(tmp_path), "--write-fid-stats", str(tmp_path / "a.npz")]) == 2
    assert "--write-fid-stats needs the metric fid" in capsys.readouterr().err
    sets = InceptionDistances(Tiny())
    monkeypatch.setattr(collect, "load_metrics", lambda *_, **__: MetricCollection(sets=sets))
    assert cli.main([*words, "--write-fid-stats", str(tmp_path / "a.npz")]) == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tiny_faces.glob("*.png"))]
    features = torch.tensor(np.array([p.reshape(-1, 3).mean(0) for p in pictures]))
    mean, covariance = read_moments(tmp_path / "a.npz")
    torch.testing.assert_close(mean, features.mean(0), rtol=1e-4, atol=1e-3)
    assert abs(frechet(features, mean, covariance)) < 0.01
    with pytest.raises(CheckpointError, match="two images or more"):
        write_moments(tmp_path / "b.npz", features[:1])

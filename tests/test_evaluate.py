"""`osdface evaluate` from folders to files: pairing, degrading on the spot, reports, exit codes."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from osdface_core.errors import ConfigError, OSDFaceError
from osdface_trainer.evaluation.cli import add_arguments, run
from osdface_trainer.evaluation.collect import EvaluationOptions
from osdface_trainer.evaluation.evaluate import evaluate, evaluate_degraded, face_seed
from osdface_trainer.evaluation.pairing import list_images, pair

FAST = EvaluationOptions(metrics=("psnr", "ssim", "hf_energy", "colour_shift"), device="cpu")


def save(path: Path, seed: int, size: int = 64, noise: float = 0.0) -> None:
    """A smooth coloured picture that `seed` decides, with optional noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels = pixels + noise * rng.standard_normal(pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path) -> Path:
    """restored (noise 4), reference (clean) and lq (noise 20, half size) with five pairs."""
    for index in range(5):
        save(tmp_path / "reference" / f"face{index}.png", index)
        save(
            tmp_path / "restored" / f"face{index}.jpg"
            if index == 0
            else tmp_path / "restored" / f"face{index}.png",
            index,
            noise=4,
        )
        save(tmp_path / "lq" / f"face{index}.png", index, size=32, noise=20)
    return tmp_path


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_folders_are_matched_by_stem_and_measured(folders) -> None:
    report = evaluate(folders / "restored", folders / "reference", options=FAST)
    assert [row.name for row in report.rows] == [f"face{i}" for i in range(5)]
    restored, clean = (
        np.asarray(Image.open(folders / side / "face3.png"), dtype=np.float64) / 255
        for side in ("restored", "reference")
    )
    expected = 10 * np.log10(1 / np.mean((restored - clean) ** 2))
    assert report.rows[3].restored["psnr"] == pytest.approx(expected, abs=1e-3)
    assert report.rows[3].input == {}
    assert not report.unmatched and not report.failed


def test_the_input_is_enlarged_and_measured_beside(folders) -> None:
    report = evaluate(folders / "restored", folders / "reference", lq=folders / "lq", options=FAST)
    line = report.summaries()[0].line("psnr")
    assert line is not None and line.input is not None and line.ratio is not None
    assert line.restored.mean > line.input.mean and line.improved == 1.0
    small = Image.open(folders / "lq" / "face2.png")
    enlarged = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float64)
    clean = np.asarray(Image.open(folders / "reference" / "face2.png"), dtype=np.float64)
    expected = 10 * np.log10(255**2 / np.mean((enlarged - clean) ** 2))
    assert report.rows[2].input["psnr"] == pytest.approx(
        expected, abs=0.3
    )  # Pillow rounds, and its a is the same


def test_unmatched_unreadable_and_wrongly_sized_images_are_reported_not_fatal(folders) -> None:
    save(folders / "restored" / "extra.png", 9)
    save(folders / "reference" / "lonely.png", 9)
    (folders / "lq" / "face4.png").unlink()
    (folders / "restored" / "face1.png").write_bytes(b"\x89PNG no")
    save(folders / "restored" / "face2.png", 2, size=48)
    report = evaluate(folders / "restored", folders / "reference", lq=folders / "lq", options=FAST)
    assert report.unmatched == {
        "restored": ["extra.png"], "reference": ["lonely.png"], "without lq": ["face4"],
    }  # fmt: skip
    assert set(report.failed) == {"face1", "face2"}
    assert "got 48×48 px, the reference has 64×64" in report.failed["face2"]
    assert [(row.name, bool(row.input)) for row in report.rows] == [
        ("face0", True),
        ("face3", True),
        ("face4", False),
    ]


def test_unusable_folders_are_named(folders, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other" / "x.png", 1)
    for call, message in (
        (lambda: evaluate(tmp_path / "nowhere", None), "is no folder"),
        (lambda: list_images(tmp_path / "empty"), "holds no images"),
        (lambda: pair(folders / "restored", tmp_path / "other"), "same stem"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    save(folders / "reference" / "face0.jpg", 0)
    with pytest.raises(ConfigError, match="share the stem 'face0'"):
        list_images(folders / "reference")


def test_without_references_only_metrics_that_need_none_run(folders, shared) -> None:
    save(folders / "big" / "a.png", 1, size=256, noise=6)
    options = EvaluationOptions(metrics=("psnr", "niqe"), weights=shared / "weights", device="cpu")
    report = evaluate(folders / "big", None, options=options)
    assert set(report.rows[0].restored) == {"niqe"}


def test_seeds_follow_from_name_and_global_seed() -> None:
    assert face_seed("a", 0) == face_seed("a", 0) >= 0
    assert len({face_seed("a", 0), face_seed("b", 0), face_seed("a", 1)}) == 3


@pytest.fixture
def faces(tmp_path) -> Path:
    for index in range(3):
        save(tmp_path / "faces" / f"f{index}.png", index, size=512 if index else 128)
    return tmp_path / "faces"


def soften(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1,) * 4, mode="reflect"), 3, 1)


def test_degrading_is_reproducible_and_independent_of_the_batch(faces) -> None:
    runs = [
        evaluate_degraded(
            faces, ["mild"], soften, options=EvaluationOptions(("psnr",), device="cpu", batch_size=size)
        )
        for size in (1, 3)
    ]
    first, second = ([(row.name, row.restored, row.input) for row in run.rows] for run in runs)
    assert first == second
    other = evaluate_degraded(
        faces, ["mild"], soften, options=EvaluationOptions(("psnr",), device="cpu", seed=1)
    )
    assert other.rows[0].input != runs[0].rows[0].input
    assert runs[0].settings["resized_faces"] == 1


def test_the_baseline_is_bicubic_whatever_the_model_gets(faces) -> None:
    seen: list[Tensor] = []

    def restore(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return images

    options = EvaluationOptions(("psnr",), device="cpu", limit=1)
    same = evaluate_degraded(faces, ["severe"], restore, options=options).rows[0]
    mixed = evaluate_degraded(faces, ["severe"], restore, enlarge="bilinear", options=options).rows[0]
    assert same.restored == same.input
    assert mixed.input == same.input and mixed.restored != mixed.input
    assert not torch.equal(seen[0], seen[1])


def test_the_clean_profile_gives_the_model_the_face_and_compares_with_a_jpeg(faces) -> None:
    seen: list[Tensor] = []

    def restore(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    row = evaluate_degraded(
        faces, ["identity"], restore, options=EvaluationOptions(("psnr",), device="cpu")
    ).rows[1]
    clean = torch.from_numpy(np.asarray(Image.open(faces / "f1.png")).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(seen[0][1], clean, atol=1e-6)
    assert row.restored["psnr"] == 100.0
    assert 30 < row.input["psnr"] < 60


def test_saved_images_give_the_same_numbers_as_the_run(faces, tmp_path) -> None:
    options = EvaluationOptions(("psnr", "colour_shift"), device="cpu")
    report = evaluate_degraded(faces, ["medium"], soften, save=tmp_path / "out", options=options)
    again = evaluate(tmp_path / "out/medium/restored", faces, lq=tmp_path / "out/medium/lq", options=options)
    assert again.failed == {"f0": again.failed["f0"]}  # 128 px, resized in the run
    for before, after in zip(report.rows[1:], again.rows, strict=True):
        assert after.restored == pytest.approx(before.restored, rel=1e-4)
        assert after.input == pytest.approx(before.input, rel=1e-4)


def test_faces_that_are_not_square_or_readable_fail_alone(faces) -> None:
    Image.new("RGB", (64, 32)).save(faces / "wide.png")
    (faces / "broken.png").write_bytes(b"no")
    report = evaluate_degraded(faces, ["mild"], soften, options=EvaluationOptions(("psnr",), device="cpu"))
    assert set(report.failed) == {"wide", "broken"} and "expected a square face crop" in report.failed["wide"]
    assert len(report.rows) == 3


def test_an_unknown_profile_or_option_is_refused_before_work(faces) -> None:
    with pytest.raises(ConfigError, match="unknown degradation profile 'sever'"):
        evaluate_degraded(faces, ["sever"], soften)
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate_degraded(faces, ["mild"], soften, options=EvaluationOptions(batch_size=0))
    with pytest.raises(ConfigError, match="--group-by needs --manifest"):
        evaluate_degraded(faces, ["mild"], soften, options=EvaluationOptions(group_by=("tone",)))


def test_command_writes_every_report(folders, capsys) -> None:
    manifest = folders / "m.csv"
    manifest.write_text("file,tone\n" + "\n".join(f"face{i}.png,{'a' if i < 2 else 'b'}" for i in range(5)))
    args = parse(
        folders / "restored", folders / "reference", "--lq", folders / "lq",
        "--metrics", "psnr,hf_energy,dists",
        "--weights", folders, "--out", folders / "new" / "out", "--manifest", manifest, "--group-by", "tone",
        "--sort", "hf_energy", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert run(args) == 0
    printed = capsys.readouterr().out
    assert "5 images" in printed and "tone=a: 2 images" in printed and "dists: vgg16-397923af.pth" in printed
    out = folders / "new" / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "gallery.html",
        "report.json",
        "report.txt",
    ]
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert len(document["images"]) == 5 and document["images"][0]["groups"] == {"tone": "a"}
    assert (out / "report.txt").read_text(encoding="utf-8").strip() == printed.strip()
    assert "http" not in (out / "gallery.html").read_text(encoding="utf-8")


def test_exit_code_tells_of_failed_images(folders) -> None:
    save(folders / "restored" / "face2.png", 2, size=48)
    assert run(parse(folders / "restored", folders / "reference", "--metrics", "psnr", "--quiet")) == 1


def test_bad_usage_is_one_line(folders) -> None:
    both = parse(folders / "restored", folders / "reference", "--degrade", "mild")
    with pytest.raises(ConfigError, match="give one folder of clean faces"):
        run(both)
    with pytest.raises(ConfigError, match="--save-images needs --out"):
        run(parse(folders / "reference", "--degrade", "mild", "--save-images"))
    (folders / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        run(parse(folders / "restored", folders / "reference", "--json", folders / "file" / "x.json"))
    with pytest.raises(ConfigError, match="--sort lmd: no such column"):
        run(
            parse(
                folders / "restored", folders / "reference", "--metrics", "psnr", "--sort", "lmd", "--quiet"
            )
        )
    for index in range(5):
        (folders / "reference" / f"face{index}.png").write_bytes(b"no")
    with pytest.raises(OSDFaceError, match="no image could be evaluated"):
        run(parse(folders / "restored", folders / "reference", "--metrics", "psnr", "--quiet"))


def test_a_real_model_is_loaded_for_degraded_faces(faces, monkeypatch) -> None:
    import osdface_core

    calls = {}

    class Pipeline:
        @classmethod
        def from_pretrained(cls, source, **options):
            calls["source"], calls["options"] = source, options
            return cls()

        def restore(self, images, **options):
            calls["restore"] = options
            return images

    monkeypatch.setattr(osdface_core, "OSDFacePipeline", Pipeline, raising=False)
    args = parse("--degrade", "mild", faces, "--model", "x.safetensors", "--strength", "0.5",
                 "--metrics", "psnr", "--device", "cpu", "--limit", "1", "--quiet")  # fmt: skip
    assert run(args) == 0
    assert calls["source"] == "x.safetensors" and calls["options"]["device"] == "cpu"
    assert calls["restore"] == {"strength": 0.5, "color_fix": "none"}


def test_names_are_checked_before_the_model_is_loaded(faces, monkeypatch) -> None:
    monkeypatch.setattr("osdface_trainer.evaluation.cli.restorer", lambda args: pytest.fail("loaded"))
    for words in (("--degrade", "sever"), ("--degrade", "mild", "--metrics", "lpip")):
        with pytest.raises(ConfigError, match="unknown"):
            run(parse(faces, *words))

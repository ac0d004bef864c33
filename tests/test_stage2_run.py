"""Stage 2 through the loop and the shipped recipe: stops and goes on, and runs on several processes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osdface_core import OSDFacePipeline
from osdface_trainer.logging import read_metrics
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import load_recipe
from tests import processes
from tests.tiny_training import write_files


def _sets(faces: Path, folder: Path, *extra: str) -> list[str]:
    return [
        f"data.train={faces}", f"data.val={faces}", f"run.dir={folder}", "run.report=false",
        "restorer.prompt=learned", "restorer.steps=4", "restorer.ema=0.5", *extra,
    ]  # fmt: skip


def test_run_that_was_stopped_ends_as_one_that_was_not(tiny_faces: Path, tmp_path: Path) -> None:
    through = train(load_recipe("smoke", _sets(tiny_faces, tmp_path / "a")), "restorer", quiet=True)
    assert through.reason == "done"
    stopping = _sets(tiny_faces, tmp_path / "b", "run.max_minutes=1e-9")
    reasons = [train(load_recipe("smoke", stopping), "restorer", quiet=True).reason for _ in range(4)]
    assert reasons == ["time", "time", "time", "done"]
    one, other = (load_file(tmp_path / name / "export.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if not name.startswith("vre."))
    rows = read_metrics(tmp_path / "a" / "restorer" / "metrics.jsonl")
    assert {row["kind"] for row in rows} == {"train", "val"}
    assert "severe/psnr_lq" in rows[-1] or "severe/psnr_lq" in rows[-2]
    pipeline = OSDFacePipeline.from_pretrained(tmp_path / "a" / "export.safetensors", device="cpu")
    assert pipeline.restore(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert pipeline.training["mode"] == "full"


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_equal_one(tiny_faces: Path, tmp_path: Path) -> None:
    """A small learning rate, because Adam makes full steps out of rounding where gradients are nearly 0."""
    files = tmp_path / "files"
    files.mkdir()
    write_files(files)
    same = (
        "restorer.batch_size=4", "restorer.accumulate=2", "restorer.lr=1e-5",
        "restorer.gan.diffusion.weight=0",
        "restorer.gan.patch.adaptive=true", "restorer.gan.patch.augment=false", "restorer.gradient_norms=2",
        "restorer.gan.patch.lr=1e-5", "run.validate_every=0", f"restorer.codec_init={files}",
    )  # fmt: skip
    names = ("one", "two")
    for count, name in enumerate(names, 1):
        (tmp_path / name).mkdir()
        arguments = processes.train("restorer", *_sets(tiny_faces, tmp_path / name, *same))
        processes.run(processes.command, tmp_path / name, arguments, processes=count)
    one, two = (load_file(tmp_path / name / "restorer" / "export.safetensors") for name in names)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 5e-5
    rows = [read_metrics(tmp_path / name / "restorer" / "metrics.jsonl") for name in names]
    for a, b in zip(*rows, strict=True):
        for key in ("total", "latent_mse", "gan/patch/d", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-3)

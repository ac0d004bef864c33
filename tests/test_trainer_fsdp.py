"""Both stages in shards (FSDP version 2) on two processes: results, resume, export."""

import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from osdface_core import OSDFacePipeline
from osdface_core.errors import ConfigError
from osdface_trainer import distributed
from osdface_trainer.logging import read_metrics
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import StageName, load_recipe
from tests import processes
from tests.tiny_training import write_files

CODES = "vre.quantize.embedding.weight"
VRE = (
    "vre.batch_size=4", "vre.accumulate=2", "vre.lr=1e-5", "vre.gan.norm=none", "vre.assoc.scope=image",
    "vre.model.codebook_size=16", "vre.clip=1e9", "run.report=false",
)  # fmt: skip
RESTORER = (
    "restorer.mode=lora", "restorer.lora.encoder=true",
    "restorer.projection.out=1024", "restorer.codec_init=", "restorer.steps=3",
    "restorer.batch_size=4", "restorer.accumulate=2", "restorer.lr=1e-5", "restorer.ema=0.5",
    "restorer.checkpoint_unet=true", "restorer.gradient_norms=2", "restorer.gan.diffusion.train=lora",
    "restorer.gan.diffusion.rank=4", "restorer.gan.diffusion.lr=1e-5", "restorer.gan.patch.lr=1e-5",
    "restorer.gan.patch.adaptive=true", "run.report=false",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


def run(shards: bool, stage: StageName, *sets: str) -> None:
    """Train a stage, in shards or as usual, and say how it ended."""
    os.environ.update(ACCELERATE_USE_FSDP=str(shards).lower(), FSDP_VERSION="2")
    print(train(load_recipe("smoke", sets), stage, quiet=True).reason)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def restorers(folder: Path, sets: tuple[str, ...]) -> None:
    """Train three times in one process: as usual, in shards to the first step, and on from there."""
    run(False, "restorer", f"run.dir={folder}/usual", *sets)
    run(True, "restorer", f"run.dir={folder}/shards", "run.max_minutes=1e-9", *sets)
    run(True, "restorer", f"run.dir={folder}/shards", *sets)


def gap(one: Path, other: Path, moved_codes: int = 0) -> float:
    """The largest difference of two exports, but for so many codes of the codebook."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    if moved_codes:
        codes = a.pop(CODES) - b.pop(CODES)
        assert (codes.abs().amax(1) > 6e-5).sum() <= moved_codes
    return max((a[key].float() - b[key].float()).abs().max().item() for key in a)


def assert_same_curves(one: Path, other: Path) -> None:
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, float) and "speed" not in key and "codes" not in key:
                assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def test_stage_1_in_shards_is_stage_1(tiny_faces: Path, tmp_path: Path) -> None:
    """With running means as the codebook, started on data and revived, and an adaptive discriminator."""
    sets = (f"data.train={tiny_faces}", f"data.val={tiny_faces}", *VRE)
    processes.run(run, tmp_path, False, "vre", f"run.dir={tmp_path}/usual", *sets)
    processes.run(run, tmp_path, True, "vre", f"run.dir={tmp_path}/shards", *sets, processes=2)
    usual, shards = tmp_path / "usual/vre", tmp_path / "shards/vre"
    # A feature that lies between two codes falls to either by rounding, which moves these two.
    assert gap(usual / "export.safetensors", shards / "export.safetensors", moved_codes=2) < 6e-5
    assert_same_curves(usual, shards)
    assert any("hq/gan_weight" in row for row in read_metrics(shards / "metrics.jsonl"))
    a, b = (load_file(f / "checkpoints/step_00000006/00.safetensors") for f in (usual, shards))
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)


def test_stage_2_in_shards_stops_goes_on_and_is_stage_2(tiny_faces: Path, tmp_path: Path) -> None:
    """LoRA on a frozen base, both discriminators with their noise: DDP draws the same. The export runs."""
    files = write_files(tmp_path / "files")
    sets = (
        f"data.train={tiny_faces}", f"data.val={tiny_faces}", f"restorer.base={files}/base",
        f"restorer.vre={files}/vre.safetensors", *RESTORER,
    )  # fmt: skip
    said = processes.run(restorers, tmp_path, tmp_path, sets, processes=2)
    assert [words.split() for words in said] == [["done", "time", "done"]] * 2
    usual, shards = tmp_path / "usual/restorer", tmp_path / "shards/restorer"
    assert gap(usual / "export.safetensors", shards / "export.safetensors") < 1e-5
    assert_same_curves(usual, shards)
    a, b = (load_file(f / "checkpoints/step_00000003/00.safetensors") for f in (usual, shards))
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
    assert any("gan_diffusion" in key for key in a) and any("ema.average" in key for key in a)
    # Adam would hide a wrong scale of the gradients, its means do not.
    for key in (key for key in a if key.endswith("exp_avg")):
        assert (a[key] - b[key]).norm() < 0.02 * a[key].norm() + 1e-6, key
    pipeline = OSDFacePipeline.from_pretrained(
        tmp_path / "shards/export.safetensors", base=files / "base", device="cpu", dtype="fp32"
    )
    restored = pipeline.restore(torch.rand(1, 3, 64, 64))
    assert restored.shape == (1, 3, 64, 64) and bool(restored.isfinite().all())


@pytest.mark.parametrize(
    ("version", "compiled", "words"), [("1", False, "fsdp_version: 2"), ("2", True, "run.compile")]
)
def test_what_cannot_be_sharded_is_said_in_one_line(
    version: str, compiled: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(ConfigError, match=words) as caught:
        distributed.check(compiled)
    assert "\n" not in str(caught.value)

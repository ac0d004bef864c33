"""Both stages in shards (FSDP version 2) on two processes: results, resume, export."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osdface_core import OSDFacePipeline
from osdface_core.errors import ConfigError
from osdface_trainer import distributed
from osdface_trainer.cli import main
from osdface_trainer.logging import read_metrics
from tests.tiny_training import write_files

ROOT = Path(__file__).resolve().parents[1]
CODES = "vre.quantize.embedding.weight"
VRE = (
    "vre.batch_size=4", "vre.accumulate=2", "vre.lr=1e-5", "vre.gan.norm=none", "vre.assoc.scope=image",
    "vre.model.codebook_size=16", "vre.clip=1e9", "run.report=false",
)  # fmt: skip
RESTORER = (
    "restorer.mode=lora", "restorer.projection.out=1024", "restorer.codec_init=", "restorer.steps=4",
    "restorer.batch_size=4", "restorer.accumulate=2", "restorer.lr=1e-5", "restorer.ema=0.5",
    "restorer.checkpoint_unet=true", "restorer.gradient_norms=2", "restorer.gan.diffusion.train=lora",
    "restorer.gan.diffusion.rank=4", "restorer.gan.diffusion.lr=1e-5", "restorer.gan.patch.lr=1e-5",
    "restorer.gan.patch.adaptive=true", "run.report=false",
)  # fmt: skip
# One pair of processes for all runs: starting them costs more than training does here.
RUNS = """
    import os, sys
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from osdface_trainer.recipe.config import load_recipe
    from osdface_trainer.loop import train

    def run(shards, stage, *sets):
        os.environ.update(ACCELERATE_USE_FSDP=str(shards).lower(), FSDP_VERSION="2")
        reason = train(load_recipe("smoke", [*places, *sets]), stage, quiet=True).reason
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return reason

    folder, faces, vre, restorer = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
    places = [f"data.train={faces}", f"data.val={faces}"]
    print(run(True, "vre", f"run.dir={folder}/fsdp_vre", *vre))
    print(run(False, "restorer", f"run.dir={folder}/ddp", *restorer))
    print(run(True, "restorer", f"run.dir={folder}/fsdp", "run.max_minutes=1e-9", *restorer))
    print(run(True, "restorer", f"run.dir={folder}/fsdp", *restorer))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


@pytest.fixture(scope="module")
def runs(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: one_vre, fsdp_vre, ddp, fsdp; files/ has the base model."""
    folder = tmp_path_factory.mktemp("runs")
    files = write_files(folder / "files")
    restorer = (*RESTORER, f"restorer.base={files}/base", f"restorer.vre={files}/vre.safetensors")
    places = (f"data.train={tiny_faces}", f"data.val={tiny_faces}", f"run.dir={folder}/one_vre")
    sets = [word for key in (*places, *VRE) for word in ("--set", key)]
    assert main(["train", "vre", "smoke", "--quiet", *sets]) == 0
    script = folder / "runs.py"
    script.write_text(textwrap.dedent(RUNS))
    arguments = [str(folder), str(tiny_faces), " ".join(VRE), " ".join(restorer)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(script), *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done") == 6 and done.stdout.count("time") == 2
    return folder


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


def test_stage_1_in_shards_is_stage_1(runs: Path) -> None:
    """With running means as the codebook, started on data and revived, and an adaptive discriminator."""
    one, shards = runs / "one_vre/vre", runs / "fsdp_vre/vre"
    # A feature that lies between two codes falls to either by rounding, which moves these two.
    assert gap(one / "export.safetensors", shards / "export.safetensors", moved_codes=2) < 6e-5
    assert_same_curves(one, shards)
    assert any("hq/gan_weight" in row for row in read_metrics(shards / "metrics.jsonl"))
    a, b = (load_file(f / "checkpoints/step_00000006/00.safetensors") for f in (one, shards))
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)


def test_stage_2_in_shards_stops_goes_on_and_is_stage_2(runs: Path) -> None:
    """LoRA on a frozen base, both discriminators with their noise: DDP draws the same."""
    ddp, shards = runs / "ddp/restorer", runs / "fsdp/restorer"
    assert gap(ddp / "export.safetensors", shards / "export.safetensors") < 1e-5
    assert_same_curves(ddp, shards)
    a, b = (load_file(f / "checkpoints/step_00000004/00.safetensors") for f in (ddp, shards))
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
    assert any("gan_diffusion" in key for key in a) and any("ema.average" in key for key in a)
    # Adam would hide a wrong scale of the gradients, its means do not.
    for key in (key for key in a if key.endswith("exp_avg")):
        assert (a[key] - b[key]).norm() < 0.02 * a[key].norm() + 1e-6, key


def test_export_of_shards_runs_in_the_pipeline(runs: Path) -> None:
    pipeline = OSDFacePipeline.from_pretrained(
        runs / "fsdp/export.safetensors", base=runs / "files/base", device="cpu", dtype="fp32"
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

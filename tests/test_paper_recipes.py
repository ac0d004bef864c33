"""`paper` and its variants: what differs, epochs, recipes that extend others, and that they train."""

import json
import os
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from osdface_core.checkpoint import read_header
from osdface_core.errors import ConfigError
from osdface_trainer.data.degrade_profiles import DUAL_STAGE
from osdface_trainer.logging import read_metrics
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import RECIPES, Recipe, for_processes, load_recipe, with_steps
from osdface_trainer.recipe.settings import differences
from tests.tiny_training import save_random_backbones, write_files

ROOT = Path(__file__).resolve().parents[1]
STRICT = {
    "degrade.jpeg": "real",
    "degrade.stages": None,
    "vre.hq.epochs": 50.0,
    "vre.lq.epochs": 10.0,
    "vre.assoc.epochs": 10.0,
    "vre.assoc.scope": "image",
    "vre.perceptual.net": "vgg19",
    "vre.perceptual.distance": "mse",
    "vre.gan.adaptive": False,
    "vre.gan.loss": "log",
    "restorer.prompt_start": "plain",
    "restorer.posterior": "sample",
}
NAMES = {"run.dir", "restorer.name"}
SMALL = [
    "data.size=64", "run.device=cpu", "run.precision=fp32", "run.log_every=1", "run.validate_every=0",
    "run.report=false", "run.tensorboard=false", "vre.batch_size=2", "vre.accumulate=1",
    "vre.model.resolution=64", "vre.model.base_channels=8", "vre.model.channel_multipliers=[1,1,2]",
    "vre.model.res_blocks=1", "vre.model.z_channels=16", "vre.model.codebook_size=96",
    "vre.model.norm_groups=4", "vre.gan.channels=8", "vre.gan.layers=2", "vre.hq.epochs=0.25",
    "vre.hq.disc_start=0", "vre.lq.epochs=0.25", "vre.assoc.epochs=0.25", "restorer.epochs=0.25",
    "restorer.checkpoint_unet=false", "restorer.checkpoint_decoder=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in globals."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_strict_differs_from_paper_in_these_keys_alone() -> None:
    usual, strict = asdict(load_recipe("paper")), asdict(load_recipe("paper_strict"))
    assert set(differences(usual, strict)) == STRICT.keys() | NAMES
    for key, value in STRICT.items():
        found = strict
        for name in key.split("."):
            found = found[name]
        assert value is None or found == value, key
    assert [stage["prob"] for stage in strict["degrade"]["stages"]] == [1.0, 1.0]
    text = (RECIPES / "paper.toml").read_text(encoding="utf-8")
    assert load_recipe("paper").degrade.degradation().stages == DUAL_STAGE.stages
    numbers = [line for line in text.splitlines() if "= " in line and "#" not in line]
    assert {line.split(" = ")[0] for line in numbers} <= {
        "dir", "name", "jpeg", "blur", "scale", "noise", "restore", "prob", "checkpoint_decoder"
    }, "every other number names its origin"  # fmt: skip


def test_epochs_become_steps() -> None:
    strict = load_recipe("paper_strict", ["restorer.epochs=4.286"])
    assert with_steps(strict, 70_000).vre.steps == load_recipe("paper").vre.steps
    few = with_steps(strict, 100)
    assert few.vre.steps == {"hq": 157, "lq": 32, "assoc": 32}, "50 * 100 / 32, rounded up"
    assert few.restorer.steps == 215 and few.restorer.epochs == few.vre.hq.epochs == 0
    assert with_steps(load_recipe("paper"), 100) == load_recipe("paper")


def test_a_recipe_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "smoke"\n[vre.hq]\nsteps = 9\n', encoding="utf-8")
    smoke, own = load_recipe("smoke"), load_recipe(tmp_path / "own.toml")
    hq = replace(smoke.vre.hq, steps=9)
    assert own == replace(smoke, vre=replace(smoke.vre, hq=hq))
    itself = tmp_path / "itself.toml"
    itself.write_text(f"extends = '{itself}'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(itself)


def test_strict_trains_both_stages(tiny_faces: Path, tmp_path: Path) -> None:
    files = write_files(tmp_path)
    save_random_backbones(files, "vgg19")

    def strict(*more: str) -> Recipe:
        places = [f"data.train={tiny_faces}", f"run.dir={tmp_path / 'strict'}"]
        return load_recipe("paper_strict", [*places, f"vre.perceptual.file={files}", *SMALL, *more])

    assert train(strict(), "vre", quiet=True).step == 3, "a quarter of eight faces, two at a time"
    rows = [r for r in read_metrics(tmp_path / "strict/vre/metrics.jsonl") if r["kind"] == "train"]
    assert rows[0]["hq/gan_weight"] == pytest.approx(0.8) and rows[0]["hq/gan"] < 0, "log of a probability"
    assert 0 < rows[-1]["assoc/loss"] < 10
    judges = [f"restorer.{name}.file={files}" for name in ("ea_dists", "identity")]
    again = strict(f"restorer.base={files / 'base'}", *judges)
    assert train(again, "restorer", quiet=True).step == 1
    row = next(r for r in read_metrics(tmp_path / "strict/restorer/metrics.jsonl") if r["kind"] == "train")
    assert all(torch.isfinite(torch.tensor(v)) for v in row.values() if isinstance(v, float))
    assert train(again, "restorer", resume=True, quiet=True).step == 1, "epochs are counted the same again"


def test_a_batch_of_each_process_is_that_of_all() -> None:
    eight = for_processes(load_recipe("paper_8gpu"), 8)
    assert eight.batch_size("restorer") == 16 and not eight.restorer.per_process
    assert eight.batch_size("vre") == 32 == 8 * 4 * eight.accumulate("vre")
    paper = load_recipe("paper")
    assert for_processes(paper, 8) is paper


# Both stages in one pair of processes, each with a home of its own, so that it shows what a process fetches.
BOTH = """
    import os, sys
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from osdface_trainer.cli import main

    for stage in ("vre", "restorer"):
        os.environ["HOME"] = f"{sys.argv[1]}/{stage}{os.environ['RANK']}"
        assert main(["train", stage, "paper_8gpu", "--quiet", *sys.argv[2:]]) == 0
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_the_commands_for_eight_gpus_and_streamed_shards(tiny_faces: Path, tmp_path: Path) -> None:
    """As documented, on two processes and with tiny networks."""
    files = write_files(tmp_path)
    places = {
        "data.train": index_of(sorted(tiny_faces.glob("*.png")), tmp_path / "far").as_uri(),
        "data.val": tiny_faces,
        "run.dir": tmp_path / "run",
        "vre.perceptual.file": files,
        "restorer.base": files / "base",
        "restorer.ea_dists.file": files,
        "restorer.identity.file": files,
    }
    sets = [f"{key}={value}" for key, value in places.items()] + SMALL
    words = [word for assignment in sets for word in ("--set", assignment)]
    script = tmp_path / "both.py"
    script.write_text(textwrap.dedent(BOTH))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), *words], capture_output=True, text=True, check=False,
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for stage, images in (("vre", 2), ("restorer", 4)):
        training = read_header(tmp_path / "run" / stage / "export.safetensors")[1]
        assert training["batch_size"] == images
        first, second = (
            {file.name for file in (tmp_path / f"{stage}{rank}" / ".cache/osdface/shards").glob("*.tar")}
            for rank in range(2)
        )
        assert len(first) == len(second) == 2 and not first & second, "a process fetches its own shards"


def index_of(faces: list[Path], folder: Path) -> Path:
    """Write faces as shards of two with their index."""
    folder.mkdir()
    shards = [faces[number : number + 2] for number in range(0, len(faces), 2)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for face in shard:
                archive.add(face, face.name)
    rows = [{"url": f"{number}.tar", "nsamples": len(shard)} for number, shard in enumerate(shards)]
    (folder / "index.json").write_text(json.dumps({"shardlist": rows}))
    return folder / "index.json"

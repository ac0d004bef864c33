"""`run.compile`: the same training, the same names; a missing compiler is one line."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from osdface_core import OSDFacePipeline
from osdface_core.errors import ConfigError
from osdface_trainer.distributed import make_accelerator
from osdface_trainer.logging import read_metrics
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import RunConfig, load_recipe


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in globals."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = r"no-such-compiler is not there.*CXX.*run\.compile = false"
    with pytest.raises(ConfigError, match=words) as caught:
        make_accelerator(RunConfig(device="cpu", compile=True))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("OSDFACE_SLOW" not in os.environ, reason="compiles for minutes: set OSDFACE_SLOW=1")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_compiled_stages_train_resume_and_export_as_plain_ones(tiny_faces: Path, tmp_path: Path) -> None:
    """Adam makes whole steps out of rounding where a gradient is nearly 0: a small learning rate.

    Which codes are revived, or averaged, hangs on choices that rounding can turn: the codebook learns by
    gradient here.
    """
    places = (f"data.train={tiny_faces}", "run.report=false", "run.validate_every=0")
    tables = ("vre", "restorer", "restorer.gan.patch", "restorer.gan.diffusion")
    rates = [f"{table}.lr=1e-5" for table in tables]
    rates += ["vre.codebook.revive_every=0", "vre.codebook.update=gradient"]
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        sets = [*places, *rates, f"run.dir={tmp_path / name}", f"run.compile={compiled}"]
        train(load_recipe("smoke", [*sets, "run.max_minutes=1e-9"]), "vre", quiet=True)
        for stage in ("vre", "restorer"):
            assert train(load_recipe("smoke", sets), stage, quiet=True).reason == "done"
    for stage in ("vre", "restorer"):
        one, other = (load_file(tmp_path / n / stage / "export.safetensors") for n in ("plain", "compiled"))
        assert one.keys() == other.keys() and not any("_orig_mod" in key for key in other)
        assert max((one[k] - other[k]).abs().max().item() for k in one) < 1e-4
        rows = [read_metrics(tmp_path / n / stage / "metrics.jsonl") for n in ("plain", "compiled")]
        for a, b in zip(*rows, strict=True):
            assert a.keys() == b.keys()
            for key in (key for key in a if "grad_norm" in key or key.endswith("total")):
                assert b[key] == pytest.approx(a[key], rel=1e-2), key
    pipeline = OSDFacePipeline.from_pretrained(tmp_path / "compiled/export.safetensors", device="cpu")
    assert pipeline.restore(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)

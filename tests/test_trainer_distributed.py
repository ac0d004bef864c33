"""Two processes (DDP on gloo) give the result of one at the same global batch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osdface_trainer.distributed import only_cpu
from osdface_trainer.logging import read_metrics
from tests import processes

# Batch norm sees the images of its own process only: off. Few codes: hardly a feature lies between two.
COMPARABLE = (
    "vre.batch_size=4", "vre.accumulate=2", "vre.lr=1e-5", "vre.gan.norm=none", "vre.assoc.scope=image",
    "vre.model.codebook_size=16", "run.report=false", "vre.clip=1e9",
)  # fmt: skip


def run(faces: Path, folder: Path, count: int, update: str) -> list[str]:
    folder.mkdir()
    places = (f"data.train={faces}", f"data.val={faces}", f"run.dir={folder}")
    device = f"run.device={'auto' if only_cpu() else 'cpu'}"  # without a GPU they find each other untold
    arguments = processes.train("vre", *places, *COMPARABLE, device, f"vre.codebook.update={update}")
    return processes.run(processes.command, folder, arguments, processes=count)


CODES = "vre.quantize.embedding.weight"
LAST = "vre/checkpoints/step_00000006/00.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_two_processes_equal_one(tiny_faces: Path, tmp_path: Path, update: str) -> None:
    run(tiny_faces, tmp_path / "one", 1, update)
    first, second = run(tiny_faces, tmp_path / "two", 2, update)
    assert "done at step 6 of 6" in first and "done" not in second  # one process speaks
    one, two = (load_file(tmp_path / name / "vre/export.safetensors") for name in ("one", "two"))
    codes = one.pop(CODES) - two.pop(CODES)
    # A feature that lies between two codes falls to either by rounding; that moves these two and no others.
    assert (codes.abs().amax(1) > 6e-5).sum() <= 2
    gaps = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    # Where a gradient is all but zero, its sign is rounding, and Adam turns it into a whole step of 1e-5.
    assert gaps.max() < 6e-5 and (gaps > 1e-5).float().mean() < 5e-3
    one, two = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for key in (key for key in one if key.endswith("exp_avg")):  # Adam hides a wrong scale, its means do not
        assert (one[key] - two[key]).norm() < 0.02 * one[key].norm() + 1e-6, key
    rows = [read_metrics(tmp_path / name / "vre/metrics.jsonl") for name in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in (
            "hq/l1",
            "lq/l1",
            "lq/vq",
            "assoc/loss",
            "hq/gan",
            "hq/disc",
            "lq/grad_norm",
            "hq/disc_grad_norm",
        ):
            assert (key in a) == (key in b) and a.get(key, 0) == pytest.approx(
                b.get(key, 0), rel=1e-3, abs=1e-5
            )

"""The tool that fits an encoder which starts at half size, on a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.checkpoint import load_checkpoint
from tests.tools import load_tool

tool = load_tool("half_encoder")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def test_the_new_encoder_learns_the_old_ones_latents(
    tiny_checkpoint: Path,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tool, "POOL", 4)
    errors = []
    for steps in ((1, 1), (60, 40)):
        out = tmp_path / f"{steps[0]}.safetensors"
        arguments = [str(faces), "--model", str(tiny_checkpoint), "--out", str(out)]
        assert tool.main([*arguments, "--hints", str(steps[0]), "--latents", str(steps[1])]) == 0
        old, new = (tool.codec_of(load_checkpoint(file)) for file in (tiny_checkpoint, out))
        signed = next(tool.windows(tool.degraded_faces(sorted(faces.iterdir()), 9), 4, 128, 9)) * 2 - 1
        with torch.inference_mode():
            errors.append(float(tool.relative_error(new.encode(signed), old.encode(signed))))
    assert errors[1] < errors[0] / 2
    before, after = load_checkpoint(tiny_checkpoint), load_checkpoint(out)
    assert after.config == replace(
        before.config, codec=replace(before.config.codec, encoder_blocks=(2, 3, 3))
    )
    kept = [name for name in before.tensors if not name.startswith("codec.encoder.")]
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in kept)
    restored = OSDFacePipeline.from_pretrained(out, device="cpu").restore(torch.rand(1, 3, 64, 64))
    assert restored.shape == (1, 3, 64, 64) and restored.isfinite().all()
    capsys.readouterr()
    assert tool.main([str(faces), "--model", str(out)]) == 2
    assert "no encoder of TAESD's four stages" in capsys.readouterr().err
    assert tool.main([str(faces), "--model", str(tiny_checkpoint), "--init", str(tiny_checkpoint)]) == 2
    assert "leave it out" in capsys.readouterr().err
    (empty := tmp_path / "empty").mkdir()
    assert tool.main([str(empty), "--model", str(tiny_checkpoint)]) == 2
    assert "empty" in capsys.readouterr().err

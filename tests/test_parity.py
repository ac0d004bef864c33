"""Numbers of the released inference code on synthetic weights (skipped without the reference data)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.cli.convert import convert_released
from osdface_core.one_step import alpha_bar, predict_x0

pytestmark = pytest.mark.shared
CASES = [
    ("folder", "face"),
    ("live", "face"),
    *(("converted", name) for name in ("gradient", "noise", "face")),
]
"""How the model is loaded, and which picture it restores."""


@pytest.fixture(scope="module")
def fixture(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    subprocess.run(
        [sys.executable, shared / "refs" / "make_fixture.py", folder], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def refs(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "refs" / "official_refs" / "refs.npz"))


@pytest.fixture(scope="module", params=["folder", "converted", "live"])
def pipeline(request: pytest.FixtureRequest, fixture: Path) -> OSDFacePipeline:
    source = fixture
    if request.param == "converted":
        source = fixture / "converted.safetensors"
        convert_released(fixture, source)
    lora = "live" if request.param == "live" else "merged"
    return OSDFacePipeline.from_pretrained(source, base=fixture / "sd", device="cpu", dtype="fp32", lora=lora)


def read(fixture: Path, name: str) -> torch.Tensor:
    array = np.asarray(Image.open(fixture / "inputs" / f"{name}.png").convert("RGB"), np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def largest(a: torch.Tensor, b: np.ndarray) -> float:
    return float((a.float().squeeze(0) - torch.from_numpy(b.astype(np.float32))).abs().max())


@pytest.mark.parametrize(("pipeline", "name"), CASES, indirect=["pipeline"])
def test_tokens_and_prompt(pipeline: OSDFacePipeline, fixture: Path, refs: dict, name: str) -> None:
    face = read(fixture, name)
    assert pipeline.tokens(face)[0].tolist() == refs[f"{name}/tokens"].tolist()
    stored = refs[f"{name}/embed"]
    assert largest(pipeline.encode_prompt(face), stored) < (5e-3 if stored.dtype == np.float16 else 1e-4)


@pytest.mark.parametrize(("pipeline", "name"), CASES, indirect=["pipeline"])
def test_every_stage(pipeline: OSDFacePipeline, fixture: Path, refs: dict, name: str) -> None:
    face = read(fixture, name)
    with torch.inference_mode():
        latent = pipeline.backbone.codec.encode(face * 2 - 1)
        eps = pipeline.backbone.predictor(latent, 399, pipeline.encode_prompt(face))
        x0 = predict_x0(latent, eps, alpha_bar(pipeline.config))
    assert largest(latent, refs[f"{name}/latent_mode"]) < 5e-3
    assert largest(eps, refs[f"{name}/model_pred"]) < 5e-3
    assert largest(x0, refs[f"{name}/x0"]) < 1e-2
    check_image(pipeline.restore(face), refs, name)


@pytest.mark.parametrize(("pipeline", "name"), CASES[-2:], indirect=["pipeline"])
def test_posterior_sample(pipeline: OSDFacePipeline, fixture: Path, refs: dict, name: str) -> None:
    generator = torch.Generator().manual_seed(114)
    image = pipeline.restore(read(fixture, name), posterior="sample", generator=generator)
    check_image(image, refs, f"{name}/sample")


def test_all_of_the_lora_acts(pipeline: OSDFacePipeline, fixture: Path, refs: dict) -> None:
    face = read(fixture, "face")
    with torch.inference_mode():
        latent = pipeline.backbone.codec.encode(face * 2 - 1)
        eps = pipeline.backbone.predictor(latent, 399, pipeline.encode_prompt(face))
    wrong = refs["face/unmerged_mixed_keys_current_diffusers/model_pred"]
    assert largest(eps, wrong) > 0.1


def check_image(image: torch.Tensor, refs: dict, name: str) -> None:
    pooled = torch.nn.functional.avg_pool2d(image, 8)
    assert largest(pooled, refs[f"{name}/image_pool8"]) < 2e-3
    assert largest(image[..., 232:280, 232:280], refs[f"{name}/image_crop48"]) < 2e-3


def test_sizes_of_the_released_code(fixture: Path) -> None:
    pipe = OSDFacePipeline.from_pretrained(fixture, base=fixture / "sd", device="cpu", dtype="fp32")
    assert pipe.restore(read(fixture, "nonsquare_500x380")).shape == (1, 3, 496, 376)
    assert pipe.restore(read(fixture, "nonsquare_448x576")).shape == (1, 3, 448, 576)


def test_a_batch_equals_singles(fixture: Path) -> None:
    pipe = OSDFacePipeline.from_pretrained(fixture, base=fixture / "sd", device="cpu", dtype="fp32")
    faces = torch.cat([read(fixture, n)[..., 64:448, 64:448] for n in ("face", "moire")])
    together = pipe.restore(faces, batch_size=2)
    apart = torch.cat([pipe.restore(f[None]) for f in faces])
    assert pipe.tokens(faces).equal(torch.cat([pipe.tokens(f[None]) for f in faces]))
    assert (together - apart).abs().max() < 1e-4

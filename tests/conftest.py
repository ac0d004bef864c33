"""Fixtures shared by the tests: where the reference data lies, and one thread per test process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    import numpy as np

    from osdface_core import OSDFacePipeline
    from osdface_core.config import OSDFaceConfig

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # tests run side by side: threads that wait for each other cost ten times their gain


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference numbers, faces and third-party weights; skips where it is absent."""
    folder = Path(os.environ.get("OSDFACE_SHARED", ROOT.parent / "shared"))
    if not (folder / "refs").is_dir():
        pytest.skip(f"no reference data at {folder}: set OSDFACE_SHARED to run this test")
    return folder


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight smooth 64 x 64 pictures that stand in for aligned faces."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("faces")
    y, x = np.mgrid[0:64, 0:64]
    noise = np.random.default_rng(0)
    for number in range(8):
        waves = [127 + 90 * np.sin((x * (number + 1) + y * (c + 1)) / 9 + c) for c in range(3)]
        pixels = np.stack(waves, -1) + noise.normal(0, 12, (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> OSDFaceConfig:
    """The embedded model's structure with a handful of channels: 512-px faces take a tenth of a second."""
    from osdface_core.config import CodecConfig, OSDFaceConfig, ProjectionConfig, UNetConfig, VREConfig

    return OSDFaceConfig(
        arch="full",
        name="tiny",
        lora=None,
        base="",
        vre=VREConfig(
            resolution=64, base_channels=8, channel_multipliers=(1, 1, 2), res_blocks=1,
            attention_resolutions=(16,), z_channels=16, codebook_size=128, norm_groups=4,
            input_range=(-1.0, 1.0),
        ),
        projection=ProjectionConfig(hidden=16, out=32),
        unet=UNetConfig((16, 16), (False, True), attention_head_dim=8, norm_groups=4),
        codec=CodecConfig(kind="tiny", channels=8, decoder_blocks=(1, 1, 1, 1), guide_channels=(4, 4, 8, 8)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tensors(tiny_config: OSDFaceConfig) -> dict[str, torch.Tensor]:
    """Random weights for `tiny_config`, under the names of a checkpoint; results depend on every part."""
    from osdface_core.models.full import build_full
    from osdface_core.models.vre import VRE, Projection

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        backbone: Any = build_full(tiny_config)
        parts: dict[str, Any] = {
            "vre": VRE(tiny_config.vre),
            "projection": Projection(tiny_config.vre.z_channels, tiny_config.projection),
            "unet": backbone.predictor.unet,
            "codec": backbone.codec,
        }
        for name, weight in parts["codec"].named_parameters():
            # PyTorch's own initialisation fades through the ReLUs: every picture would come out black.
            if weight.ndim == 4 and "fuse" not in name and "gate" not in name:
                torch.nn.init.kaiming_normal_(weight).mul_(0.8)
        last = parts["codec"].decoder.layers[-1]
        torch.nn.init.normal_(last.weight, std=0.02)
        torch.nn.init.constant_(last.bias, 0.5)
        torch.nn.init.normal_(parts["projection"].conv2.weight)
        torch.nn.init.normal_(parts["unet"].conv_out.weight, std=0.1)
    return {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_config: OSDFaceConfig,
    tiny_tensors: dict[str, torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A complete, self-contained checkpoint with random weights."""
    from osdface_core.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_checkpoint(path, tiny_tensors, tiny_config, {"recipe": "random", "steps": 0})
    return path


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint: Path) -> OSDFacePipeline:
    """The pipeline of `tiny_checkpoint`, float32 on the CPU, as PyTorch runs it. Do not change it."""
    from osdface_core import OSDFacePipeline

    return OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: OSDFacePipeline
) -> Callable[..., int]:
    """`osdface restore ARGS` in an empty folder, with the small random model already loaded."""
    from osdface_core.cli import restore
    from osdface_core.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restore, "load", lambda args: tiny_pipeline)
    return lambda *args: main(["restore", *map(str, args), "--detector", "mtcnn"])


@pytest.fixture(scope="session")
def portraits() -> np.ndarray:
    """A photo of two people, (300, 600, 3) uint8, from packages of the `demo` extra."""
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    from osdface_core.cli.demo import demo_photo

    return demo_photo()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium: Playwright's own, or the one that OSDFACE_CHROMIUM names; skips without one."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        try:
            path = os.environ.get("OSDFACE_CHROMIUM")
            chromium = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu"]
            )
        except api.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()

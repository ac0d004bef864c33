"""The slider `lora_strength`: nothing is read again, and the picture is that of models just loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from osdface_core.checkpoint import save_checkpoint
from osdface_core.config import OSDFaceConfig, ProjectionConfig
from osdface_core.models.vre import Projection
from osdface_core.options import RestoreOptions
from tests.comfy_stub import install, load_pack
from tests.test_base import build

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.host as host  # type: ignore[import-not-found]  # noqa: E402
import osdface_pack.nodes.models as models  # type: ignore[import-not-found]  # noqa: E402
import osdface_pack.nodes.photo as photo  # type: ignore[import-not-found]  # noqa: E402

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FILES = ("lora.safetensors", "small/")


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, tiny_config: Any, tiny_tensors: Any) -> Any:
    """A LoRA in models/osdface and a small Stable Diffusion 2.1 in models/diffusers."""
    fake = install(monkeypatch, tmp_path / "models")
    host.register_folder()
    fake.add_file("diffusers", "small/placeholder")
    for module, part in zip(build(), ("unet", "vae"), strict=True):
        module.save_pretrained(fake.models / "diffusers" / "small" / part)
    config = dataclasses.replace(OSDFaceConfig(), vre=tiny_config.vre, projection=ProjectionConfig(hidden=16))
    torch.manual_seed(0)
    tensors = {k: v for k, v in tiny_tensors.items() if k.startswith("vre.")}
    wide = Projection(config.vre.z_channels, config.projection).state_dict()
    tensors |= {f"projection.{k}": v for k, v in wide.items()}
    tensors |= {
        f"lora.{LAYER}.lora_A.weight": torch.randn(4, 128),
        f"lora.{LAYER}.lora_B.weight": torch.randn(128, 4),
    }
    save_checkpoint(fake.models / "osdface" / FILES[0], tensors, config)
    return fake


def picture(restorer: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    crops, prompts = torch.rand(1, 3, 64, 64, generator=draw), torch.randn(1, 77, 1024, generator=draw)
    return restorer.restore(crops, prompts, RestoreOptions())


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("the files were read again"))


def load(node: Any, strength: float) -> Any:
    return node.load(*FILES, lora_strength=strength, dtype="fp32")[0]


def test_load_restorer_reads_once(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, fresh = NODES["OSDFaceLoadRestorer"](), NODES["OSDFaceLoadRestorer"]()
    expected = picture(load(fresh, 0.3))
    full = load(node, 1.0)
    first = picture(full)
    forbid_reading(monkeypatch)
    low = load(node, 0.3)
    assert not torch.equal(first, expected) and torch.equal(picture(low), expected)
    assert torch.equal(picture(full), first), "what another node still holds has another strength now"
    assert low.managed is full.managed, "the modules are in memory twice"


def test_restore_photo_reads_once(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = host.checkpoint_path(FILES[0]), host.base_path(FILES[1])
    node, second = NODES["OSDFaceRestorePhoto"](), NODES["OSDFaceRestorePhoto"]()
    held = node._load(*paths, 1.0, "fp32")
    forbid_reading(monkeypatch)
    assert node._load(*paths, 0.3, "fp32") is held and second._load(*paths, 0.5, "fp32") is held
    asked: list[float] = []
    monkeypatch.setattr(photo.Restorer, "restore", lambda self, *a, **k: asked.append(self.strength))
    held.run(torch.rand(1, 3, 64, 64), RestoreOptions(), 0.3, lambda *_: None)
    assert asked == [0.3]


def test_a_base_that_cannot_be_mapped_is_read_again(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osdface_core.loading.map_base", lambda path: {})
    node = NODES["OSDFaceLoadRestorer"]()
    first = load(node, 1.0)
    again = load(node, 0.3)
    assert again.managed is not first.managed and not torch.equal(picture(first), picture(again))

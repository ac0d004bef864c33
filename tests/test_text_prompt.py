"""The text prompt: tags of files through a tiny CLIP; trained a few steps, exported, restored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.checkpoint import save_checkpoint
from osdface_core.cli.main import main
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.models import sd21
from osdface_core.models.text import TextPrompts, load_text, sidecar_tags
from osdface_trainer.data.faces import face_tags
from osdface_trainer.data.sources import list_faces
from osdface_trainer.loader import Loader
from osdface_trainer.recipe import settings
from osdface_trainer.recipe.config import Recipe
from osdface_trainer.weight_files import check_weights
from tests.tiny_training import UNET, VAE, faces, recipe_for, stage_for, write_files

LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]


def write_text_encoder(base: Path) -> Path:
    """A random CLIP of width 1024 that spells: tokenizer/ and text_encoder/ of a base."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (base / "tokenizer").mkdir(parents=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"})
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=1024, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    return base


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_files(tmp_path_factory.mktemp("text"))
    write_text_encoder(folder / "base")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd21, "UNET", UNET)
    monkeypatch.setattr(sd21, "VAE", VAE)


@pytest.fixture(scope="module")
def text(files: Path) -> TextPrompts:
    return load_text(files / "base")


def test_words_become_prompts_as_the_definition_says(text: TextPrompts) -> None:
    """Start, letters, end, padding to 77; the encoder's last hidden state."""
    prompts = text(["ab", "ab c"])
    assert prompts.shape == (2, 77, 1024)
    ends, pad = 2 * len(LETTERS), 0
    spelled = [ends, LETTERS.index("a"), len(LETTERS) + LETTERS.index("b"), ends + 1, *[pad] * 73]
    with torch.no_grad():
        wanted = text.encoder(torch.tensor([spelled]))[0]
    torch.testing.assert_close(prompts[:1], wanted)
    assert not torch.equal(prompts[0], prompts[1])
    assert text(["x" * 500]).shape == (1, 77, 1024)
    assert not any(p.requires_grad for p in text.parameters())


def test_what_is_no_text_encoder_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer/ in"):
        load_text(tmp_path)
    broken = write_text_encoder(tmp_path / "base")
    (broken / "text_encoder" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot read the text encoder"):
        load_text(broken)
    (broken / "text_encoder" / "model.safetensors").unlink()
    recipe = recipe_for(files, "lora", prompt="text", text_encoder=str(broken))
    problems = {one.key: str(one.problem) for one in check_weights(recipe, "restorer") if one.problem}
    assert "has no model.safetensors" in problems["restorer.text_encoder"]


def test_tags_come_from_a_manifest_or_from_beside_the_face(tmp_path: Path, files: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text(" woman,\n smiling ", encoding="utf-8")
    assert [face_tags(item) for item in list_faces(tmp_path)] == ["", "woman, smiling", ""]
    recipe = recipe_for(files, "lora", prompt="text")
    recipe = replace(recipe, data=replace(recipe.data, train=str(tmp_path), workers=1))
    recipe = replace(recipe, run=replace(recipe.run, dir=str(tmp_path / "run")))
    from accelerate import Accelerator

    batch = Loader(recipe, "restorer", Accelerator(cpu=True), progress=False).fixed(3)
    assert batch.tags == ("", "woman, smiling", "")
    (tmp_path / "manifest.csv").write_text("file,tags\na.png,man\nb.png,\nc.png,\n")
    assert [face_tags(item) for item in list_faces(tmp_path)] == ["man", "woman, smiling", ""]
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CheckpointError, match="no readable text"):
        sidecar_tags(tmp_path / "c.png")


def test_it_trains_exports_and_restores(files: Path, text: TextPrompts, tmp_path: Path, capsys: Any) -> None:
    stage = stage_for(recipe_for(files, "lora", prompt="text", text="face", vre=""))
    seen: list[torch.Tensor] = []
    stage.core.predictor.register_forward_hook(lambda _, given, out: seen.append(given[2]))
    batch = replace(faces(), tags=("woman, smiling", ""))
    before = {name: p.detach().clone() for name, p in stage.ema.parameters.items()}
    for step in range(3):
        scalars = stage.step(batch, step)
    assert all(value.isfinite() for value in scalars.values())
    assert any(not torch.equal(p, before[name]) for name, p in stage.ema.parameters.items())
    torch.testing.assert_close(seen[0], text(["woman, smiling", "face"]))
    assert torch.equal(stage.sample(replace(batch, tags=())), stage.sample(replace(batch, tags=("", ""))))

    config, tensors, provenance = stage.export()
    assert provenance["prompt"] == "text" and provenance["text"] == "face"
    torch.testing.assert_close(tensors["projection.vectors"], text(["face"])[0])
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, provenance)
    base = files / "base"
    model = tmp_path / "model.safetensors"
    pipeline = OSDFacePipeline.from_pretrained(model, base=base, device="cpu", dtype="fp32")
    plain = pipeline.restore(batch.lq)
    torch.testing.assert_close(plain, stage.restore(batch.lq).div(2).add(0.5).clamp(0, 1), atol=1e-4, rtol=0)
    named = pipeline.restore(batch.lq, prompt=text(["woman, smiling"]))
    assert not torch.equal(named, plain)

    Image.fromarray((batch.lq[0].permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / "face.png")
    given = ["restore", str(tmp_path / "face.png"), "--aligned", "--device", "cpu"]
    with_model = ["--model", str(model), "--base", str(base), "--dtype", "fp32"]

    def restored(name: str, *more: str) -> bytes:
        assert main([*given, *with_model, "-o", str(tmp_path / name), *more]) == 0, capsys.readouterr().err
        return Image.open(tmp_path / name).tobytes()

    without = restored("0.png")
    assert restored("1.png", "--tags", "sidecar") == without  # no .txt: the model's own text
    tagged = restored("2.png", "--tags", "woman, smiling")
    assert tagged != without
    (tmp_path / "face.txt").write_text("woman, smiling", encoding="utf-8")
    assert restored("3.png", "--tags", "sidecar") == tagged
    assert main([*given, "-o", str(tmp_path / "4.png"), "--tags", "man"]) == 2  # mini
    assert "no text prompt" in capsys.readouterr().err


def test_text_and_kept_encodings_exclude_each_other(files: Path) -> None:
    with pytest.raises(ConfigError, match="prompt text"):
        recipe_for(files, "lora", prompt="text", keep_latents=True)
    table = {"restorer": {"prompt": "texts"}}
    with pytest.raises(ConfigError):
        settings.build(Recipe, table, "")

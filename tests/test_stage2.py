"""Stage 2 on tiny random models: who learns, what resumes, what gets exported."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from osdface_core import OSDFacePipeline
from osdface_core.checkpoint import save_checkpoint
from osdface_core.cli.convert import convert_to_released
from osdface_core.config import LORA_TARGETS
from osdface_core.released import read_released
from osdface_trainer import snapshot
from osdface_trainer.restorer.generator import trained
from osdface_trainer.restorer.stage import build
from osdface_trainer.stage import to_unit
from tests.tiny_training import SIDE, faces, recipe_for, stage_for, write_files

MODES = ("lora", "full")
ALL_GANS = {
    "diffusion": {"weight": 0.1, "hidden": 8, "rank": 4},
    "feature": {"weight": 0.1, "width": 8},
    "patch": {"weight": 0.1, "width": 8, "layers": 2},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("restorer"))


def _gans(files: Path, mode: str) -> dict[str, Any]:
    diffusion = {**ALL_GANS["diffusion"], "train": "all" if mode == "full" else "lora"}
    return {**ALL_GANS, "diffusion": diffusion, "feature": {**ALL_GANS["feature"], "file": str(files)}}


def _with_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def _intended(files: Path, mode: str) -> set[str]:
    """Names that must learn, from untouched networks and the paper's words."""
    stage = stage_for(recipe_for(files, mode))
    names = {name for name, _ in stage.core.named_parameters()}
    projection = {name for name in names if name.startswith("prompt.projection.")}
    if mode == "full":
        parts = ("predictor.unet.", "codec.decoder.", "codec.guide.")
        return projection | {name for name in names if name.startswith(parts)}
    from diffusers import UNet2DConditionModel

    base: Any = UNet2DConditionModel.from_pretrained(files / "base" / "unet", low_cpu_mem_usage=False)
    adapted = [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and name.endswith(tuple(f".{t}" for t in LORA_TARGETS))
    ]
    assert len(adapted) > 20
    return projection | {
        f"predictor.unet.{name}.lora_{side}.default.weight" for name in adapted for side in "AB"
    }


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_exactly_the_intended_parameters(files: Path, mode: str) -> None:
    stage = stage_for(recipe_for(files, mode, gan=_gans(files, mode)))
    frozen = {name: p.clone() for name, p in stage.core.named_parameters() if not p.requires_grad}
    stage._backward(faces(), 0, stage.discriminators)
    assert _with_gradient(stage.core) == _intended(files, mode) == set(trained(stage.core))
    for step in range(2):
        stage.step(faces(), step)
    for name, parameter in stage.core.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_discriminators_learn_their_own_parts_only(files: Path, mode: str) -> None:
    stage = stage_for(recipe_for(files, mode, gan=_gans(files, mode)))
    _, inputs = stage._restore(faces(), 0, stage.discriminators)
    for discriminator in stage.discriminators:
        discriminator.generator_loss(inputs).backward(retain_graph=True)
        assert not _with_gradient(discriminator.net), f"{discriminator.name}: touched by the generator's loss"
    nn.Module.zero_grad(stage.core)
    for discriminator in stage.discriminators:
        discriminator.loss(inputs)[0].backward()
        names = _with_gradient(discriminator.net)
        assert not _with_gradient(stage.core), f"{discriminator.name}: its loss reaches the generator"
        if discriminator.name == "diffusion" and mode == "lora":
            assert names and all("lora_" in n or n.startswith("head.") for n in names)
            assert not any(".up_blocks." in n or ".conv_out." in n for n in names)
        elif discriminator.name == "feature":
            assert names and all(n.startswith("heads.") for n in names)
        else:
            assert names == {n for n, _ in discriminator.net.named_parameters()}


def test_shared_base_of_the_discriminator_costs_no_memory_twice(files: Path) -> None:
    stage = stage_for(recipe_for(files, "lora", gan={"diffusion": {"weight": 0.1}}))
    own = {p.data_ptr() for p in stage.core.predictor.parameters() if not p.requires_grad}
    judged = [p for p in stage.discriminators[0].net.parameters() if not p.requires_grad]
    assert judged and all(p.data_ptr() in own for p in judged)


def test_full_discriminator_begins_as_the_generator_of_that_moment(files: Path) -> None:
    gan = {"diffusion": {"weight": 0.1, "train": "all", "start": 2, "lr": 0.0}}
    stage = stage_for(recipe_for(files, "full", gan=gan))
    first = stage.step(faces(), 0)
    stage.step(faces(), 1)
    assert not any(name.startswith("gan/") for name in first)
    unet = {name: p.clone() for name, p in stage.core.predictor.unet.named_parameters()}
    assert "gan/diffusion/d" in stage.step(faces(), 2)
    judge: Any = stage.discriminators[0].net
    for name, parameter in judge.unet.named_parameters():
        assert torch.equal(parameter, unet[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_export_runs_in_the_pipeline_as_the_average_does(files: Path, mode: str, tmp_path: Path) -> None:
    stage = stage_for(recipe_for(files, mode))
    for step in range(3):
        stage.step(faces(), step)
    config, tensors, training = stage.export()
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, training)
    base = files / "base" if mode == "lora" else None
    file = tmp_path / "model.safetensors"
    pipeline = OSDFacePipeline.from_pretrained(file, base=base, device="cpu", dtype="fp32")
    lq = faces(seed=5).lq
    expected = to_unit(stage.restore(lq))
    assert torch.allclose(pipeline.restore(lq), expected, atol=2e-5)
    raw = to_unit(stage.core(lq * 2 - 1).image)
    assert not torch.allclose(raw, expected, atol=1e-4), "average and last weights are the same: no test"
    assert pipeline.training["losses"]["identity"] == 0.1


@pytest.mark.parametrize("prompt", ["learned", "none"])
def test_ablations_without_a_visual_prompt_export_too(files: Path, prompt: str, tmp_path: Path) -> None:
    stage = stage_for(recipe_for(files, "full", prompt=prompt, vre=""))
    learned = {name for name in trained(stage.core) if name.startswith("prompt.")}
    assert learned == ({"prompt.projection.vectors"} if prompt == "learned" else set())
    stage.step(faces(), 0)
    config, tensors, training = stage.export()
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, training)
    pipeline = OSDFacePipeline.from_pretrained(tmp_path / "model.safetensors", device="cpu", dtype="fp32")
    lq = faces(seed=5).lq
    assert torch.allclose(pipeline.restore(lq), to_unit(stage.restore(lq)), atol=2e-5)
    assert bool(pipeline.encode_prompt(lq).any()) is (prompt == "learned")


def test_full_model_goes_on_from_its_own_export(files: Path, tmp_path: Path) -> None:
    stage = stage_for(recipe_for(files, "full"))
    stage.step(faces(), 0)
    config, tensors, training = stage.export()
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, training)
    other = {"vre": "", "codec_init": "", "init": str(tmp_path / "model.safetensors")}
    again = stage_for(recipe_for(files, "full", **other), seed=3)
    lq = faces(seed=5).lq
    assert torch.allclose(again.restore(lq), stage.restore(lq), atol=1e-6)
    assert again.core.config == config and again.export()[2]["parent"] == "model.safetensors"


def test_released_layout_round_trip_and_fine_tuning_from_it(files: Path, tmp_path: Path) -> None:
    stage = stage_for(recipe_for(files, "lora", lora={"rank": 4, "alpha": 16.0}))
    for step in range(2):
        stage.step(faces(), step)
    config, tensors, training = stage.export()
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, training)
    convert_to_released(tmp_path / "model.safetensors", tmp_path / "released")
    back = read_released(tmp_path / "released")
    assert back.tensors.keys() == tensors.keys()
    assert all(torch.equal(back.tensors[name], value) for name, value in tensors.items())
    lq = faces(seed=5).lq
    again = stage_for(recipe_for(files, "lora", init=str(tmp_path / "model.safetensors"), vre=""), seed=3)
    assert torch.allclose(again.restore(lq), stage.restore(lq), atol=1e-5)
    assert set(trained(again.core)) == set(trained(stage.core))
    again.step(faces(), 0)


@pytest.mark.parametrize("mode", MODES)
def test_resumed_stage_goes_on_bit_for_bit(files: Path, mode: str) -> None:
    gans = _gans(files, mode)
    gans["patch"] = {**gans["patch"], "adaptive": True}
    recipe = recipe_for(files, mode, gan=gans, gradient_norms=2)
    accelerator = Accelerator(cpu=True)
    first, second = stage_for(recipe), stage_for(recipe, seed=7)

    def go(stage: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(100 + step)
            stage.step(faces(seed=step), step)

    go(first, range(3))
    state = _copied(snapshot.collect(first, accelerator))
    go(first, range(3, 5))
    snapshot.restore(second, accelerator, state)
    go(second, range(3, 5))
    ours, theirs = first.export()[1], second.export()[1]
    learned = [name for name in ours if not name.startswith("vre.")]
    assert all(torch.equal(ours[name], theirs[name]) for name in learned)
    assert not any("unet.conv_in" in name for name in state["modules"]["generator"]) or mode == "full"


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def test_micro_batches_give_the_whole_batch(files: Path) -> None:
    whole = stage_for(recipe_for(files, "full", lr=1e-4))
    parts = stage_for(recipe_for(files, "full", lr=1e-4, accumulate=2))
    a, b = whole.step(faces(), 0), parts.step(faces(), 0)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-6), name


def test_loss_goes_down_and_validation_is_scored(files: Path) -> None:
    recipe = recipe_for(files, "full", lr=2e-3, identity={"weight": 0.0, "file": str(files)})
    stage = stage_for(recipe)
    values = [float(stage.step(faces(), step)["total"]) for step in range(20)]
    assert min(values[-3:]) < 0.7 * values[0]
    strip = stage.sample(faces())
    assert strip.shape == (2, 3, SIDE, 3 * SIDE) and 0 <= float(strip.min()) <= float(strip.max()) <= 1


def test_recomputation_changes_no_gradient(files: Path) -> None:
    plain = stage_for(recipe_for(files, "lora"))
    saving = stage_for(recipe_for(files, "lora", checkpoint_unet=True, checkpoint_decoder=True))
    for stage in (plain, saving):
        stage._backward(faces(), 0, [])
    other = trained(saving.core)
    for name, parameter in trained(plain.core).items():
        assert torch.allclose(parameter.grad, other[name].grad, atol=1e-6), name  # type: ignore[arg-type]


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    """An accelerator of its own: its precision is fixed for the process otherwise."""
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(True)


def test_bf16_keeps_learned_weights_and_latents_in_float32(files: Path, bf16: Accelerator) -> None:
    recipe = recipe_for(files, "lora")
    recipe = replace(recipe, run=replace(recipe.run, precision="bf16"))
    stage = build(recipe, bf16)
    assert {p.dtype for p in trained(stage.core).values()} == {torch.float32}
    assert stage.core.predictor.unet.conv_in.weight.dtype == torch.bfloat16
    assert stage.core.prompt.vre.quant_conv.weight.dtype == torch.float32
    with stage.accelerator.autocast():
        restored = stage.generator(faces().lq * 2 - 1)
    assert restored.latent.dtype == restored.image.dtype == torch.float32
    assert all(torch.isfinite(v).all() for v in stage.step(faces(), 0).values())

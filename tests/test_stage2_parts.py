"""Parts of stage 2, each against an independent computation."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osdface_core.checkpoint import save_checkpoint
from osdface_core.config import ProjectionConfig
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.models import sd21
from osdface_core.models.codebook import Codebook
from osdface_core.models.identity_nets import IResNet
from osdface_core.models.vre import Projection
from osdface_core.one_step import predict_x0
from osdface_trainer.parameters import describe
from osdface_trainer.recipe import settings
from osdface_trainer.recipe.config import Recipe
from osdface_trainer.recipe.restorer import RestorerTraining
from osdface_trainer.restorer import benchmark
from osdface_trainer.restorer.generator import Windows, trained
from osdface_trainer.restorer.init import build_initial, start_at_unit_spread
from osdface_trainer.restorer.losses import Networks
from osdface_trainer.restorer.validation import Validation
from osdface_trainer.restorer.weight_average import WeightAverage
from osdface_trainer.stage import to_signed
from tests.tiny_training import SIDE, TINY_VRE, UNET, VAE, faces, recipe_for, stage_for, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("restorer"))


def test_average_follows_its_formula_and_steps_aside() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"w": weight}, 0.5)
    expected = torch.zeros(3)
    for n in range(12):
        with torch.no_grad():
            weight.copy_(torch.full((3,), float(n)))
        average.update()
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * n
    with average.applied():
        assert torch.allclose(weight, expected)
    assert torch.equal(weight.detach(), torch.full((3,), 11.0))
    other = WeightAverage({"w": nn.Parameter(torch.zeros(3))}, 0.5)
    other.load_state_dict(average.state_dict())
    with torch.no_grad():
        weight.fill_(3.0)
        other.parameters["w"].fill_(3.0)
    for one in (average, other):
        one.update()
    assert other.state_dict()["updates"] == 13
    assert torch.equal(other.state_dict()["average"]["w"], average.state_dict()["average"]["w"])


def test_average_is_the_one_that_grows_from_a_tenth() -> None:
    """Earlier runs began with a decay of 1/10 instead of 0; what is left of that is below rounding soon."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(100))
    average, former = WeightAverage({"w": weight}, 0.999), weight.detach().clone()
    for n in range(40):
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(100))
        average.update()
        former.lerp_(weight.detach(), 1 - min(0.999, (1 + n) / (10 + n)))
    torch.testing.assert_close(average.state_dict()["average"]["w"], former, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("codes", "hidden", "out"), [(512, 256, 1024), (128, 128, 256), (16, 8, 32)])
def test_a_fresh_prompt_says_which_codes_it_comes_from(codes: int, hidden: int, out: int) -> None:
    """Shapes of the paper, of the embedded model and of these tests, over a fresh codebook."""
    torch.manual_seed(0)
    embedding = Codebook(1024, codes).embedding.weight.detach()
    projection = Projection(codes, ProjectionConfig(hidden=hidden, out=out))
    start_at_unit_spread(projection, embedding)
    with torch.no_grad():
        inner = projection.conv1(embedding.t()[None])
        outer = projection.conv2(F.silu(inner))
        prompts = projection(embedding[None])[0]
    for layer in (inner, outer):
        assert float((layer - layer.mean(2, keepdim=True)).std()) == pytest.approx(1, abs=1e-3)
    constant = prompts.mean(0).square().sum() / prompts.square().sum(1).mean()
    assert constant < 0.25, "most of the prompt is the same for every face"
    assert 0.5 < float(prompts.square().mean().sqrt()) < 1, "a text encoder's output has about 1"


def test_stage_2_starts_with_such_a_prompt(files: Path) -> None:
    prompt = build_initial(recipe_for(files, "full")).generator.prompt
    prompts = prompt.projection(prompt.vre.quantize.embedding.weight[None])[0].detach()
    assert prompts.mean(0).square().sum() / prompts.square().sum(1).mean() < 0.25
    learned = build_initial(recipe_for(files, "full", prompt="learned", vre="")).generator.prompt
    assert 0.8 < float(learned(faces().lq).detach().square().mean().sqrt()) < 1.2


def test_average_with_decay_zero_is_the_weights() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, 0.0)
    average.update()
    with average.applied():
        assert torch.equal(weight.detach(), torch.ones(2))
    assert average.state_dict() == {"updates": 0, "average": {}}


def test_restored_latent_is_diffusers_ddim_x0(files: Path) -> None:
    """Eq. 2 with ε from the same UNet, against an independent implementation of the schedule."""
    from diffusers import DDIMScheduler

    stage = stage_for(recipe_for(files, "lora"))
    seen: dict[str, Any] = {}
    stage.core.predictor.register_forward_hook(
        lambda _, args, out: seen.update(latent=args[0], t=args[1], eps=out)
    )
    restored = stage.core(to_signed(faces().lq))
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    scheduler.set_timesteps(1000)
    expected: Any = scheduler.step(seen["eps"], seen["t"], seen["latent"])
    assert seen["t"] == 399
    assert torch.allclose(restored.latent, expected.pred_original_sample, rtol=1e-5, atol=1e-6)
    assert torch.allclose(predict_x0(seen["latent"], seen["eps"], 0.42609), restored.latent, atol=1e-4)


def test_window_shows_the_same_place_in_latent_and_picture() -> None:
    latent = torch.arange(64.0).view(1, 1, 8, 8)
    image = F.interpolate(latent, scale_factor=8)
    windows = Windows(((2, 3), (0, 4)), 4)
    assert windows.of_latent(latent).shape == (2, 1, 4, 4)
    assert torch.equal(F.interpolate(windows.of_latent(latent), scale_factor=8), windows.of_image(image))


def test_windows_come_as_often_as_asked_everywhere_and_again(files: Path) -> None:
    stage = stage_for(recipe_for(files, "full", crop={"side": 5, "share": 0.3}))
    windows = [stage.windows(step, (8, 8)) for step in range(1000)]
    found = [w for w in windows if w is not None]
    assert len(found) == 300
    tops, lefts = zip(*(w.corners[0] for w in found), strict=True)
    assert set(tops) == set(lefts) == {0, 1, 2, 3}
    assert windows[:50] == [stage.windows(step, (8, 8)) for step in range(50)]
    assert stage.windows(3, (5, 8)) is None, "a window as large as the face is the face"


def test_step_on_a_window_leaves_identity_out_and_fits_its_target(files: Path) -> None:
    stage = stage_for(recipe_for(files, "full", crop={"side": 4, "share": 1.0}))
    terms, inputs = stage._restore(faces(), 0, [])
    assert "identity" not in terms and "perceptual" in terms
    assert inputs.fake.shape == inputs.real.shape == (2, 3, 32, 32)
    windows = stage.windows(0, (8, 8))
    assert windows is not None
    assert torch.equal(inputs.real, windows.of_image(to_signed(faces().hq)))
    assert inputs.fake_latent.shape == (2, 4, 8, 8)


def test_several_windows_per_face_are_one_batch(files: Path) -> None:
    stage = stage_for(recipe_for(files, "full", crop={"side": 4, "share": 1.0, "count": 3}))
    windows = stage.windows(0, (8, 8))
    assert windows is not None and len(set(windows.corners)) > 1
    _, inputs = stage._restore(faces(), 0, [])
    assert inputs.fake.shape == (6, 3, 32, 32)
    hq = to_signed(faces().hq)
    top, left = (8 * cells for cells in windows.corners[1])
    assert torch.equal(inputs.real[3], hq[1, :, top : top + 32, left : left + 32])


def test_codec_alone_learns_on_the_latents_of_a_whole_model(files: Path, tmp_path: Path) -> None:
    whole = stage_for(recipe_for(files, "full"))
    config, tensors, training = whole.export()
    save_checkpoint(tmp_path / "whole.safetensors", tensors, config, training)
    recipe = recipe_for(
        files, "full", train="codec", init=str(tmp_path / "whole.safetensors"), gradient_norms=1, lr=1e-2,
        crop={"side": 4, "share": 1.0, "count": 2},
    )  # fmt: skip
    stage = stage_for(recipe)
    assert all(name.startswith(("codec.decoder.", "codec.guide.")) for name in trained(stage.core))
    before = {name: value.clone() for name, value in stage.core.state_dict().items()}
    scalars = stage.step(faces(), 0)
    moved = {name for name, value in stage.core.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved <= set(trained(stage.core))
    assert scalars["gradient/total"] > 0, "the losses' pulls are still measured"


def test_codec_alone_needs_a_whole_model(files: Path) -> None:
    with pytest.raises(ConfigError, match="whole model"):
        build_initial(recipe_for(files, "full", train="codec"))
    with pytest.raises(ConfigError, match="mode lora"):
        recipe_for(files, "lora", train="codec")


def test_adaptive_weight_balances_the_gradients(files: Path) -> None:
    patch = {"weight": 0.2, "adaptive": True, "ramp": 0, "width": 8, "layers": 2, "augment": False}
    stage = stage_for(recipe_for(files, "full", gan={"diffusion": {"weight": 0.0}, "patch": patch}))
    terms, inputs = stage._restore(faces(), 0, stage.discriminators)
    attack = stage.discriminators[0].generator_loss(inputs)
    total = stage.objectives.total(terms)
    stage.adaptive_weight.measure(inputs.fake_latent, {}, total, {"patch": attack})
    weighted = stage.adaptive_weight.weight(stage.discriminators[0], 0) * attack
    pull, push = (
        torch.autograd.grad(value, inputs.fake_latent, retain_graph=True)[0].norm()
        for value in (total, weighted)
    )
    assert float(push / pull) == pytest.approx(0.2, rel=1e-3)
    state, kept = stage.state_dict(), dict(stage.adaptive_weight.factors)
    state["balance"] = state.pop("adaptive_weight")  # as older versions wrote it
    stage.adaptive_weight.factors = {}
    stage.load_state_dict(state)
    assert stage.adaptive_weight.factors == kept


def test_discriminator_waits_then_ramps(files: Path) -> None:
    patch = {"weight": 0.5, "start": 3, "ramp": 4, "width": 8, "layers": 2}
    stage = stage_for(recipe_for(files, "full", gan={"diffusion": {"weight": 0.0}, "patch": patch}))
    discriminator = stage.discriminators[0]
    assert [discriminator.active(step) for step in (2, 3)] == [False, True]
    weights = [stage.adaptive_weight.weight(discriminator, step) for step in (3, 4, 6, 9)]
    assert weights == pytest.approx([0.125, 0.25, 0.5, 0.5])


def test_validation_scores_mean_what_they_say(files: Path) -> None:
    cfg = recipe_for(files, "full").restorer
    validation = Validation(cfg, Networks(cfg, torch.device("cpu")))
    batch = faces()
    nothing = validation(batch, to_signed)
    for profile in ("mild", "medium", "severe"):
        for metric in ("psnr", "perceptual", "identity"):
            assert torch.equal(nothing[f"{profile}/{metric}"], nothing[f"{profile}/{metric}_lq"])
    assert nothing["severe/psnr"] < nothing["mild/psnr"]
    mean = sum(float(nothing[f"{profile}/psnr"]) for profile in ("mild", "medium", "severe")) / 3
    assert float(nothing["psnr"]) == pytest.approx(mean, rel=1e-5)
    perfect = validation(batch, lambda _: to_signed(batch.hq))
    assert float(perfect["identity"]) == pytest.approx(1.0, abs=1e-5)
    assert float(perfect["perceptual"]) < 1e-6 and float(perfect["psnr"]) > 60
    assert torch.equal(perfect["mild/psnr_lq"], nothing["mild/psnr_lq"])


@pytest.mark.parametrize(
    ("mode", "change", "error", "words"),
    [
        ("lora", {"base": ""}, ConfigError, "restorer.base"),
        ("full", {"codec_init": ""}, ConfigError, "codec_init"),
        ("full", {"codec_init": "nowhere"}, CheckpointError, "taesd_encoder.safetensors"),
        ("full", {"vre": ""}, ConfigError, "osdface train vre"),
        ("full", {"vre": "nowhere.safetensors"}, CheckpointError, "nowhere.safetensors"),
        ("full", {"identity": {"file": "nowhere", "weight": 0.1}}, CheckpointError, "MobileFaceNet"),
        ("full", {"ea_dists": {"file": "nowhere", "weight": 0.1}}, CheckpointError, "vgg16-397923af.pth"),
        ("full", {"perceptual": {"file": "nowhere", "weight": 0.1}}, CheckpointError, "squeezenet1_0"),
    ],
)
def test_missing_files_are_named_in_one_line(
    files: Path, mode: str, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        stage_for(recipe_for(files, mode, **change))
    assert "\n" not in str(caught.value)


def test_vre_of_the_same_run_is_taken(files: Path, tmp_path: Path) -> None:
    recipe = recipe_for(files, "full", vre="")
    recipe = replace(recipe, run=replace(recipe.run, dir=str(tmp_path)))
    (tmp_path / "vre").mkdir()
    shutil.copy(files / "vre.safetensors", tmp_path / "vre" / "export.safetensors")
    own, named = (build_initial(r).generator.prompt.vre for r in (recipe, recipe_for(files, "full")))
    assert torch.equal(own.quantize.embedding.weight, named.quantize.embedding.weight)


def test_a_weight_of_zero_loads_nothing(files: Path) -> None:
    off = {"weight": 0.0, "file": "nowhere"}
    stage = stage_for(recipe_for(files, "full", identity=off, ea_dists=off, perceptual=off))
    assert set(stage.step(faces(), 0)) == {"mse", "latent_mse", "color", "total", "grad_norm"}


@pytest.mark.parametrize(
    "table",
    [
        {"batch_size": 3, "accumulate": 2},
        {"ema": 1.0},
        {"mode": "full"},
        {"mode": "full", "init": "x", "gan": {"diffusion": {"train": "lora"}}},
        {"crop": {"share": 2.0}},
        {"gan": {"diffusion": {"t_max": 2000}}},
        {"gan": {"patch": {"weight": -1.0}}},
        {"no_such_key": 1},
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings.build(RestorerTraining, table, "restorer")


def test_dry_run_counts_stable_diffusion() -> None:
    tables = {"run": {"precision": "bf16"}, "restorer": {"gan": {"patch": {"weight": 0.1}}}}
    text = describe(settings.build(Recipe, tables, ""), "restorer")
    counts = {line[:24].strip(): line[24:].replace(",", "").split() for line in text.splitlines()[2:8]}
    assert counts["codec"] == ["0", "83653863"]
    assert counts["UNet"][1] == "865910724" and 16e6 < int(counts["UNet"][0]) < 18e6
    assert float(counts["VRE"][1]) == pytest.approx(28.628e6 + 1024 * 512, rel=0.01)
    assert counts["patch discriminator"][1] == "0" and "150,000 steps" in text


def test_dry_run_takes_the_architecture_of_what_it_starts_from(files: Path, tmp_path: Path) -> None:
    recipe = recipe_for(files, "full", init=str(tmp_path / "model.safetensors"))
    recipe = replace(recipe, restorer=replace(recipe.restorer, unet=None))
    with pytest.raises(ConfigError, match=r"restorer\.init .*does not exist"):
        describe(recipe, "restorer")
    config, tensors, training = stage_for(recipe_for(files, "full")).export()
    save_checkpoint(tmp_path / "model.safetensors", tensors, config, training)
    size = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("unet."))
    assert f"{size:,}" in describe(recipe, "restorer")


def test_proof_times_every_part(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd21, "UNET", UNET)
    monkeypatch.setattr(sd21, "VAE", VAE)
    monkeypatch.setattr(benchmark, "IResNet", lambda _: IResNet((1, 1, 1, 1)))
    recipe = recipe_for(files, "lora", gan={"diffusion": {"weight": 0.1, "start": 99}})
    recipe = replace(recipe, vre=replace(recipe.vre, model=TINY_VRE))
    report = benchmark.measure(recipe, steps=1, warmup=0)
    parts = report["milliseconds by part, profiled"]
    assert 0 < report["milliseconds"] == pytest.approx(2000 / report["images per second"])
    inner = sum(value for name, value in parts.items() if name not in ("whole step", "projection"))
    assert 0 < inner <= parts["whole step"]
    named = {"VRE", "UNet", "codec decode", "diffusion: its own loss", "backward: discriminators"}
    assert named <= set(parts)
    assert report["size"] == SIDE and report["images"] == 2


def test_init_of_another_architecture_is_refused(files: Path, tmp_path: Path) -> None:
    from osdface_core.checkpoint import save_checkpoint

    config, tensors, training = stage_for(recipe_for(files, "full")).export()
    save_checkpoint(tmp_path / "full.safetensors", tensors, config, training)
    with pytest.raises(ConfigError, match="full"):
        build_initial(recipe_for(files, "lora", init=str(tmp_path / "full.safetensors")))

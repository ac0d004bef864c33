"""OSEDiff as the restorer: the VAE's encoder learns too, VSD pulls; trained, resumed, exported, restored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from osdface_core import OSDFacePipeline
from osdface_core.checkpoint import load_checkpoint, save_checkpoint
from osdface_core.cli.convert import convert_to_released
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.loading import load_model
from osdface_core.models.sd21 import load_base
from osdface_trainer import ablation, snapshot
from osdface_trainer.losses.score_distillation import TunedDiffusion, distillation_loss
from osdface_trainer.recipe.config import load_recipe
from osdface_trainer.recipe.settings import differences
from osdface_trainer.restorer.adapters import adapters_off
from osdface_trainer.restorer.generator import trained
from osdface_trainer.restorer.stage import RestorerStage
from osdface_trainer.stage import to_unit
from tests.test_stage2 import _copied
from tests.test_text_prompt import write_text_encoder
from tests.tiny_training import faces, recipe_for, stage_for, write_files

VSD = {"diffusion": {"weight": 0.0}, "vsd": {"weight": 1.0, "negative": "blurry"}}
OFF = {"weight": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("osediff"))


def osediff(files: Path, **more: Any) -> RestorerStage:
    table: dict[str, Any] = {
        "timestep": 999, "lora": {"rank": 4, "alpha": 8.0, "encoder": True}, "gan": VSD,
        "perceptual": {"net": "squeezenet", "file": str(files), "weight": 2.0},
        **dict.fromkeys(("ea_dists", "identity", "color"), OFF), "latent": {"mse": 0.0},
    }  # fmt: skip
    return stage_for(recipe_for(files, "lora", **{**table, **more}))


def go(stage: RestorerStage, steps: range) -> dict[str, torch.Tensor]:
    for step in steps:
        torch.manual_seed(100 + step)
        scalars = stage.step(faces(seed=step), step)
    return scalars


@pytest.fixture(scope="module")
def exported(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RestorerStage]:
    stage = osediff(files)
    go(stage, range(3))
    config, tensors, training = stage.export()
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    save_checkpoint(path, tensors, config, training)
    return path, stage


def test_every_layer_on_the_way_to_the_latent_learns_and_nothing_after_it(files: Path) -> None:
    from diffusers import AutoencoderKL

    stage = osediff(files)
    frozen = {name: p.clone() for name, p in stage.core.named_parameters() if not p.requires_grad}
    go(stage, range(2))
    vae: Any = AutoencoderKL.from_pretrained(files / "base" / "vae", low_cpu_mem_usage=False)
    weights = (name for name, p in vae.named_parameters() if p.ndim > 1)
    encoder = {n.removesuffix(".weight") for n in weights if n.startswith(("encoder.", "quant_conv."))}
    assert len(encoder) > 10
    expected = {f"codec.vae.{name}.lora_{side}.default.weight" for name in encoder for side in "AB"}
    learns = trained(stage.core)
    assert {name for name in learns if name.startswith("codec.")} == expected
    moved = [name for name in expected if "lora_B" in name and learns[name].detach().any()]
    assert len(moved) == len(encoder), "the losses reach each of them, through the UNet"
    assert all(torch.equal(p, frozen[n]) for n, p in stage.core.named_parameters() if n in frozen)


def test_the_clean_latent_is_the_bases(files: Path) -> None:
    """What the frozen decoder was made for, however far the encoder has gone."""
    stage = osediff(files)
    hq = faces().hq * 2 - 1
    before = stage.core.encode(hq)
    go(stage, range(2))
    torch.testing.assert_close(stage.core.encode_clean(hq), before)
    assert not torch.allclose(stage.core.encode(hq), before, atol=1e-4)
    assert stage.core.encode(hq).requires_grad and not stage.core.encode_clean(hq).requires_grad


def test_the_tuned_copy_learns_and_the_frozen_one_does_not(files: Path) -> None:
    stage = osediff(files)
    (vsd,) = stage.discriminators
    net: Any = vsd.net
    assert isinstance(net, TunedDiffusion)
    own = {p.data_ptr() for p in stage.core.predictor.parameters() if not p.requires_grad}
    shared = [p for p in net.parameters() if not p.requires_grad]
    assert shared and all(p.data_ptr() in own for p in shared), "the base is in memory once"
    draw = torch.Generator().manual_seed(5)
    latent, prompt = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 77, 1024, generator=draw)
    t, base = torch.tensor([300]), stage.core.predictor

    def answers() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            tuned = net(latent, t, prompt)
            with adapters_off(net):
                return tuned, net(latent, t, prompt)

    with torch.no_grad():
        bare = base(latent, 300, prompt)
    start = answers()
    scalars = go(stage, range(3))
    tuned, frozen = answers()
    torch.testing.assert_close(start[0], bare)
    torch.testing.assert_close(frozen, bare)
    assert not torch.equal(tuned, bare)
    assert scalars["gan/vsd/d"] > 0 and scalars["gan/vsd/g"] >= 0
    assert all(p.requires_grad == ("lora_" in name) for name, p in net.named_parameters())


def test_its_loss_reaches_the_generator_alone_and_the_copys_the_copy_alone(files: Path) -> None:
    stage = osediff(files)
    go(stage, range(2))
    _, inputs = stage._restore(faces(), 2, stage.discriminators)
    (vsd,) = stage.discriminators
    vsd.generator_loss(inputs).backward(retain_graph=True)
    assert all(p.grad is None for p in vsd.net.parameters())
    assert any(p.grad is not None and p.grad.any() for n, p in stage.core.named_parameters() if "codec." in n)
    nn.Module.zero_grad(stage.core)
    vsd.loss(inputs)[0].backward()
    assert all(p.grad is None for p in stage.core.parameters())
    assert all((p.grad is not None) == p.requires_grad for p in vsd.net.parameters())


def test_the_pull_goes_from_the_tuned_answer_to_the_frozen_one() -> None:
    """The gradient written out, sample by sample."""
    draw = torch.Generator().manual_seed(0)
    latent, tuned, frozen = (torch.randn(2, 4, 3, 3, generator=draw) for _ in range(3))
    latent.requires_grad_()
    distillation_loss(latent, tuned, frozen).backward()
    for one in range(2):
        distance = sum(abs(float(d)) for d in (latent.detach()[one] - frozen[one]).flatten()) / 36
        expected = 2 * (tuned[one] - frozen[one]) / distance / 72
        torch.testing.assert_close(latent.grad[one], expected)  # type: ignore[index]


def test_guidance_leads_away_from_the_negative_prompt(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert osediff(files).discriminators[0].net.negative is None
    assert "restorer.gan.vsd.cfg is not used: no tokenizer/ in" in capsys.readouterr().err
    place = str(write_text_encoder(tmp_path / "words"))
    net: Any = osediff(files, text_encoder=place).discriminators[0].net
    assert "vsd" not in capsys.readouterr().err and net.negative.shape == (1, 77, 1024)
    draw = torch.Generator().manual_seed(5)
    latent, prompt = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, 1024, generator=draw)
    t = torch.tensor([20, 900])
    with torch.no_grad():
        away, given = net(latent, t, net.negative.expand_as(prompt)), net(latent, t, prompt)
        torch.testing.assert_close(
            net.guided(latent, t, prompt), away + 7.5 * (given - away), atol=1e-4, rtol=0
        )


def test_a_resumed_run_goes_on_bit_for_bit(files: Path) -> None:
    accelerator = Accelerator(cpu=True)
    first, second = osediff(files), osediff(files)
    go(first, range(3))
    state = _copied(snapshot.collect(first, accelerator))
    go(first, range(3, 5))
    snapshot.restore(second, accelerator, state)
    go(second, range(3, 5))
    ours, theirs = (_copied(snapshot.collect(stage, accelerator)) for stage in (first, second))
    assert ours["modules"]["gan_vsd"].keys() == set(trained(first.discriminators[0].net))
    for part, tensors in ours["modules"].items():
        assert all(torch.equal(value, theirs["modules"][part][name]) for name, value in tensors.items())


@pytest.mark.parametrize("lora", ["merged", "live"])
@pytest.mark.parametrize("engine", ["eager", "native"])
def test_what_was_exported_restores_as_in_training(
    files: Path, exported: tuple[Path, RestorerStage], lora: Any, engine: Any
) -> None:
    if engine == "native":
        pytest.importorskip("osdface_cpu")
    path, stage = exported
    how: dict[str, Any] = {"base": files / "base", "device": "cpu", "dtype": "fp32", "engine": engine}
    pipeline = OSDFacePipeline.from_pretrained(path, lora=lora, **how)
    lq = faces(seed=5).lq
    expected = to_unit(stage.restore(lq))
    torch.testing.assert_close(pipeline.restore(lq), expected, atol=5e-4, rtol=0)
    assert pipeline.config.lora and pipeline.config.lora.encoder and pipeline.config.timestep == 999
    tensors = load_checkpoint(path).tensors
    without = {name: value for name, value in tensors.items() if not name.startswith("lora.vae.")}
    assert len(without) < len(tensors)
    save_checkpoint(path.with_name("half.safetensors"), without, pipeline.config)
    half = OSDFacePipeline.from_pretrained(path.with_name("half.safetensors"), **how)
    assert not torch.allclose(half.restore(lq), expected, atol=2e-3), "the encoder's part shows"


def test_the_dial_turns_both_parts(files: Path, exported: tuple[Path, RestorerStage]) -> None:
    """As the nodes turn it (merged) and as Python does (live), against a model loaded at that strength."""
    path, _ = exported
    base = files / "base"
    lq = faces(seed=5).lq
    how: dict[str, Any] = {"base": base, "device": "cpu", "dtype": "fp32", "engine": "eager"}
    wanted = OSDFacePipeline.from_pretrained(path, lora_scale=0.4, **how).restore(lq)
    live = OSDFacePipeline.from_pretrained(path, lora="live", **how)
    live.set_lora_scale(0.4)
    torch.testing.assert_close(live.restore(lq), wanted, atol=5e-4, rtol=0)
    loaded = load_model(path, base=base)
    assert loaded.lora is not None
    merged = OSDFacePipeline.from_pretrained(path, **how)
    merged.set_lora_scale(0.4, loaded.lora.merge)
    assert merged.restore(lq).equal(wanted)
    bare = OSDFacePipeline.from_pretrained(path, lora_scale=0.0, **how)
    fresh: Any = load_base(base).codec
    own: Any = bare.backbone.codec
    assert all(v.equal(own.state_dict()[n]) for n, v in fresh.state_dict().items())


def test_training_goes_on_from_its_own_export(files: Path, exported: tuple[Path, RestorerStage]) -> None:
    path, stage = exported
    again = osediff(files, init=str(path), vre="", lora={})
    lq = faces(seed=5).lq
    torch.testing.assert_close(again.restore(lq), stage.restore(lq), atol=1e-3, rtol=0)
    assert trained(again.core).keys() == trained(stage.core).keys()
    go(again, range(1))


def test_what_cannot_hold_it_says_so(
    files: Path, exported: tuple[Path, RestorerStage], tmp_path: Path
) -> None:
    path, _ = exported
    with pytest.raises(CheckpointError, match="adapts the VAE's encoder too, which the released layout"):
        convert_to_released(path, tmp_path / "released")
    assert not (tmp_path / "released").exists()
    with pytest.raises(CheckpointError, match="adapts the base's own encoder; leave `codec` taesd out"):
        load_model(path, base=files / "base", codec="taesd", codec_dir=files)
    with pytest.raises(ConfigError, match=r"lora\.encoder: set keep_latents to false"):
        osediff(files, keep_latents=True)
    with pytest.raises(ConfigError, match=r"lora\.encoder: set keep_latents to false"):
        osediff(files, init=str(path), vre="", lora={}, keep_latents=True)
    with pytest.raises(ConfigError, match=r"no frozen base: set gan\.vsd\.weight to 0"):
        recipe_for(files, "full", gan=VSD)
    with pytest.raises(ConfigError, match="t_min 980, t_max 20: expected"):
        recipe_for(files, "lora", gan={"vsd": {"t_min": 980, "t_max": 20}})


def test_the_recipes_have_the_published_numbers() -> None:
    text, vre = load_recipe("osediff"), load_recipe("osediff_vre")
    assert set(differences(asdict(text), asdict(vre))) == {"run.dir", "restorer.name", "restorer.prompt"}
    cfg = text.restorer
    assert (cfg.timestep, cfg.lora.rank, cfg.lora.encoder, cfg.lr) == (999, 4, True, 5e-5)
    assert (cfg.pixel.mse, cfg.perceptual.weight, cfg.gan.vsd.weight, cfg.gan.vsd.cfg) == (1, 2, 1, 7.5)
    assert max(cfg.gan.diffusion.weight, cfg.ea_dists.weight, cfg.identity.weight, cfg.latent.mse) == 0


def test_rows_of_the_ablation(files: Path) -> None:
    assert not any("OSEDiff" in name for name in ablation.variants("", "words"))
    rows = ablation.variants("", "words", base=True)
    cfg = {name: load_recipe("paper", rows[f"OSEDiff, {name}"]).restorer for name in ("VRE", "text")}
    published = load_recipe("osediff").restorer
    for own in cfg.values():
        assert own.gan.vsd.weight == published.gan.vsd.weight and own.timestep == published.timestep
        assert own.lora.encoder and own.perceptual.weight == published.perceptual.weight
        assert max(own.gan.diffusion.weight, own.ea_dists.weight, own.identity.weight) == 0
    assert cfg["VRE"].prompt == "vre" and cfg["text"].prompt == "text"

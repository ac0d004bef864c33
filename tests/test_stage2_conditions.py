"""What stage 2 is given besides the plain input: noise, clean tokens, dropped guides, previews."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from osdface_core import OSDFacePipeline
from osdface_core.checkpoint import save_checkpoint
from osdface_core.errors import ConfigError
from osdface_trainer.data.dataset import Batches, FaceDataset
from osdface_trainer.parameters import describe
from osdface_trainer.recipe.restorer import GuideTerm, PromptTerm
from osdface_trainer.restorer.conditioning import draw_conditions, draw_decoding
from osdface_trainer.restorer.generator import Generator
from osdface_trainer.restorer.latent_cache import Encoded, LatentCache
from osdface_trainer.restorer.preview import LatentPreview, small_picture
from osdface_trainer.restorer.stage import RestorerStage
from osdface_trainer.stage import to_signed
from tests.tiny_training import faces, recipe_for, stage_for, write_files

PLACED = {"hidden": 8, "out": 32, "positions": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("conditions"))


def stage(folder: Path, **restorer: Any) -> RestorerStage:
    return stage_for(recipe_for(folder, "full", **{"projection": PLACED, **restorer}))


def signed_pair() -> tuple[Tensor, Tensor]:
    batch = faces(3)
    return to_signed(batch.lq), to_signed(batch.hq)


def encode(folder: Path) -> Encoded:
    return LatentCache(stage(folder).core, None)(*signed_pair())


def snapshot(core: Generator) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in core.named_parameters()}


def changed(core: Generator, before: dict[str, Tensor]) -> set[str]:
    """Parts (first two words of the name) with a parameter that is not what it was."""
    moved = [name for name, value in core.named_parameters() if not value.equal(before[name])]
    return {".".join(name.split(".")[:2]) for name in moved}


def test_encodings_are_kept_by_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = stage(folder).core
    lq, hq = signed_pair()
    cache = LatentCache(core, tmp_path)
    plain, kept = LatentCache(core, None)(lq, hq), cache(lq, hq)
    assert torch.allclose(plain.lq, kept.lq, atol=2e-3 * float(plain.lq.abs().max()))
    assert kept.lq_tokens.codes.equal(plain.lq_tokens.codes)
    assert kept.hq_tokens.positions.equal(plain.hq_tokens.positions)
    assert len(list(tmp_path.rglob("*.npz"))) == 3

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(core, "encode", refuse)
        again = cache(lq.flip(0), hq.flip(0))
        assert again.hq.flip(0).equal(kept.hq)
        with pytest.raises(AssertionError, match="encoded again"):
            cache(lq, hq.flip(-1))
    with torch.no_grad():
        next(core.codec.encoder.parameters()).add_(0.1)
    assert LatentCache(core, tmp_path).folder != cache.folder, "other weights, other files"


def test_a_frozen_unet_runs_once_for_a_pair(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = codec_stage(folder)
    assert trained.encodings.restores
    core, (lq, hq) = trained.core, signed_pair()
    cache = LatentCache(core, tmp_path, restores=True)
    given = draw_conditions(PromptTerm(), cache(lq, hq), 0.0)
    with torch.no_grad():
        usual = core(lq)
    with monkeypatch.context() as patch:
        patch.setattr(core.predictor, "forward", lambda *_: pytest.fail("the UNet ran again"))
        with torch.no_grad():
            kept = core(lq, given=draw_conditions(PromptTerm(), cache(lq, hq), 0.0))
    assert kept.latent.equal(given.restored)
    assert torch.allclose(kept.latent, usual.latent, atol=2e-3 * float(usual.latent.abs().max()))
    with torch.no_grad():
        next(core.predictor.parameters()).add_(0.1)
    assert LatentCache(core, tmp_path, restores=True).folder != cache.folder, "another UNet, other files"
    assert not stage(folder).encodings.restores, "a UNet that learns"


def test_conditions(folder: Path) -> None:
    encoded = encode(folder)
    plain = draw_conditions(PromptTerm(), encoded, 0.0)
    assert plain.latent.equal(encoded.lq)
    assert plain.tokens.codes.equal(encoded.lq_tokens.codes)
    assert plain.prompted.eq(1).all()
    all_of_it = PromptTerm(dropout=1.0, noise=1.0, noise_range=(0.5, 0.5), clean_tokens=1.0)
    start = draw_conditions(all_of_it, encoded, 0.0)
    assert start.tokens.codes.equal(encoded.hq_tokens.codes)
    assert start.tokens.positions.equal(encoded.hq_tokens.positions)
    assert not start.prompted.any()
    noise = (start.latent - 0.5 * encoded.lq) / 0.5
    assert abs(float(noise.std()) - 1) < 0.2
    end = draw_conditions(all_of_it, encoded, 1.0)
    assert end.latent.equal(encoded.lq), "noise falls to noise_end"
    assert end.tokens.codes.equal(encoded.lq_tokens.codes), "clean tokens fall to none"


def test_decodings() -> None:
    clean = torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    drawn = draw_decoding(GuideTerm(dropout=0.25, partial=0.5, clean_latents=0.3), clean, 4000)
    fidelity = drawn.fidelity.flatten()
    assert abs(float((fidelity == 0).float().mean()) - 0.25) < 0.03
    assert abs(float((fidelity == 1).float().mean()) - 0.375) < 0.03
    assert abs(float(drawn.clean.float().mean()) - 0.3) < 0.03
    with pytest.raises(ConfigError, match=r"dropout is 1\.5"):
        GuideTerm(dropout=1.5)


def test_the_unet_alone_learns_and_the_preview_judges_after_its_fit(folder: Path) -> None:
    trained = stage(
        folder,
        train="unet",
        crop={"side": 4, "share": 1.0, "count": 2},
        prompting={"dropout": 0.2, "noise": 0.5, "clean_tokens": 0.5},
        guide={"dropout": 1.0},
        preview={"fit": 2, "l1": 1.0, "identity": 0.2},
    )
    assert trained.preview is not None
    before, start = snapshot(trained.core), [p.clone() for p in trained.preview.net.parameters()]
    for step in range(2):
        scalars = trained.step(faces(2), step)
        assert not scalars["preview_l1"], "no judgement while it is fitted"
    fitted = [p.clone() for p in trained.preview.net.parameters()]
    assert any(not a.equal(b) for a, b in zip(start, fitted, strict=True))
    scalars = trained.step(faces(2), 2)
    assert min(scalars[f"preview_{name}"] for name in ("l1", "identity")) > 0
    assert all(a.equal(b) for a, b in zip(fitted, trained.preview.net.parameters(), strict=True))
    assert changed(trained.core, before) == {"prompt.projection", "predictor.unet"}


def codec_stage(folder: Path) -> RestorerStage:
    """Build a stage in which the codec alone learns."""
    config, tensors, provenance = stage(folder).export()
    save_checkpoint(folder / "whole.safetensors", tensors, config, provenance)
    guide = {"dropout": 0.3, "partial": 0.3, "clean_latents": 0.3}
    init = str(folder / "whole.safetensors")
    return stage(folder, init=init, codec_init="", vre="", train="codec", guide=guide)


def test_the_codec_alone_learns_with_and_without_its_guide(folder: Path) -> None:
    assert not stage(folder).core.config.codec.fidelity_dial
    trained = codec_stage(folder)
    before = snapshot(trained.core)
    trained.step(faces(2), 0)
    assert changed(trained.core, before) == {"codec.decoder", "codec.guide"}
    assert trained.export()[0].codec.fidelity_dial


def test_each_part_learns_at_its_own_rate(folder: Path) -> None:
    trained = stage(folder, lr=1e-3, codec_lr=0.5, projection_lr=2.0, attention_lr=4.0, guide={"lr": 3.0})
    trained.step(faces(2), 0)
    names = {parameter: name for name, parameter in trained.core.named_parameters()}
    rates: dict[float, set[str]] = {}
    for group in trained.optimizer.param_groups:
        rates.setdefault(round(group["lr"] * 1e3, 6), set()).update(names[p] for p in group["params"])
    decoder, branch = (rates[factor] for factor in (0.5, 1.5))
    assert {name.split(".")[1] for name in decoder} == {"decoder"}
    assert {name.split(".")[1] for name in branch} == {"guide"}
    assert all(".attn2." in name for name in rates[4.0])
    assert {name.split(".")[0] for name in rates[2.0]} == {"prompt"}
    assert not any(".attn2." in name for name in rates[1.0])


def test_a_share_of_the_start_stays_in_what_is_exported(folder: Path) -> None:
    trained = stage(folder, lr=1e-3, ema=0.5, start_share=0.25)
    before = snapshot(trained.core)
    for step in range(3):
        trained.step(faces(2), step)
    learned = snapshot(trained.core)
    average = trained.ema.state_dict()["average"]
    continued = stage(folder, lr=1e-3, ema=0.5, start_share=0.25)
    continued.load_state_dict(trained.state_dict())
    for one in (trained, continued):
        with one.ema.applied():
            for name, parameter in one.ema.parameters.items():
                torch.testing.assert_close(
                    parameter.detach(), 0.25 * before[name] + 0.75 * average[name], rtol=1e-5, atol=1e-7
                )
    assert changed(trained.core, before) and not changed(trained.core, learned)


def test_a_fresh_prompt_and_codec_on_an_old_unet(folder: Path) -> None:
    old = stage(folder, projection={"hidden": 8, "out": 32})
    with torch.no_grad():
        for parameter in old.core.codec.decoder.parameters():
            parameter.add_(0.1)
    config, tensors, provenance = old.export()
    save_checkpoint(folder / "old.safetensors", tensors, config, provenance)
    changes = {"init": str(folder / "old.safetensors"), "vre": "", "prompting": {"fresh": True}}
    new = stage(folder, **changes)
    size = sum(parameter.numel() for parameter in new.core.prompt.projection.parameters())
    told = describe(recipe_for(folder, "full", **{"projection": PLACED, **changes}), "restorer")
    assert f"projection {size:,}" in " ".join(told.split())
    assert new.core.config.projection.positions == 256
    was, now = old.core.predictor.unet.state_dict(), new.core.predictor.unet.state_dict()
    renewed = {name.split(".")[-2] for name in now if not now[name].equal(was[name])}
    assert renewed == {"to_q", "to_k", "to_v"}
    assert not next(new.core.codec.decoder.parameters()).equal(next(old.core.codec.decoder.parameters()))


def test_what_it_exports_restores(folder: Path, tmp_path: Path) -> None:
    trained = stage(folder, prompting={"noise": 0.2}, keep_latents=True)
    trained.step(faces(2), 0)
    config, tensors, provenance = trained.export()
    save_checkpoint(tmp_path / "placed.safetensors", tensors, config, provenance)
    pipeline = OSDFacePipeline.from_pretrained(tmp_path / "placed.safetensors", device="cpu", dtype="fp32")
    assert pipeline.prompt_encoder is not None
    assert pipeline.prompt_encoder.projection.positions is not None
    batch = faces(2)
    with torch.inference_mode():
        wanted = trained.restore(batch.lq).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(pipeline.restore(batch.lq), wanted, atol=1e-4)


def test_a_preview_shows_the_place_of_its_latent() -> None:
    """A change in one latent cell changes the preview around the same place only."""
    torch.manual_seed(0)
    from osdface_core.config import CodecConfig
    from osdface_core.models.tiny_codec import TinyCodec

    codec = TinyCodec(CodecConfig(kind="tiny", channels=8, decoder_blocks=(1, 1, 1, 1)))
    net = LatentPreview(codec.decoder, 8)
    latent = torch.zeros(1, 4, 32, 32)
    moved = latent.clone()
    moved[..., 20, 5] = 3.0
    rows, columns = (net(moved) - net(latent)).abs().amax((0, 1)).nonzero(as_tuple=True)
    assert net(latent).shape == (1, 3, 64, 64)
    assert abs(float(rows.float().mean()) - 40.5) < 2
    assert abs(float(columns.float().mean()) - 10.5) < 2
    assert small_picture(torch.rand(1, 3, 256, 256)).shape == (1, 3, 64, 64)


def test_variants_repeat(tmp_path: Path, portraits: Any) -> None:
    from PIL import Image

    for number in range(2):
        Image.fromarray(portraits[:64, number * 8 : number * 8 + 64]).save(tmp_path / f"{number}.png")
    dataset = FaceDataset(tmp_path, 64, cache="cpu")
    batches = iter(Batches(dataset, 2, seed=3, variants=2))
    pairs = [
        pair
        for _ in range(40)
        for batch in [next(batches)]
        for pair in zip(batch.indices.tolist(), batch.seeds.tolist(), strict=True)
    ]
    assert len(set(pairs)) == 4, "two faces, two versions each"
    free = iter(Batches(dataset, 2, seed=3))
    seeds = [seed for _ in range(40) for seed in next(free).seeds.tolist()]
    assert len(set(seeds)) == 80

"""Stage 1: gradients reach exactly the intended parameters in every phase, and the losses add up."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from osdface_core.config import VREConfig
from osdface_core.models.vre import VRE
from osdface_trainer.losses.association import association_loss
from osdface_trainer.parameters import describe
from osdface_trainer.recipe.config import Recipe, RunConfig
from osdface_trainer.recipe.restorer import PerceptualTerm
from osdface_trainer.recipe.vre import (
    Association,
    Autoencoder,
    CodebookConfig,
    LowAutoencoder,
    PatchGAN,
    VRETraining,
)
from osdface_trainer.stage import FaceBatch, position
from osdface_trainer.vre import stage as vre_stage

MODEL = VREConfig(
    resolution=32, base_channels=8, channel_multipliers=(1, 2), res_blocks=1, attention_resolutions=(16,),
    z_channels=8, codebook_size=32, norm_groups=4, tokens=7, input_range=(-1.0, 1.0),
)  # fmt: skip
TRAINING = VRETraining(
    model=MODEL,
    batch_size=4,
    lr=1e-3,
    hq=Autoencoder(steps=2, disc_start=0.5),
    lq=LowAutoencoder(steps=2, disc_start=0.5),
    assoc=Association(steps=2, disc_start=0.5, scope="image"),
    perceptual=PerceptualTerm(weight=0.0),
    gan=PatchGAN(channels=8, layers=1, norm="none", loss="softplus"),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(training: VRETraining = TRAINING) -> vre_stage.VREStage:
    torch.manual_seed(0)
    recipe = Recipe(run=RunConfig(device="cpu"), vre=training)
    return vre_stage.build(recipe, Accelerator(cpu=True))


def batch(seed: int = 0, size: int = 4) -> FaceBatch:
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 4, generator=source)
    hq = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    lq = torch.nn.functional.avg_pool2d(hq, 5, 1, 2)
    return FaceBatch(hq, lq, torch.arange(size))


def weights(stage: vre_stage.VREStage) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in stage.modules.items()
        for key, value in module.named_parameters()
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def of(stage: vre_stage.VREStage, *modules: str) -> set[str]:
    """All parameters of modules; the released layout's unused `norm2` of attention blocks never learns."""
    names = {name for name in weights(stage) if name.split(".", 1)[0] in modules}
    return {name for name in names if "attn" not in name or "norm2" not in name}


PHASES = {
    0: ("hq",),
    1: ("hq", "hq_disc"),
    2: ("lq",),
    3: ("lq", "lq_disc"),
    4: ("hq", "lq"),
    5: ("hq", "lq", "hq_disc", "lq_disc"),
}


def test_every_phase_changes_exactly_its_own_parameters() -> None:
    stage = build(replace(TRAINING, lq=replace(TRAINING.lq, init_from_hq=False)))
    for step, modules in PHASES.items():
        before = weights(stage)
        stage.step(batch(step), step)
        assert changed(before, weights(stage)) == of(stage, *modules), f"step {step}"


def test_each_optimiser_holds_exactly_its_network() -> None:
    stage = build()
    for name, optimizer in stage.optimizers.items():
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        wanted = {id(p) for p in stage.modules[name].parameters() if p.requires_grad}
        assert held == wanted and held, name


def test_the_generators_adversarial_loss_leaves_no_gradient_in_the_discriminator() -> None:
    stage = build()
    branch = stage.branches["hq"]
    target = batch().hq * 2 - 1
    result = branch.reconstruct(target)
    branch.adversarial_loss(result).backward()
    assert all(p.grad is None for p in branch.disc.parameters())
    assert all(p.requires_grad for p in branch.disc.parameters())
    assert branch.last_layer.grad is not None and branch.last_layer.grad.abs().sum() > 0


def test_association_reaches_both_encoders_and_nothing_behind_them() -> None:
    stage = build()
    pairs = batch()
    features = [
        stage.branches[n].reconstruct(x * 2 - 1).features for n, x in (("hq", pairs.hq), ("lq", pairs.lq))
    ]
    association_loss(*features, scope="image").backward()
    for name in ("hq", "lq"):
        reached = {
            k for k, p in stage.modules[name].named_parameters() if p.grad is not None and p.grad.any()
        }
        assert {k.split(".")[1] for k in reached} == {"encoder", "quant_conv"}


def test_total_is_the_weighted_sum_of_its_terms() -> None:
    stage = build(replace(TRAINING, pixel=0.5, codebook_weight=3.0))
    scalars = stage.step(batch(), 1)
    expected = 0.5 * scalars["hq/l1"] + 3 * scalars["hq/vq"] + scalars["hq/gan_weight"] * scalars["hq/gan"]
    torch.testing.assert_close(scalars["hq/total"], expected)
    assert not any(value.requires_grad for value in scalars.values())


def test_lq_starts_from_hq_when_asked_and_with_its_own_optimiser() -> None:
    stage = build(replace(TRAINING, lr=0.0))  # the step itself moves nothing
    before = weights(stage)
    assert changed({k.replace("hq.", "lq.", 1): v for k, v in before.items() if k.startswith("hq.")}, before)
    stage.step(batch(), stage.first_step("lq"))
    after = weights(stage)
    for name in of(stage, "lq", "lq_disc"):
        assert torch.equal(after[name], after["hq" + name[2:]]), name
    moments = stage.optimizers["lq"].state_dict()["state"]
    assert moments and all(entry["step"].item() == 1 for entry in moments.values())


@pytest.mark.parametrize("phase", ["hq", "assoc"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(TRAINING, gan=PatchGAN(weight=0.0))
    step = {"hq": 0, "assoc": 4}[phase]
    gradients = []
    for accumulate in (1, 2):
        stage = build(replace(plain, accumulate=accumulate))
        seen: dict[str, Tensor] = {}
        for name in stage.branches:
            branch = stage.branches[name]

            def update(optimizer, module, factor, name=name, seen=seen):
                seen.update(
                    {
                        f"{name}.{k}": p.grad.clone()
                        for k, p in module.named_parameters()
                        if p.grad is not None
                    }
                )

            monkeypatch.setattr(branch, "update", update)
        stage.step(batch(), step)
        gradients.append(seen)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_codes_learn_by_running_means_outside_of_the_optimiser() -> None:
    stage = build(replace(TRAINING, codebook=CodebookConfig(update="ema", init="data", revive_every=1)))
    codes = stage.branches["hq"].core.quantize.embedding.weight
    assert not codes.requires_grad
    before = codes.detach().clone()
    stage.step(batch(), 0)
    assert not torch.equal(codes, before)
    fresh = build(replace(TRAINING, codebook=CodebookConfig(update="ema", init="data", revive_every=1)))
    fresh.load_state_dict(stage.state_dict())
    assert torch.equal(fresh.branches["hq"].core.quantize.embedding.weight, codes)


def test_a_few_steps_lower_the_loss_and_relate_the_branches() -> None:
    long = replace(
        TRAINING,
        hq=Autoencoder(40, 1.0),
        lq=LowAutoencoder(20, 1.0),
        assoc=Association(40, scope="image", disc_start=1.0),
    )
    stage = build(replace(long, lr=3e-3))
    logs = [stage.step(batch(step % 4), step) for step in range(stage.total_steps)]
    first, last = (sum(log["hq/l1"] for log in part) for part in (logs[:4], logs[36:40]))  # the same faces
    assert last < 0.85 * first
    assert logs[-1]["assoc/loss"] < 0.8 * logs[60]["assoc/loss"]
    unseen = stage.validate(batch(99))
    assert unseen["lq/l1"] < logs[40]["lq/l1"] and unseen["assoc/accuracy"] > 3 / 256  # chance: one in 256


def test_export_is_the_lq_encoder_and_loads_strictly() -> None:
    stage = build()
    stage.step(batch(), 2)
    config, tensors, facts = stage.export()
    assert config.vre == MODEL and facts["vre_branch"] == "lq"
    vre = VRE(config.vre)
    vre.load_state_dict({k.removeprefix("vre."): v for k, v in tensors.items()}, strict=True)
    signed = batch().lq * 2 - 1
    assert torch.equal(vre.tokens(signed).codes, stage.branches["lq"].core.tokens(signed).codes)


def test_samples_and_scores_leave_training_untouched() -> None:
    stage = build()
    before = weights(stage)
    strips = stage.sample(batch())
    assert strips.shape == (4, 3, 32, 128) and strips.min() >= 0 and strips.max() <= 1
    assert stage.validate(batch()) == {}  # nothing has learned yet
    assert not changed(before, weights(stage))
    stage.step(batch(), 4)
    before = weights(stage)
    assert {"hq/l1", "lq/l1", "lq/codes/distinct", "assoc/accuracy"} <= stage.validate(batch()).keys()
    assert not changed(before, weights(stage))
    assert all(branch.net.training for branch in stage.branches.values())


def test_larger_faces_are_seen_as_inference_sees_them() -> None:
    stage = build()
    large = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    pairs = FaceBatch(large, large, torch.arange(2))
    vre = stage.branches["lq"].core
    assert torch.equal(stage._target(pairs, "lq"), vre.prepare(large * 2 - 1))
    assert stage.step(FaceBatch(*(torch.cat([f, f]) for f in (large, large, pairs.index))), 4)
    assert stage.sample(pairs).shape == (2, 3, 32, 128)


def steps_of(phases: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    for step in range(sum(phases.values()) + 1):
        yield position(phases, step)


def test_position_walks_through_phases_and_skips_empty_ones() -> None:
    assert list(steps_of({"hq": 0, "lq": 2, "assoc": 1})) == [
        ("lq", 0, 2), ("lq", 1, 2), ("assoc", 0, 1), ("assoc", 0, 1),
    ]  # fmt: skip


def test_dry_run_counts_what_is_built_without_building_it() -> None:
    text = describe(Recipe(vre=TRAINING), "vre")
    stage = build()
    trained = sum(p.numel() for m in stage.modules.values() for p in m.parameters() if p.requires_grad)
    columns = [
        line.split() for line in text.splitlines() if " autoencoder " in line or " discriminator " in line
    ]
    assert sum(int(column[2].replace(",", "")) for column in columns) == trained
    assert text.startswith("vre: 6 steps (hq 2, lq 2, assoc 2)")
    assert f"moments: {16 * trained / 1e6:,.0f} MB" in text

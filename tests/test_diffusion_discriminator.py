"""The diffusion-feature discriminator on small UNets of Stable Diffusion's kind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from osdface_core.config import LORA_TARGETS
from osdface_trainer.losses.adversarial import discriminator_loss, frozen, generator_loss
from osdface_trainer.losses.diffusion_discriminator import (
    DiffusionDiscriminator,
    mid_features,
    trunk,
)
from osdface_trainer.restorer.adapters import add_lora

diffusers = pytest.importorskip("diffusers")


def _unet(cross: tuple[bool, ...] = (True, True, False)) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in cross),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(cross)),
        cross_attention_dim=24,
        attention_head_dim=(1, 2, 2),
        norm_num_groups=8,
        use_linear_projection=True,
    ).eval()


def _scheduler() -> Any:
    return diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def _inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(2, 4, 16, 16, generator=generator),
        "timesteps": torch.tensor([10, 900]),
        "prompt": torch.randn(2, 5, 24, generator=generator),
        "noise": torch.randn(2, 4, 16, 16, generator=generator),
    }


def test_mid_features_are_those_of_the_whole_unet() -> None:
    unet, x = _unet(), _inputs()
    seen = []
    handle = unet.mid_block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    unet(x["latents"], x["timesteps"], encoder_hidden_states=x["prompt"])
    handle.remove()
    for net in (unet, trunk(unet, share=True), trunk(unet, share=False)):
        found = mid_features(net, x["latents"], x["timesteps"], x["prompt"])
        assert found.shape == (2, 32, 4, 4)
        torch.testing.assert_close(found, seen[0], rtol=0, atol=0)


def test_logits_follow_from_noised_latents_and_the_head() -> None:
    net, x = DiffusionDiscriminator(_unet(), _scheduler(), hidden=8), _inputs()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = torch.cumprod(1 - betas, 0)[x["timesteps"]].view(2, 1, 1, 1)
    noised = alpha.sqrt() * x["latents"] + (1 - alpha).sqrt() * x["noise"]
    features = mid_features(net.unet, noised, x["timesteps"], x["prompt"])
    first, last = net.head[0], net.head[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    hidden = torch.einsum("oc,bchw->bohw", first.weight[:, :, 0, 0], features) + first.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
    hidden = hidden * hidden.sigmoid()
    expected = torch.einsum("oc,bchw->bohw", last.weight[:, :, 0, 0], hidden) + last.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
    logits = net(**x)
    assert logits.shape == (2, 1, 4, 4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_condition_time_and_noise_level_matter() -> None:
    net, x = DiffusionDiscriminator(_unet(), _scheduler()), _inputs()
    base = net(**x)
    for change in (
        {"prompt": x["prompt"] + 1},
        {"timesteps": x["timesteps"].flip(0)},
        {"noise": -x["noise"]},
    ):
        assert (net(**{**x, **change}) - base).abs().max() > 1e-4


def test_shared_trunk_costs_no_weights_and_has_its_own_lora() -> None:
    unet = _unet().requires_grad_(False)
    base = trunk(unet, share=True)
    own = {id(parameter) for parameter in unet.parameters()}
    assert all(id(parameter) in own for parameter in base.parameters())
    assert not any(name.startswith(("up_blocks", "conv_out")) for name, _ in base.named_parameters())
    before = unet(torch.ones(1, 4, 16, 16), 5, encoder_hidden_states=torch.ones(1, 5, 24)).sample
    add_lora(base, 4, 4.0, LORA_TARGETS)
    assert not any("lora" in name for name, _ in unet.named_parameters())
    lora = [(name, p) for name, p in base.named_parameters() if "lora_" in name]
    for name, parameter in lora:
        assert parameter.dtype == torch.float32
        nn.init.normal_(parameter) if "lora_B" in name else None
    after = unet(torch.ones(1, 4, 16, 16), 5, encoder_hidden_states=torch.ones(1, 5, 24)).sample
    assert torch.equal(before, after)  # the generator does not see the discriminator's adapter
    assert {name for name, p in base.named_parameters() if p.requires_grad} == {name for name, _ in lora}


def test_lora_starts_as_the_base_model() -> None:
    unet, x = _unet().requires_grad_(False), _inputs()
    base = trunk(unet, share=True)
    add_lora(base, 4, 4.0, LORA_TARGETS)
    plain = mid_features(unet, x["latents"], x["timesteps"], x["prompt"])
    torch.testing.assert_close(mid_features(base, x["latents"], x["timesteps"], x["prompt"]), plain)


def test_copied_trunk_trains_without_touching_the_generator() -> None:
    unet = _unet()
    own = {id(parameter) for parameter in unet.parameters()}
    copied = trunk(unet, share=False)
    assert not any(id(parameter) in own for parameter in copied.parameters())
    assert len(unet.up_blocks) == 3  # the original keeps its way up
    with pytest.raises(ValueError, match="before attaching"):
        add_lora(copied, 2, 2.0, ["to_q"])
        trunk(copied, share=False)


def _discriminator() -> tuple[Any, DiffusionDiscriminator]:
    unet = _unet().requires_grad_(False)
    base = trunk(unet, share=True)
    add_lora(base, 4, 4.0, LORA_TARGETS)
    return unet, DiffusionDiscriminator(base, _scheduler(), hidden=8)


def test_gradients_of_both_steps_reach_exactly_their_own_parameters() -> None:
    unet, net = _discriminator()
    x = _inputs()
    fake = x["latents"].clone().requires_grad_(True)
    prompt = x["prompt"].clone().requires_grad_(True)
    with frozen(net):
        generator_loss("softplus", net(fake, x["timesteps"], prompt, x["noise"])).backward()
    assert fake.grad is not None
    assert (fake.grad.abs().flatten(1).sum(1) > 0).all()
    assert prompt.grad is not None
    assert all(parameter.grad is None for parameter in net.parameters())

    both = {key: torch.cat([value, value + 0.1 if key == "latents" else value]) for key, value in x.items()}
    real, generated = net(**both).chunk(2)
    discriminator_loss("softplus", real, generated).backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    expected = {n for n, _ in net.named_parameters() if "lora_" in n or n.startswith("head.")}
    assert reached == expected == {n for n, p in net.named_parameters() if p.requires_grad}
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_logits_stay_float32_under_autocast() -> None:
    _, net = _discriminator()
    with torch.autocast("cpu", torch.bfloat16):
        low = net(**_inputs())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, net(**_inputs()), rtol=0.1, atol=0.02)


def test_learns_to_tell_latents_apart_through_noise() -> None:
    _, net = _discriminator()
    x = _inputs()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 5e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(16):
        noise = torch.randn(4, 4, 16, 16, generator=generator)
        steps = torch.randint(0, 200, (2,), generator=generator).repeat(2)
        latents = torch.cat([x["latents"], x["latents"] * 0.3])
        loss = discriminator_loss(
            "softplus", *net(latents, steps, x["prompt"].repeat(2, 1, 1), noise).chunk(2)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.6 * losses[0]


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    _, net = _discriminator()
    net.train()
    x, found = _inputs(), []
    for checkpointing in (False, True):
        if checkpointing:
            net.unet.enable_gradient_checkpointing()
        net.zero_grad(set_to_none=True)
        net(**x).sum().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_unet_without_attention_in_the_middle_of_the_way() -> None:
    net = DiffusionDiscriminator(_unet((False, True, True)), _scheduler())
    assert net(**_inputs()).shape == (2, 1, 4, 4)

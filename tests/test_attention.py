"""Attention maps: shares that sum to one, of an UNet that answers and is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.cli.attention import attention_maps, attention_picture, parse_tokens
from osdface_core.cli.main import main
from osdface_core.errors import ConfigError
from osdface_core.models.attention import AttentionRecord, recorded_attention


def processors(unet: Any) -> dict[str, int]:
    return {name: id(m.processor) for name, m in unet.named_modules() if hasattr(m, "processor")}


@pytest.fixture
def unet(tiny_pipeline: OSDFacePipeline) -> Any:
    return cast(Any, tiny_pipeline.backbone.predictor).unet


def test_tokens_sum_to_one_and_nothing_is_left_behind(tiny_pipeline: OSDFacePipeline, unet: Any) -> None:
    faces = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    before, own = tiny_pipeline.restore(faces), processors(unet)
    maps = attention_maps(tiny_pipeline, faces)
    assert maps.shape == (2, 77, 8, 12)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 8, 12))
    assert processors(unet) == own
    assert not unet._forward_pre_hooks
    assert torch.equal(tiny_pipeline.restore(faces), before)


def test_the_recorded_softmax_is_that_of_the_layer() -> None:
    """Against the definition, on a small UNet of Stable Diffusion 2.1's kind."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=1024,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True,  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    latent, prompt = torch.randn(2, 4, 6, 8), 3 * torch.randn(2, 77, 1024)
    order: list[tuple[Any, torch.Tensor]] = []
    with torch.no_grad():
        plain = unet(latent, 399, prompt).sample
        with recorded_attention(unet) as record:
            unet(2 * latent, 399, prompt)  # the next pass takes this one's place
            for layer in (m for name, m in unet.named_modules() if name.endswith("attn2")):
                layer.register_forward_pre_hook(lambda layer, given: order.append((layer, given[0])))
            assert torch.equal(unet(latent, 399, prompt).sample, plain)
        for (layer, hidden), found in zip(order, record.layers, strict=True):
            q, k = (split_heads(layer, x) for x in (layer.to_q(hidden), layer.to_k(prompt)))
            wanted = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1).mean(dim=1)
            torch.testing.assert_close(found, wanted)
    assert [layer.heads for layer, _ in order] == [2, 4, 2, 2]
    assert [found.shape[1] for found in record.layers] == [48, 12, 48, 48]


def split_heads(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)


def test_processors_return_after_an_error(unet: Any) -> None:
    own = processors(unet)
    with pytest.raises(RuntimeError), recorded_attention(unet):
        assert processors(unet) != own
        raise RuntimeError
    assert processors(unet) == own


def test_layers_of_several_sizes_are_averaged_at_the_latents() -> None:
    small = torch.zeros(1, 6, 2)  # 2 x 3 places
    small[..., 0] = 1
    large = torch.full((1, 20, 2), 0.5)  # 4 x 5
    maps = AttentionRecord([large, small]).maps(4, 5)
    assert maps.shape == (1, 2, 4, 5)
    assert torch.allclose(maps[:, 0], torch.tensor(0.75))
    assert torch.allclose(maps[:, 1], torch.tensor(0.25))


def test_a_picture_shows_the_face_and_where_a_token_is(tiny_pipeline: OSDFacePipeline) -> None:
    maps = torch.full((77, 8, 8), 1 / 77)
    maps[12, 4:, 4:] = 0.5
    picture = attention_picture(torch.full((3, 64, 64), 0.5), maps, [0, 12])
    assert picture.size == (960, 320)
    pixels = np.asarray(picture).astype(int)
    assert (pixels[:, :320] == 128).all()
    assert pixels[300, 940].min() > 170  # the lower right corner, white over grey
    assert pixels[100, 660].max() < 80
    with pytest.raises(ConfigError, match=r"--tokens 77: the prompt has 77"):
        attention_picture(torch.rand(3, 64, 64), maps, [77])


def test_other_engines_are_refused(tiny_checkpoint: Path) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", engine="compile")
    with pytest.raises(ConfigError, match="engine eager"):
        attention_maps(pipeline, torch.rand(1, 3, 64, 64))


def test_the_command_line_writes_a_picture_per_face(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "face.png")
    given = "face.png", "-o", "out.png", "--aligned"
    assert run(*given, "--attention-maps", "maps", "--tokens", "0,12,40") == 0
    with Image.open("maps/out_face0_attention.png") as picture:
        assert picture.size == (1280, 320)
    assert run(*given, "--attention-maps", "maps", "--tokens", "all") == 2
    assert run(*given, "--attention-maps", "maps", "--engine", "graphs") == 2
    capsys.readouterr()
    assert run(*given, "--attention-maps", "maps", "--tokens", "0,77") == 2
    assert "--tokens 77: the prompt has 77 tokens, 0 to 76" in capsys.readouterr().err
    assert run(*given, "--tokens", "3") == 0
    assert "--tokens not used" in capsys.readouterr().err
    assert main(["restore", "film.mp4", "-o", "out.mp4", "--attention-maps", "maps"]) == 2
    assert "--attention-maps is for photos" in capsys.readouterr().err


def test_a_photo_without_a_face_has_no_maps(run: Callable[..., int], tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "teal").save(tmp_path / "wall.png")
    assert run("wall.png", "-o", "out.png", "--detector", "mtcnn", "--attention-maps", "maps") == 0
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open("wall.png")))
    assert not list(tmp_path.glob("maps/*"))


def test_tokens_are_numbers() -> None:
    assert parse_tokens("0,12, 40-42") == [0, 12, 40, 41, 42]
    with pytest.raises(ConfigError, match="expected numbers"):
        parse_tokens("nose")

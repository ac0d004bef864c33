"""MODEL and VAE sockets as the core's protocols, on a stand-in that does ComfyUI's arithmetic; LoRA files."""

import types

import pytest
import torch
from safetensors.torch import save_file

from osdface_core.config import OSDFaceConfig
from osdface_core.one_step import alpha_bar, predict_x0
from tests.comfy_stub import install, load_pack
from tests.tiny_model import write_tiny

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.host as host  # type: ignore[import-not-found]  # noqa: E402
import osdface_pack.nodes.lora as lora  # type: ignore[import-not-found]  # noqa: E402
import osdface_pack.nodes.native as native  # type: ignore[import-not-found]  # noqa: E402

SCALE = 0.18215


@pytest.fixture(autouse=True)
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


def noise(latent, step, prompt):
    """Any function of all three inputs will do as a UNet."""
    return torch.sin(latent * 3) * (1 + step / 1000).view(-1, 1, 1, 1) + prompt.mean(dim=(1, 2)).view(
        -1, 1, 1, 1
    )


class Model:
    """ComfyUI's ModelPatcher and BaseModel in one: scales the input, returns x - sigma * eps."""

    load_device = torch.device("cpu")

    def __init__(self, kind="EPS", width=1024):
        self.model = self
        self.model_type = types.SimpleNamespace(name=kind)
        self.model_config = types.SimpleNamespace(unet_config={"context_dim": width})
        self.model_options = {"transformer_options": {"patches": "kept"}}
        self.patches = {}
        config = OSDFaceConfig()
        bars = torch.tensor([alpha_bar(config, t) for t in range(1000)])
        self.sigmas = ((1 - bars) / bars).sqrt()
        self.calls = []

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self

    def memory_required(self, shape):
        return 10.0 * shape[0]

    def pre_run(self):
        self.calls.append("pre_run")

    def cleanup(self):
        self.calls.append("cleanup")

    def apply_model(self, x, t, c_crossattn, transformer_options):
        self.calls.append(transformer_options)
        step = (self.sigmas[None] - t[:, None]).abs().argmin(dim=1).float()
        latent = x / (1 + t.view(-1, 1, 1, 1) ** 2).sqrt()
        return x - t.view(-1, 1, 1, 1) * noise(latent, step, c_crossattn)

    def process_latent_in(self, latent):
        return latent * SCALE

    def process_latent_out(self, latent):
        return latent / SCALE


class Vae:
    """ComfyUI's VAE between BHWC pictures in [0, 1] and unscaled latents: an 8x8 mean per colour."""

    def encode(self, pixels):
        assert pixels.shape[-1] == 3 and pixels.min() >= 0 and pixels.max() <= 1
        means = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2) * 2 - 1, 8)
        return torch.cat([means, means[:, :1]], dim=1)

    def decode(self, latent):
        return (latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1) + 1) / 2


@pytest.mark.parametrize("step", [0, 1, 200, 399, 999])
def test_noise_is_recovered_exactly(step):
    model = Model()
    latent, prompt = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 1024)
    eps = native.SocketPredictor(model)(latent, step, prompt)
    assert torch.allclose(eps, noise(latent, torch.full((3,), float(step)), prompt), atol=1e-4)
    assert [c for c in model.calls if isinstance(c, str)] == ["pre_run", "cleanup"]


def test_model_goes_through_the_memory_manager_with_its_options(comfy):
    model = Model()
    native.SocketPredictor(model)(torch.randn(2, 4, 8, 8), 399, torch.randn(2, 77, 1024))
    patchers, activations, whole = comfy.loads[0]
    assert patchers == [model] and activations == 20.0 and not whole, "partial loading has to stay possible"
    assert model.calls[1]["patches"] == "kept"


def test_a_function_wrapper_on_the_model_is_called():
    model, seen = Model(), []

    def wrapper(apply_model, call):
        seen.append(call["timestep"])
        return apply_model(call["input"], call["timestep"], **call["c"])

    model.model_options["model_function_wrapper"] = wrapper
    latent, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 1024)
    eps = native.SocketPredictor(model)(latent, 399, prompt)
    assert len(seen) == 1
    assert torch.allclose(eps, noise(latent, torch.tensor([399.0]), prompt), atol=1e-4)


def test_codec_scales_as_the_core_expects():
    codec = native.SocketCodec(Vae(), Model())
    signed = torch.rand(2, 3, 20, 27) * 2 - 1
    latent = codec.encode(signed)
    assert latent.shape == (2, 4, 2, 3), "sides are rounded down to multiples of 8"
    assert torch.allclose(
        latent[:, :3], torch.nn.functional.avg_pool2d(signed[..., :16, :24], 8) * SCALE, atol=1e-6
    )
    back = codec.decode(latent)
    assert torch.allclose(back[..., ::8, ::8], latent[:, :3] / SCALE, atol=1e-5)
    with pytest.raises(ValueError, match="use 'mode'"):
        codec.encode(signed, "sample")


def test_restore_through_sockets_is_equation_two():
    model = Model()
    (backbone,) = NODES["OSDFaceBackboneFromModel"]().wrap(model, Vae())
    crops, prompts = torch.rand(3, 64, 64, 3), torch.randn(3, 77, 1024)
    (out,) = NODES["OSDFaceRestore"]().restore(
        backbone, [[prompts, {}]], crops, strength=1.0, timestep=399, color_fix="none", batch_size=2
    )
    codec = native.SocketCodec(Vae(), model)
    latent = codec.encode(crops.permute(0, 3, 1, 2) * 2 - 1)
    eps = noise(latent, torch.full((3,), 399.0), prompts)
    wanted = codec.decode(predict_x0(latent, eps, alpha_bar(OSDFaceConfig()))).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(out.permute(0, 3, 1, 2), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "width", "says"),
    [
        ("V_PREDICTION", 1024, "768-pixel"),
        ("EPS", 768, "prompt width 768"),
        ("FLOW", None, "prediction FLOW"),
    ],
)
def test_other_models_are_refused(kind, width, says):
    with pytest.raises(ValueError, match=says):
        NODES["OSDFaceBackboneFromModel"]().wrap(Model(kind, width), Vae())


def test_a_lora_without_attention_is_noticed(caplog):
    stem = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    model = Model()
    model.patches = {f"{stem}.ff.net.2.weight": 1}
    assert native.warn_partial_lora(model) and "Apply LoRA" in caplog.text
    model.patches[f"{stem}.attn1.to_q.weight"] = 1
    assert not native.warn_partial_lora(model)
    assert not native.warn_partial_lora(Model())


def write_lora(path):
    """One layer in each of the two key styles of the release."""
    tensors = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.randn(4, 8),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.randn(8, 4),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": torch.randn(4, 8),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": torch.randn(8, 4),
    }
    save_file(tensors, path)
    return tensors


def test_both_key_styles_become_names_that_comfyui_knows(tmp_path):
    tensors = write_lora(tmp_path / "lora.safetensors")
    factors, alpha = lora.read_lora(str(tmp_path / "lora.safetensors"))
    state = lora.to_comfyui(factors, alpha)
    stem = "lora_unet_mid_block_attentions_0_"
    names = {f"{stem}{layer}" for layer in ("proj_in", "transformer_blocks_0_attn1_to_q")}
    assert {key.split(".", 1)[0] for key in state} == names and len(state) == 6
    query = tensors["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight"]
    assert torch.equal(state[f"{stem}transformer_blocks_0_attn1_to_q.lora_up.weight"], query)
    assert state[f"{stem}proj_in.alpha"].item() == 16.0, "the released loader's alpha"


def test_files_without_a_lora_say_so(tmp_path):
    file = write_tiny(tmp_path / "tiny.safetensors")
    with pytest.raises(Exception, match="holds no LoRA"):
        lora.read_lora(str(file))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Exception, match="truncated"):
        lora.read_lora(str(file))


def test_apply_lora_node(comfy, monkeypatch):
    write_lora(comfy.add_file("loras", "face.safetensors"))
    node = NODES["OSDFaceApplyLoRA"]()
    model = Model()
    assert node.apply(model, "none", 1.0) == (model,) and node.apply(model, "face.safetensors", 0.0) == (
        model,
    )
    asked = []
    monkeypatch.setattr(
        host, "load_lora", lambda m, state, strength: asked.append((state, strength)) or (m, 2)
    )
    assert node.apply(model, "face.safetensors", 0.7) == (model,)
    assert len(asked[0][0]) == 6 and asked[0][1] == 0.7
    monkeypatch.setattr(host, "load_lora", lambda m, state, strength: (m, 1))
    with pytest.raises(ValueError, match="1 of 2 LoRA layers"):
        node.apply(model, "face.safetensors", 1.0)

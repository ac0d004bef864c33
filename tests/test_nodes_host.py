"""The host layer against a fake ComfyUI: model folders, change detection, memory, tensors."""

import os
import types

import pytest
import torch

from tests.comfy_stub import InterruptProcessingException, install, load_pack

load_pack()
import osdface_pack.nodes.host as host  # type: ignore[import-not-found]  # noqa: E402


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


def test_existing_model_paths_are_kept(comfy):
    comfy.folders["osdface"] = (["/elsewhere/osdface"], set())
    host.register_folder()
    paths, extensions = comfy.folders["osdface"]
    assert paths == ["/elsewhere/osdface", str(comfy.models / "osdface")]
    assert ".safetensors" in extensions and ".txt" not in extensions


def test_examples_come_into_an_input_folder_that_lacks_them(comfy):
    host.register_folder()
    example = comfy.inputs / "osdface_example.jpg"
    assert example.is_file() and (comfy.inputs / "osdface_example.mp4").is_file()
    example.write_bytes(b"the user's")
    (comfy.inputs / "osdface_example.mp4").unlink()
    host.register_folder()
    assert example.read_bytes() == b"the user's" and (comfy.inputs / "osdface_example.mp4").is_file()


def test_a_read_only_models_folder_is_no_obstacle(comfy):
    comfy.models.write_text("a file where the folder should be")
    host.register_folder()


def test_checkpoint_choices(comfy):
    host.register_folder()
    comfy.add_file("osdface", "mine.safetensors")
    comfy.add_file("osdface", "readme.txt")
    for name in ("associate_2.ckpt", "embedding_change_weights.pth", "pytorch_lora_weights.safetensors"):
        comfy.add_file("osdface", f"released/{name}")
    assert host.checkpoint_names() == ["mini", "mine.safetensors", "released/"]
    assert host.checkpoint_path("mini") == "mini"
    assert host.checkpoint_path("released/") == str(comfy.models / "osdface" / "released")
    assert host.checkpoint_path("mine.safetensors").endswith("mine.safetensors")
    with pytest.raises(FileNotFoundError, match="put it there"):
        host.checkpoint_path("gone.safetensors")


def test_released_files_in_the_folder_itself(comfy):
    host.register_folder()
    comfy.add_file("osdface", "associate_2.ckpt")
    assert host.checkpoint_names() == ["mini", "./"]
    assert host.checkpoint_path("./") == str(comfy.models / "osdface")


def test_base_choices(comfy):
    comfy.add_file("checkpoints", "sd21.safetensors")
    comfy.add_file("diffusers", "sd21/unet/config.json")
    assert host.base_names() == ["none", "sd21.safetensors", "sd21/"]
    assert host.base_path("none") is None
    assert host.base_path("sd21/") == str(comfy.models / "diffusers" / "sd21")


def test_lora_choices_always_offer_none(comfy):
    assert host.lora_names() == ["none"]
    comfy.add_file("loras", "face.safetensors")
    host.register_folder()
    comfy.add_file("osdface", "ours.safetensors")
    assert host.lora_names() == ["none", "face.safetensors", "osdface/ours.safetensors"]
    assert host.lora_path("osdface/ours.safetensors") == str(comfy.models / "osdface" / "ours.safetensors")


def test_detector_weights_of_other_packs_are_found(comfy):
    weights = ("detection_Resnet50_Final.pth",)
    assert host.detector_folder(weights) == str(comfy.models / "facedetection")
    comfy.add_file("facerestore_models", weights[0])
    assert host.detector_folder(weights) == str(comfy.models / "facerestore_models")
    comfy.add_file("facedetection", weights[0])
    assert host.detector_folder(weights) == str(comfy.models / "facedetection")


def test_stamp_notices_a_replaced_file(comfy):
    path = comfy.add_file("osdface", "m.safetensors")
    before = host.changed("m.safetensors")
    assert before == host.changed("m.safetensors")
    os.utime(path, ns=(1, 1))
    assert before != host.changed("m.safetensors")
    assert host.changed(None) != host.changed(None), "a name that comes through a link has to run always"


def test_managed_accepts_a_module_with_a_read_only_device(comfy):
    class Diffusers(torch.nn.Linear):
        @property
        def device(self):
            return self.weight.device

    managed = host.Managed(Diffusers(2, 2))
    assert managed.load(123) == torch.device("cpu")
    patchers, activations, whole = comfy.loads[0]
    assert patchers == [managed.patcher] and activations == 123 and whole


def test_no_face_becomes_a_black_crop_and_back(comfy):
    crops = host.to_crops(torch.zeros(0, 3, 512, 512))
    assert crops.shape == (1, 512, 512, 3) and not crops.any()
    assert host.from_crops(crops).shape == (0, 3, 512, 512)
    dark = torch.zeros(2, 4, 4, 3)
    dark[0, 0, 0, 0] = 0.01
    assert len(host.from_crops(dark)) == 2 and len(host.from_crops(dark[:1])) == 1


def test_cancel_stops_before_the_next_layer(comfy):
    ran = []
    layers = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(5)))
    layers.register_forward_hook(lambda *_: ran.append("whole"))
    for layer in layers:
        layer.register_forward_hook(lambda *_: ran.append("layer"))
    comfy.interrupt_after = 3  # the chain and two of its layers begin
    with pytest.raises(InterruptProcessingException), host.cancellable():
        layers(torch.zeros(1))
    assert ran == ["layer", "layer"]
    layers(torch.zeros(1))
    assert ran.count("layer") == 7, "the check stayed behind"


def test_progress_reports_previews_and_stops_on_cancel(comfy):
    progress = host.Progress(3)
    progress.step(1, torch.rand(3, 8, 8))
    progress.step(2)
    assert [(value, total) for value, total, _ in comfy.steps] == [(1, 3), (3, 3)]
    kind, picture, size = comfy.steps[0][2]
    assert kind == "JPEG" and picture.size == (8, 8) and size == 512
    comfy.interrupt_after = 0
    with pytest.raises(InterruptProcessingException):
        progress.step()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_channel_count(comfy, channels):
    image = torch.rand(2, 5, 6, channels)
    pixels = host.from_image(image)
    assert pixels.shape == (2, 3, 5, 6)
    back = host.to_image(pixels)
    assert back.shape == (2, 5, 6, 3) and back.dtype == torch.float32 and back.is_contiguous()
    assert torch.equal(back, image[..., :3] if channels >= 3 else image.expand(-1, -1, -1, 3))


def test_results_are_clamped_float32(comfy):
    out = host.to_image(torch.tensor([-0.5, 2.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2).half())
    assert out.min() == 0 and out.max() == 1 and out.dtype == torch.float32
    assert host.to_mask(torch.full((2, 1, 3, 4), 1.5)).shape == (2, 3, 4)


def test_load_lora_counts_layers(comfy, monkeypatch):
    lora = types.ModuleType("comfy.lora")
    lora.model_lora_keys_unet = lambda model, keys: {"lora_unet_a": "a.weight"}  # type: ignore[attr-defined]
    lora.load_lora = lambda state, keys: {keys[k]: v for k, v in state.items() if k in keys}  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "comfy.lora", lora)
    monkeypatch.setattr(__import__("sys").modules["comfy"], "lora", lora, raising=False)

    class Model:
        model = None

        def clone(self):
            return Model()

        def add_patches(self, patches, strength):
            return list(patches)

    patched, count = host.load_lora(
        Model(), {"lora_unet_a": torch.ones(1), "lora_unet_b": torch.ones(1)}, 1.0
    )
    assert count == 1 and patched is not None

"""The nodes' real code from photo to photo, on a small random model, with ComfyUI's few functions faked."""

import json
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from osdface_core.options import RestoreOptions
from tests.comfy_stub import ROOT, InterruptProcessingException, install, load_pack
from tests.tiny_model import write_tiny

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.host as host  # type: ignore[import-not-found]  # noqa: E402

DETECT = {
    "detector": "mtcnn", "selection": "all", "indices": "", "order": "left_to_right",
    "min_face": 0, "max_face": 0, "max_faces": 0,
}  # fmt: skip
PHOTO = {
    "checkpoint": "tiny.safetensors", "base": "none", "detector": "mtcnn", "selection": "all", "min_face": 0,
    "strength": 1.0, "color_fix": "none", "dtype": "fp32",
}  # fmt: skip
RESTORE = {"strength": 1.0, "timestep": 399, "color_fix": "none", "batch_size": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def comfy(monkeypatch, tmp_path, tiny):
    fake = install(monkeypatch, tmp_path / "models")
    host.register_folder()
    fake.add_file("osdface", "tiny.safetensors", tiny.read_bytes())
    return fake


@pytest.fixture(scope="module")
def group() -> torch.Tensor:
    """IMAGE of two faces, (1, 256, 475, 3)."""
    picture = Image.open(ROOT / "nodes" / "examples" / "osdface_example.jpg")
    picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def run(name: str, **inputs):
    node = NODES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


@pytest.fixture
def found(comfy, group):
    return run("OSDFaceDetectFaces", image=group, **DETECT)


def loaded():
    (vre,) = run("OSDFaceLoadVRE", vre="tiny.safetensors")
    (backbone,) = run(
        "OSDFaceLoadRestorer", checkpoint="tiny.safetensors", base="none", lora_strength=1.0, dtype="fp32"
    )
    return vre, backbone


def restored_crops(crops):
    vre, backbone = loaded()
    (conditioning,) = run("OSDFaceEncodePrompt", vre=vre, crops=crops)
    return run("OSDFaceRestore", backbone=backbone, conditioning=conditioning, crops=crops, **RESTORE)[0]


def test_detect_faces(found, group):
    faces, crops, count, preview, text = found
    assert count == len(faces) == 2 and crops.shape == (2, 512, 512, 3)
    entries = json.loads(text)["faces"]
    assert [e["number"] for e in entries] == [0, 1]
    assert entries[0]["box"][0] < entries[1]["box"][0], "not numbered from left to right"
    assert preview.shape == group.shape and not torch.equal(preview, group)


def test_step_by_step_equals_one_node(comfy, found, group):
    faces, crops, *_ = found
    image, mask = run("OSDFacePasteBack", image=group, faces=faces, crops=restored_crops(crops), feather=0.2)
    one = run("OSDFaceRestorePhoto", image=group, order="left_to_right", **PHOTO)
    assert torch.allclose(image, one[0], atol=1e-5) and torch.equal(mask, one[1])
    assert one[5] == 2 and len(one[3]) == 2
    assert (image - group).abs().max() > 0.02, "nothing was restored"


def test_outside_the_mask_every_bit_is_kept(comfy, group):
    before = group.clone()
    image, mask, *_ = run("OSDFaceRestorePhoto", image=group, **PHOTO)
    assert torch.equal(group, before), "the input was modified in place"
    outside = mask == 0
    assert 0.1 < outside.float().mean() < 0.99
    assert torch.equal(image[outside], group[outside])


def test_a_grey_photo_stays_grey(comfy, group):
    grey = group[..., 1:2].expand(-1, -1, -1, 3).contiguous()
    image, mask, _ = run("OSDFaceRestorePhoto", image=grey, **PHOTO)[:3]
    assert mask.max() > 0.5 and not torch.equal(image, grey)
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("frames", [1, 3])
def test_no_face_passes_through(comfy, frames):
    sky = torch.linspace(0, 1, 96 * 128 * 3).reshape(1, 96, 128, 3).repeat(frames, 1, 1, 1)
    image, mask, text, crops, identity, count = run("OSDFaceRestorePhoto", image=sky, **PHOTO)
    assert torch.equal(image, sky) and not mask.any() and mask.shape == (frames, 96, 128)
    assert count == 0 and crops.shape == (1, 512, 512, 3) and not crops.any()
    assert len(identity) == 1 and math.isnan(identity[0]) and json.loads(text)["faces"] == []
    assert not comfy.used(), "models were loaded for nothing"
    faces, none, count, *_ = run("OSDFaceDetectFaces", image=sky, **DETECT)
    assert count == 0
    again, mask = run("OSDFacePasteBack", image=sky, faces=faces, crops=restored_crops(none), feather=0.2)
    assert torch.equal(again, sky) and not mask.any()
    assert torch.equal(restored_crops(none), none) and not comfy.used()
    guarded, before, after, _ = run("OSDFaceIdentityGuard", before=none, after=none, threshold=0.5)
    assert torch.equal(guarded, none) and len(before) == len(after) == 1 and math.isnan(before[0] + after[0])
    chosen, some, count = run(
        "OSDFaceSelectFaces", faces=faces, crops=none, **{k: DETECT[k] for k in DETECT if k != "detector"}
    )
    assert count == len(chosen) == 0 and torch.equal(some, none)
    (boxes,) = run("OSDFacePreviewFaces", image=sky, faces=faces)
    assert torch.equal(boxes, sky)


def test_mixed_counts_per_frame(comfy, group):
    """Two faces, none, one: all go through together and land in their own frame."""
    one = group.clone()
    one[:, :, 256:] = 0.5
    batch = torch.cat([group, torch.full_like(group, 0.4), one])
    faces, crops, count, *_ = run("OSDFaceDetectFaces", image=batch, frames="photos", **DETECT)
    assert [len(f) for f in faces.frames] == [2, 0, 1] and count == len(crops) == 3
    image, mask = run("OSDFacePasteBack", image=batch, faces=faces, crops=restored_crops(crops), feather=0.2)
    assert mask.amax(dim=(1, 2)).tolist()[1] == 0 and torch.equal(image[1], batch[1])
    alone = run("OSDFaceRestorePhoto", image=one, order="left_to_right", **PHOTO)[0]
    assert torch.allclose(image[2], alone[0], atol=1e-5), "a frame's result depends on its neighbours"


def test_paste_into_an_enlarged_photo(comfy, found, group):
    faces, crops, *_ = found
    larger = torch.nn.functional.interpolate(
        group.permute(0, 3, 1, 2), size=(640, 1192), mode="bicubic"
    ).clamp(0, 1)
    larger = larger.permute(0, 2, 3, 1)  # not exactly 2.5 times: upscalers round
    image, mask = run("OSDFacePasteBack", image=larger, faces=faces, crops=restored_crops(crops), feather=0.2)
    small = run("OSDFacePasteBack", image=group, faces=faces, crops=restored_crops(crops), feather=0.2)[1]
    assert image.shape == larger.shape
    shrunk = torch.nn.functional.interpolate(mask[None], size=small.shape[1:], mode="area")[0]
    assert (shrunk - small).abs().mean() < 0.01, "the mask moved"
    with pytest.raises(ValueError, match="same photo"):
        run("OSDFacePasteBack", image=larger[:, :, :640], faces=faces, crops=crops, feather=0.2)


def test_alpha_survives(comfy, group):
    alpha = torch.rand(1, *group.shape[1:3], 1)
    rgba = torch.cat([group, alpha], dim=-1)
    image = run("OSDFaceRestorePhoto", image=rgba, **PHOTO)[0]
    assert image.shape == rgba.shape and torch.equal(image[..., 3:], alpha)


def test_one_prompt_serves_all_faces(comfy, found):
    _, crops, *_ = found
    vre, backbone = loaded()
    (conditioning,) = run("OSDFaceEncodePrompt", vre=vre, crops=crops)
    prompts = conditioning[0][0]
    assert prompts.shape == (2, 77, 32) and prompts.dtype == torch.float32 and conditioning[0][1] == {}
    shared = run(
        "OSDFaceRestore", backbone=backbone, conditioning=[[prompts[:1], {}]], crops=crops, **RESTORE
    )[0]
    own = run("OSDFaceRestore", backbone=backbone, conditioning=conditioning, crops=crops, **RESTORE)[0]
    assert torch.allclose(shared[0], own[0], atol=1e-5) and not torch.allclose(shared[1], own[1], atol=1e-4)
    split = run(
        "OSDFaceRestore",
        backbone=backbone,
        conditioning=[[prompts[:1], {}], [prompts[1:], {}]],
        crops=crops,
        **RESTORE,
    )[0]
    assert torch.allclose(split, own, atol=1e-6), "combined conditionings are one row per face"
    three = [[prompts.repeat(2, 1, 1)[:3], {}]]
    with pytest.raises(ValueError, match="3 prompts for 2 crops"):
        run("OSDFaceRestore", backbone=backbone, conditioning=three, crops=crops, **RESTORE)
    with pytest.raises(ValueError, match="same checkpoint"):
        run(
            "OSDFaceRestore",
            backbone=backbone,
            conditioning=[[torch.rand(2, 77, 768), {}]],
            crops=crops,
            **RESTORE,
        )


def test_dials(comfy, found):
    _, crops, *_ = found
    vre, backbone = loaded()
    (conditioning,) = run("OSDFaceEncodePrompt", vre=vre, crops=crops)

    def out(**changes):
        return run(
            "OSDFaceRestore", backbone=backbone, conditioning=conditioning, crops=crops, **(RESTORE | changes)
        )[0]

    assert torch.equal(out(strength=0.0), crops)
    full = out()
    assert torch.allclose(out(strength=0.5), (full + crops) / 2, atol=1e-5)
    assert not torch.allclose(out(timestep=200), full, atol=1e-3)
    assert torch.equal(out(timestep=-1), full), "-1 is the checkpoint's own timestep"
    assert torch.allclose(out(batch_size=1), full, atol=1e-5), "a face's result depends on its batch"


def test_models_are_loaded_once_and_a_new_file_is_noticed(comfy, group, tmp_path):
    node = NODES["OSDFaceRestorePhoto"]()
    node.restore(image=group, **PHOTO)
    first = node._models
    node.restore(image=group, **(PHOTO | {"strength": 0.3}))
    assert node._models is first
    before = node.IS_CHANGED(checkpoint="tiny.safetensors", base="none")
    write_tiny(comfy.models / "osdface" / "tiny.safetensors", seed=1)
    assert node.IS_CHANGED(checkpoint="tiny.safetensors", base="none") != before
    node.restore(image=group, **PHOTO)
    assert node._models is not first


def test_old_models_go_before_new_ones_come(comfy, group, monkeypatch):
    import osdface_pack.nodes.models as models  # type: ignore[import-not-found]

    node = NODES["OSDFaceRestorePhoto"]()
    node.restore(image=group, **PHOTO)
    old, load, gone = weakref.ref(node._models.restorer), models.load_model, []

    def watched(*arguments, **options):
        gone.append(old() is None)
        return load(*arguments, **options)

    monkeypatch.setattr(models, "load_model", watched)
    write_tiny(comfy.models / "osdface" / "tiny.safetensors", seed=1)
    node.restore(image=group, **PHOTO)
    assert gone == [True]


def test_memory_manager_owns_the_modules(comfy, group):
    run("OSDFaceRestorePhoto", image=group, **PHOTO)
    assert len(comfy.used()) == 2, "prompt side and restorer"
    assert len(comfy.used(detectors=True)) == 1
    assert all(activations > 0 and whole for _, activations, whole in comfy.loads)


def test_cancel_within_a_face(comfy, group):
    run("OSDFaceRestorePhoto", image=group, **PHOTO)
    whole, finished = comfy.checks, len(comfy.steps)
    comfy.steps.clear()
    comfy.interrupt_after = whole - 20  # the last face is under way
    with pytest.raises(InterruptProcessingException):
        run("OSDFaceRestorePhoto", image=group, **PHOTO)
    assert len(comfy.steps) == finished - 1, "the last face was finished first"
    comfy.steps.clear()
    comfy.interrupt_after = 5  # the detector is under way
    with pytest.raises(InterruptProcessingException):
        run("OSDFaceRestorePhoto", image=group, **PHOTO)
    assert not comfy.steps, "the search was finished first"


def test_one_face_at_a_time_on_a_cpu(comfy, group):
    run("OSDFaceRestorePhoto", image=group.repeat(2, 1, 1, 1), **PHOTO)
    values = [value for value, total, _ in comfy.steps if total == 8]
    assert values == list(range(1, 9)), "two faces went through together"


def test_memory_is_asked_of_comfyui(comfy, found, monkeypatch):
    import osdface_pack.nodes.models as models  # type: ignore[import-not-found]

    _, backbone = loaded()
    seen = []
    monkeypatch.setattr(models, "faces_at_once", lambda *args: seen.append(args[3]) or 1)
    backbone.restore(torch.rand(1, 3, 64, 64), torch.rand(1, 77, 32), RestoreOptions())
    assert seen == [4 << 30]


def test_strength_0_runs_nothing(comfy, group, found):
    image, _, _, crops, identity, count = run("OSDFaceRestorePhoto", image=group, **PHOTO | {"strength": 0.0})
    assert torch.equal(image, group) and count == 2 and identity == [1.0, 1.0]
    assert torch.equal(crops, found[1].flip(0)) or torch.equal(crops, found[1])
    _, backbone = loaded()
    same = run(
        "OSDFaceRestore", backbone=backbone, conditioning=[[torch.rand(2, 77, 32), {}]], crops=crops,
        **RESTORE | {"strength": 0.0},
    )[0]  # fmt: skip
    assert torch.equal(same, crops) and not comfy.used()


def test_unknown_identity_is_no_number(comfy, group, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, _, text, _, identity, count = run("OSDFaceRestorePhoto", image=group, **PHOTO)
    assert count == 2 and len(identity) == 2 and all(map(math.isnan, identity))
    assert all("identity" not in str(face) or "NaN" not in text for face in json.loads(text)["faces"])


def test_a_guard_without_weights_is_refused_before_any_model_is_loaded(comfy, group, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Exception, match=r"mobilefacenet\.pt into models/osdface"):
        run("OSDFaceRestorePhoto", image=group, **PHOTO, identity_guard=0.5)
    assert not comfy.used()
    for name in ("OSDFaceRestorePhoto", "OSDFaceIdentityGuard"):  # and before the prompt begins
        check = NODES[name].VALIDATE_INPUTS
        assert check(0.0) is True and check(None) is True and "not within 0 and 1" in check(1.5)
        assert "put mobilefacenet.pt into models/osdface" in check(0.5)
    comfy.add_file("osdface", "mobilefacenet.pt")
    assert "cannot be read" in NODES["OSDFaceIdentityGuard"].VALIDATE_INPUTS(0.5)


def test_progress_reaches_its_end_with_previews(comfy, group):
    run("OSDFaceRestorePhoto", image=group, **PHOTO, batch_size=1)
    value, total, preview = comfy.steps[-1]
    assert value == total == 4 and preview[0] == "JPEG"


@pytest.mark.parametrize(
    ("selection", "indices", "kept"),
    [("indices", "1", [1]), ("indices", "0-5", [0, 1]), ("largest", "", [1])],
)
def test_select_faces(comfy, found, selection, indices, kept):
    faces, crops, *_ = found
    options = DETECT | {"selection": selection, "indices": indices}
    options.pop("detector")
    chosen, some, count = run("OSDFaceSelectFaces", faces=faces, crops=crops, **options)
    assert count == len(kept) and list(chosen.numbers[0]) == kept
    assert torch.equal(some, crops[kept])


def test_limits(comfy, found, group):
    faces = found[0]
    sizes = sorted(face.size for face in faces)
    middle = int(sum(sizes) / 2)
    only = {
        key: run("OSDFaceDetectFaces", image=group, **(DETECT | {key: middle}))[2]
        for key in ("min_face", "max_face")
    }
    assert only == {"min_face": 1, "max_face": 1}
    assert run("OSDFaceDetectFaces", image=group, **(DETECT | {"max_faces": 1}))[2] == 1
    with pytest.raises(Exception, match="`indices` is 'first', expected face numbers as in the preview"):
        run("OSDFaceDetectFaces", image=group, **(DETECT | {"selection": "indices", "indices": "first"}))


def test_mismatched_sockets_say_what_to_do(comfy, found, group):
    faces, crops, *_ = found
    with pytest.raises(ValueError, match="crops of these faces"):
        run("OSDFacePasteBack", image=group, faces=faces, crops=crops[:1], feather=0.2)
    with pytest.raises(ValueError, match="batch that Detect Faces got"):
        run("OSDFacePasteBack", image=group.repeat(2, 1, 1, 1), faces=faces, crops=crops, feather=0.2)


def test_damaged_and_incomplete_checkpoints_say_what_to_do(comfy):
    file = comfy.models / "osdface" / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(Exception, match="truncated"):
        loaded()
    comfy.add_file("osdface", "released/associate_2.ckpt")
    with pytest.raises(Exception, match="lacks embedding_change_weights") as lacking:
        run("OSDFaceLoadVRE", vre="released/")
    assert lacking.type.__module__ == "osdface_core", "ComfyUI shows where the pack lies"


def test_every_node_speaks_of_its_widgets(comfy, monkeypatch):
    for kind, advice in (
        ({"conv_first.weight": torch.zeros(1)}, "it goes to models/upscale_models"),
        ({"body.stage1.0.weight": torch.zeros(1)}, "it goes to models/facedetection"),
        ({"down_blocks.0.weight": torch.zeros(1)}, "give the folder, as base"),
    ):
        save_file(kind, comfy.models / "osdface" / "tiny.safetensors")
        for node, inputs in (
            ("OSDFaceLoadVRE", {"vre": "tiny.safetensors"}),
            ("OSDFaceApplyLoRA", {"model": None, "lora": "osdface/tiny.safetensors", "strength": 1.0}),
        ):
            with pytest.raises(Exception, match=advice if "VRE" in node else "unexpected tensor") as error:
                run(node, **inputs)
            assert "`" not in str(error.value) and "--" not in str(error.value)


@pytest.mark.parametrize("detector", ["retinaface_resnet50", "retinaface_mobile0.25"])
def test_a_prompt_fetches_nothing(comfy, group, monkeypatch, tmp_path, detector):
    from osdface_core.faces import download, retinaface

    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    monkeypatch.setattr(retinaface.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        download.urllib.request, "urlopen", lambda *a, **k: pytest.fail("went to the network")
    )
    with pytest.raises(Exception, match=r"download https://\S+\.pth into models/facedetection"):
        run("OSDFaceDetectFaces", image=group, **DETECT | {"detector": detector})

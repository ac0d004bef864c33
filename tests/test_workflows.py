"""Every shipped workflow against the nodes' declarations and the API prompt that the tests execute."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.clips import decoded, flat, write_clip
from tests.comfy_stub import ROOT, VideoFromFile, install, load_pack
from tests.test_nodes_native import Model, Vae

NODES = load_pack().NODE_CLASS_MAPPINGS
FILES = sorted((ROOT / "example_workflows").glob("*.json"))
NAMES = [path.stem for path in FILES]

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}


@pytest.fixture(autouse=True)
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


def load(name: str) -> dict:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict:
    return json.loads((ROOT / "tests" / "api" / api_file(name)).read_text(encoding="utf-8"))


def api_file(name: str) -> str:
    return name[2:].replace(" ", "_") + ".json"


def widgets(kind: str) -> dict:
    """Name and options of a node's widgets, in the order in which a workflow stores their values."""
    spec = NODES[kind].INPUT_TYPES()
    entries = {**spec.get("required", {}), **spec.get("optional", {})}
    return {key: entry for key, entry in entries.items() if isinstance(entry[0], list) or entry[0] in WIDGETS}


def test_the_promised_workflows_are_there():
    assert NAMES == [
        "1 restore photo",
        "2 group step by step",
        "3 compare",
        "4 clip",
        "5 sd21 native",
        "6 video",
    ]


def test_the_folder_holds_workflows_and_thumbnails_only():
    """ComfyUI lists every .json of this folder, and shows NAME.jpg beside it."""
    found = sorted(path.name for path in (ROOT / "example_workflows").iterdir())
    assert found == sorted([f"{name}.json" for name in NAMES] + [f"{name}.jpg" for name in NAMES])
    assert not any((ROOT / other).exists() for other in ("example", "examples", "workflow", "workflows"))


def blueprint() -> dict:
    """What the subgraph "Restore faces" holds."""
    path = ROOT / "subgraphs" / "Restore faces.json"
    return json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"][0]


@pytest.mark.parametrize("name", [*NAMES, "Restore faces"])
def test_nodes_widgets_and_sockets_exist(name):
    graph = blueprint() if name == "Restore faces" else load(name)
    assert {node["type"] for node in graph["nodes"]} & set(NODES), "no node of this pack in it"
    for node in graph["nodes"]:
        if node["type"] not in NODES:
            continue
        declared = widgets(node["type"])
        values = node.get("widgets_values", [])
        assert len(values) == len(declared), f"{node['type']}: {values}"
        for value, (key, (kind, options)) in zip(values, declared.items(), strict=True):
            where = f"{name}: {node['type']}.{key} = {value!r}"
            if isinstance(kind, list):
                assert value in kind, where
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, int | float) and options["min"] <= value <= options["max"], where
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), where
        outputs = [output["type"] for output in node["outputs"]]
        assert outputs == list(NODES[node["type"]].RETURN_TYPES), f"{name}: {node['type']} has {outputs}"


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_at_both_ends(name):
    graph = load(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, source, slot, target, entry, kind in graph["links"]:
        output, takes = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        assert link in output["links"] and takes["link"] == link
        assert kind == output["type"] and takes["type"] in (kind, "*")


def test_the_blueprint_is_wired_through():
    graph = blueprint()
    nodes = {node["id"]: node for node in graph["nodes"]}
    for end, slots in (("origin", graph["inputs"]), ("target", graph["outputs"])):
        for number, slot in enumerate(slots):
            inner = [link for link in graph["links"] if link["id"] in slot["linkIds"]]
            assert inner and all(link[f"{end}_slot"] == number for link in inner)
    assert [(o["name"], o["type"]) for o in graph["outputs"]] == [
        ("image", "IMAGE"), ("mask", "MASK"), ("crops", "IMAGE"),
    ]  # fmt: skip
    both = {
        (nodes[link["target_id"]]["type"], nodes[link["target_id"]]["inputs"][link["target_slot"]]["name"])
        for link in graph["links"]
        if link["id"] in next(i["linkIds"] for i in graph["inputs"] if i["name"] == "checkpoint")
    }
    assert both == {("OSDFaceLoadVRE", "vre"), ("OSDFaceLoadRestorer", "checkpoint")}
    unlinked = [
        (node["type"], entry["name"])
        for node in graph["nodes"]
        for entry in node["inputs"]
        if entry["link"] is None and "widget" not in entry
    ]
    assert not unlinked


@pytest.mark.parametrize("name", NAMES)
def test_workflow_is_the_prompt_that_is_tested(name):
    """Same nodes, same widget values, same links as tests/api, which the executor runs."""
    graph, prompt = load(name), api(name)
    nodes = {str(node["id"]): node for node in graph["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["type"] for key, node in nodes.items()} == {
        k: n["class_type"] for k, n in prompt.items()
    }
    sources = {link[0]: (str(link[1]), link[2]) for link in graph["links"]}
    for key, node in nodes.items():
        inputs = prompt[key]["inputs"]
        linked = {i["name"]: list(sources[i["link"]]) for i in node["inputs"] if i.get("link") is not None}
        assert linked == {k: v for k, v in inputs.items() if isinstance(v, list)}
        if node["type"] in NODES:
            stored = dict(zip(widgets(node["type"]), node.get("widgets_values", []), strict=True))
            assert stored == {k: v for k, v in inputs.items() if not isinstance(v, list)}


@pytest.mark.parametrize("name", NAMES)
def test_workflow_runs_without_downloads(name):
    """Inputs that the pack installs, the embedded model, and a note on how to use it."""
    graph = load(name)
    by_type = {node["type"]: node for node in graph["nodes"]}
    loader = by_type.get("LoadImage") or by_type["LoadVideo"]
    assert (ROOT / "nodes" / "examples" / loader["widgets_values"][0]).is_file()
    assert by_type["MarkdownNote"]["widgets_values"][0].startswith("## ")
    for node in graph["nodes"]:
        if node["type"] in (
            "OSDFaceLoadVRE",
            "OSDFaceLoadRestorer",
            "OSDFaceRestorePhoto",
            "OSDFaceRestoreVideo",
        ):
            assert "mini" in node.get("widgets_values", [])


def test_api_prompts_have_a_workflow():
    found = sorted(path.name for path in Path(ROOT / "tests" / "api").glob("*.json"))
    assert found == sorted(map(api_file, NAMES))


def landscape() -> torch.Tensor:
    """IMAGE of two frames without a face."""
    return torch.linspace(0, 1, 96 * 128 * 3).reshape(1, 96, 128, 3).repeat(2, 1, 1, 1)


def save(images, **_):
    assert len(images) and images[0].shape[0], "core's PreviewImage and SaveImage fail on an empty batch"
    SAVED.append(images)
    return ()


SAVED: list[torch.Tensor] = []
CORE = {  # stand-ins for core's nodes in the workflows
    "LoadImage": lambda **_: (landscape(), torch.zeros(1, 64, 64)),
    "GetVideoComponents": lambda video: (landscape(), None, 30.0),
    "CheckpointLoaderSimple": lambda ckpt_name: (Model(), None, Vae()),
    "ImageScaleBy": lambda image, scale_by, **_: (
        torch.nn.functional.interpolate(image.movedim(-1, 1), scale_factor=scale_by).movedim(1, -1),
    ),
    "MaskToImage": lambda mask: (mask[..., None].expand(-1, -1, -1, 3),),
    "CreateVideo": lambda images, **_: (images,),
    "SaveVideo": lambda video, **_: save(pictures(video)),
    "PreviewImage": save,
    "SaveImage": save,
}


def execute(prompt: dict) -> dict:
    """Run every node of an API prompt, each once, in the order of its links."""
    done: dict[str, tuple] = {}

    def result(key: str) -> tuple:
        if key not in done:
            node = prompt[key]
            inputs = {k: result(v[0])[v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
            if node["class_type"] in NODES:
                kind = NODES[node["class_type"]]
                done[key] = getattr(kind(), kind.FUNCTION)(**inputs)
            else:
                done[key] = CORE[node["class_type"]](**inputs)
        return done[key]

    for key in prompt:
        result(key)
    return done


@pytest.mark.parametrize("name", NAMES)
def test_a_landscape_goes_through_every_workflow(name, comfy, monkeypatch):
    """No face is no error, loads no model, and what is saved is the landscape."""
    SAVED.clear()
    film = VideoFromFile(str(write_clip(comfy.inputs / "film.mp4", flat(2), sound=None)))
    monkeypatch.setitem(CORE, "LoadVideo", lambda file: (film,))
    done = execute(api(name))
    assert SAVED and not comfy.used()
    kept = [out for key, out in done.items() if prompt_kind(name, key) in RESTORING]
    assert kept
    for first, *_ in kept:
        before = pictures(film) if isinstance(first, VideoFromFile) else landscape()
        small = torch.nn.functional.interpolate(
            pictures(first).movedim(-1, 1), size=before.shape[1:3], mode="area"
        )
        assert (small.movedim(1, -1) - before).abs().max() < 0.04


def pictures(video: VideoFromFile | torch.Tensor) -> torch.Tensor:
    """IMAGE of a film's frames; the same for what is one."""
    if isinstance(video, torch.Tensor):
        return video
    frames = [frame.to_ndarray(format="rgb24") for frame in decoded(Path(video.file))]
    return torch.from_numpy(np.stack(frames)) / 255


RESTORING = ("OSDFaceRestorePhoto", "OSDFacePasteBack", "OSDFaceRestoreVideo")


def prompt_kind(name: str, key: str) -> str:
    return api(name)[key]["class_type"]

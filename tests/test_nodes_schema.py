"""The nodes' declarations: promised ids and sockets, tooltips, help pages; only host.py knows ComfyUI."""

import ast
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from osdface_core.options import SETS, options_of
from tests.comfy_stub import ROOT, install, load_pack

SOCKETS = {  # id: first outputs
    "OSDFaceLoadVRE": ("OSDFACE_VRE",),
    "OSDFaceLoadRestorer": ("OSDFACE_BACKBONE",),
    "OSDFaceBackboneFromModel": ("OSDFACE_BACKBONE",),
    "OSDFaceDetectFaces": ("OSDFACE_FACES", "IMAGE", "INT", "IMAGE"),
    "OSDFaceEncodePrompt": ("CONDITIONING",),
    "OSDFaceRestore": ("IMAGE",),
    "OSDFacePasteBack": ("IMAGE", "MASK"),
    "OSDFaceRestorePhoto": ("IMAGE", "MASK", "STRING"),
}
INPUTS = {
    "OSDFaceBackboneFromModel": ["MODEL", "VAE"],
    "OSDFaceEncodePrompt": ["OSDFACE_VRE", "IMAGE"],
    "OSDFaceRestore": ["OSDFACE_BACKBONE", "CONDITIONING", "IMAGE"],
    "OSDFacePasteBack": ["IMAGE", "OSDFACE_FACES", "IMAGE"],
}
NODES = load_pack().NODE_CLASS_MAPPINGS
TABLE = {option.called("comfyui"): option for options in SETS for option in options_of(options).values()}


@pytest.fixture(autouse=True)
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


def entries(node):
    spec = node.INPUT_TYPES()
    assert set(spec) <= {"required", "optional"}
    return {**spec.get("required", {}), **spec.get("optional", {})}


def test_promised_ids_and_sockets():
    for name, outputs in SOCKETS.items():
        assert NODES[name].RETURN_TYPES[: len(outputs)] == outputs
    for name, kinds in INPUTS.items():
        assert [kind for kind, _ in entries(NODES[name]).values()][: len(kinds)] == kinds


@pytest.mark.parametrize("name", NODES)
def test_declaration_is_complete(name):
    node = NODES[name]
    assert node.CATEGORY == "OSDFace" and len(node.DESCRIPTION) > 20
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    for key, (_, options) in entries(node).items():
        assert len(options.get("tooltip", "")) > 5, f"{name}.{key} has no tooltip"
    if lists := getattr(node, "OUTPUT_IS_LIST", None):
        assert len(lists) == len(node.RETURN_TYPES)


def test_people_find_the_nodes_and_few_widgets():
    aliases = NODES["OSDFaceRestorePhoto"].SEARCH_ALIASES
    assert {"face restore", "gfpgan", "codeformer", "face enhance", "deblur face"} <= set(aliases)
    shown = [
        k for k, (_, options) in entries(NODES["OSDFaceRestorePhoto"]).items() if not options.get("advanced")
    ]
    assert "strength" in shown and "timestep" not in shown and len(shown) <= 12
    blueprint = json.loads((ROOT / "subgraphs" / "Restore faces.json").read_text(encoding="utf-8"))["extra"]
    assert set(blueprint["BlueprintSearchAliases"]) <= set(aliases) and blueprint["BlueprintDescription"]


@pytest.mark.parametrize("name", NODES)
def test_function_takes_the_declared_inputs(name):
    node = NODES[name]
    parameters = dict(list(inspect.signature(getattr(node, node.FUNCTION)).parameters.items())[1:])
    rest = parameters.pop("options", None)  # what the core's table knows is handed on as it comes
    assert rest is None or rest.kind is inspect.Parameter.VAR_KEYWORD
    named = [key for key in entries(node) if rest is None or key not in TABLE or key in parameters]
    assert sorted(parameters) == sorted(named)
    for key, (_, options) in node.INPUT_TYPES().get("optional", {}).items():
        option = TABLE.get(key)
        default = parameters[key].default if key in parameters else option.default
        if default is None and key not in parameters:
            default = option.unset
        assert default == options.get("default"), f"{name}.{key}: default differs from the widget's"


@pytest.mark.parametrize("name", NODES)
def test_help_page_names_every_input_and_output(name):
    shown = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    page = shown.replace("<wbr>", "")
    for key in [*entries(NODES[name]), *NODES[name].RETURN_NAMES]:
        assert f"`{key}`" in page, f"{name}.md does not mention {key}"
    tips = [options["tooltip"] for _, options in entries(NODES[name]).values()]
    for text in [NODES[name].DESCRIPTION, *tips, *NODES[name].OUTPUT_TOOLTIPS]:
        assert text in page, f"{name}.md says something else than: {text}"
    assert "|" not in page, "tables do not fit ComfyUI's side panel"
    longest = max(re.split(r"[\s-]|<wbr>", shown), key=len)
    assert len(longest) <= 24, f"{longest} runs out of ComfyUI's side panel: put <wbr> into it"


def test_only_host_imports_comfyui_and_only_in_functions():
    foreign = {"comfy", "folder_paths", "nodes", "execution", "server", "comfy_extras", "comfy_execution"}
    for path in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            hits = {n for n in names if n.split(".")[0] in foreign}
            assert not hits or path.name == "host.py", f"{path.name} imports {hits}"
            assert not hits or node not in tree.body, f"host.py imports {hits} at its top"


def test_root_imports_nothing_without_a_package():
    assert "NODE_CLASS_MAPPINGS" not in runpy.run_path(str(ROOT / "__init__.py"))


def test_pack_imports_without_comfyui_and_without_optional_libraries():
    # A fresh interpreter in which ComfyUI and every heavy optional library are missing.
    absent = (
        "comfy folder_paths facexlib peft kornia torchmetrics spandrel accelerate transformers xformers cv2"
    )
    script = f"""
import importlib.util, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent.split()!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
root = {str(ROOT)!r}
file = root + "/__init__.py"
spec = importlib.util.spec_from_file_location("a/path_x_pack", file, submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules["a/path_x_pack"] = module
before = list(sys.path)
spec.loader.exec_module(module)
assert len(module.NODE_CLASS_MAPPINGS) >= 8 and sys.path == before and "osdface_core" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path.home()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout, "the pack prints at import"


def test_requirements_for_comfyui_are_the_projects_without_torch():
    """ComfyUI brings its own torch; a requirement on it could replace a CUDA build by another."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    left_out = {"torch", "torchvision", "imagecodecs", "tifffile"}  # no files there
    assert wanted == set(project["project"]["dependencies"]) - left_out
    assert not any(pin in line for line in wanted for pin in ("==", "<", "~=")), (
        "no pins: other packs need theirs"
    )
    assert "web" not in project["tool"]["comfy"], (
        "WEB_DIRECTORY serves the help pages; both would serve them twice"
    )

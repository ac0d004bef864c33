"""The web UI extension inside stand-ins for the web UI's modules: registration, Extras panel, errors."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "osdface_webui.py"


class Component:
    """A gradio component, row or accordion; remembers what it was made with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class WebUI:
    """What the extension touches of Automatic1111 1.8 to 1.10 and Forge."""

    def __init__(self, models: Path) -> None:
        self.reports: list[str] = []
        self.settings_callbacks: list[Any] = []
        self.options: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.restorers: list[Any] = [SimpleNamespace(name=lambda: "CodeFormer")]
        self.checkpoints = {
            "sd21.safetensors [ab]": SimpleNamespace(filename=str(models / "sd21.safetensors")),
            "old.ckpt [cd]": SimpleNamespace(filename=str(models / "old.ckpt")),
        }
        self.collected = 0
        self.models = models

    def modules(self) -> dict[str, types.ModuleType]:
        def module(name: str, **attributes: Any) -> types.ModuleType:
            made = types.ModuleType(name)
            vars(made).update(attributes)
            return made

        opts = SimpleNamespace(data=self.data, add_option=self.options.__setitem__)
        parts = {
            "devices": {"get_optimal_device": lambda: torch.device("cpu"), "torch_gc": self._collect},
            "errors": {"report": lambda message, **options: self.reports.append(message)},
            "face_restoration": {"FaceRestoration": type("FaceRestoration", (), {})},
            "paths": {"models_path": str(self.models)},
            "script_callbacks": {"on_ui_settings": self.settings_callbacks.append},
            "scripts_postprocessing": {"ScriptPostprocessing": type("ScriptPostprocessing", (), {})},
            "sd_models": {"checkpoints_list": self.checkpoints},
            "shared": {
                "face_restorers": self.restorers,
                "opts": opts,
                "cmd_opts": SimpleNamespace(no_half=True),
                "OptionInfo": lambda *args, **options: SimpleNamespace(args=args, **options),
            },
            "ui_components": {"InputAccordion": Component},
        }
        made = {
            f"modules.{name}": module(f"modules.{name}", **attributes) for name, attributes in parts.items()
        }
        package = module("modules", **{name.split(".")[1]: part for name, part in made.items()})
        gradio = module("gradio", Row=Component, Slider=Component, Dropdown=Component, Checkbox=Component)
        return made | {"modules": package, "gradio": gradio}

    def _collect(self) -> None:
        self.collected += 1


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> WebUI:
    (tmp_path / "OSDFace" / "released").mkdir(parents=True)
    (tmp_path / "OSDFace" / "released" / "associate_2.ckpt").touch()
    (tmp_path / "OSDFace" / "notes").mkdir()
    (tmp_path / "OSDFace" / "tiny.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    ui = WebUI(tmp_path)
    for name, module in ui.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return ui


def load() -> Any:
    """As `modules.script_loading.load_module` does."""
    spec = importlib.util.spec_from_file_location("osdface_webui", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(webui: WebUI) -> Iterator[Any]:
    yield load()


def test_it_registers_once_however_often_the_ui_reloads(webui: WebUI) -> None:
    for _ in range(3):
        load()
    assert [restorer.name() for restorer in webui.restorers] == ["CodeFormer", "OSDFace"]


def test_what_can_be_chosen(script: Any) -> None:
    assert script.model_names() == ["mini", "tiny.safetensors", "released"]
    assert script.base_names() == ["none", "sd21.safetensors [ab]"]
    assert script.base_path("none") is None
    assert script.base_path("sd21.safetensors [ab]").endswith("sd21.safetensors")


def test_settings(webui: WebUI, script: Any) -> None:
    webui.settings_callbacks[0]()
    assert set(webui.options) == {"osdface_model", "osdface_base", "osdface_strength", "osdface_color_fix"}
    assert webui.options["osdface_model"].args[3]() == {"choices": script.model_names()}


def panel(script: Any) -> Any:
    extras = script.ScriptPostprocessingOSDFace()
    names = ["enable", "visibility", "min_face", "model", "base", "faces", "color_fix", "fidelity"]
    assert list(extras.ui()) == names
    return extras


def picture(portraits: np.ndarray) -> Image.Image:
    return Image.fromarray(portraits).resize((300, 150))


def test_the_extras_panel(script: Any, portraits: np.ndarray) -> None:
    source = picture(portraits)
    pp = SimpleNamespace(image=source, info={})
    panel(script).process(pp, enable=True, visibility=0.8, model="tiny.safetensors", faces="largest")
    assert pp.image.size == source.size
    assert not np.array_equal(np.asarray(pp.image), np.asarray(source))
    assert pp.info == {"OSDFace visibility": 0.8, "OSDFace model": "tiny.safetensors", "OSDFace faces": 1}


def test_transparency_survives(script: Any, portraits: np.ndarray) -> None:
    source = picture(portraits)
    source.putalpha(Image.linear_gradient("L").resize(source.size))
    pp = SimpleNamespace(image=source, info={})
    panel(script).process(pp, enable=True, model="tiny.safetensors")
    assert pp.image.mode == "RGBA"
    assert np.array_equal(np.asarray(pp.image.getchannel("A")), np.asarray(source.getchannel("A")))


@pytest.mark.parametrize("arguments", [{}, {"enable": False}, {"enable": True, "visibility": 0.0}])
def test_switched_off(script: Any, arguments: dict[str, Any]) -> None:
    source = Image.new("RGB", (8, 8))
    pp = SimpleNamespace(image=source, info={})
    panel(script).process(pp, **arguments)
    assert pp.image is source
    assert pp.info == {}


def test_the_face_restorer(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    webui.data |= {"osdface_model": "tiny.safetensors", "osdface_strength": 0.5}
    source = np.asarray(picture(portraits))
    restorer = webui.restorers[-1]
    result = restorer.restore(source)
    assert (result.shape, result.dtype) == (source.shape, np.uint8)
    assert not np.array_equal(result, source)
    first = script.last.pipeline
    restorer.restore(source)
    assert script.last.pipeline is first, "the model stays loaded"
    webui.data["face_restoration_unload"] = True
    restorer.restore(source)
    assert script.last.pipeline is None
    assert webui.collected > 0


def test_an_error_leaves_the_picture_as_it_was(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    webui.data["osdface_model"] = "gone.safetensors"
    source = np.asarray(picture(portraits))
    assert np.array_equal(webui.restorers[-1].restore(source), source)
    assert len(webui.reports) == 1
    assert "no checkpoint at" in webui.reports[0]


def test_without_a_models_folder(webui: WebUI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["modules.paths"], "models_path", str(tmp_path / "none"))
    assert load().model_names() == ["mini"]


def installer() -> Any:
    spec = importlib.util.spec_from_file_location("osdface_install", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installer_fetches_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []
    launch = types.ModuleType("launch")
    launch.run_pip = lambda command, about: calls.append(command)  # type: ignore[attr-defined]
    launch.__spec__ = importlib.util.spec_from_loader("launch", None)
    monkeypatch.setitem(sys.modules, "launch", launch)
    module = installer()
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# comment\ntorch\nnumpy>=99\nno-such-package-of-osdface>=1.0\nsafetensors\n")
    monkeypatch.setattr(module, "REQUIREMENTS", requirements)
    module.main()
    assert calls == ['install "no-such-package-of-osdface>=1.0"']


@pytest.mark.parametrize(
    ("torch_version", "expected"),
    [
        ("2.1.2+cu121", "diffusers>=0.30,<0.36"),
        ("2.5.0", "diffusers>=0.30,<0.36"),
        ("2.6.0", "diffusers>=0.30"),
        ("2.14.1+cpu", "diffusers>=0.30"),
        ("3.0", "diffusers>=0.30"),
    ],
)
def test_diffusers_fits_the_installed_torch(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, expected: str
) -> None:
    module = installer()
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: torch_version)
    assert module.fitting("diffusers>=0.30") == expected
    assert module.fitting("safetensors") == "safetensors"


def test_the_installer_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI-Manager runs install.py too, after requirements.txt."""
    monkeypatch.setitem(sys.modules, "launch", None)
    module = installer()
    monkeypatch.setattr(module, "missing_packages", lambda: pytest.fail("looked for packages"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module.main()

"""The web UI extension inside stand-ins for the web UI's modules: registration, Extras panel, errors."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import io
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
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
            name: SimpleNamespace(name=name.split(" ")[0], filename=str(models / name.split(" ")[0]))
            for name in ("sd21.safetensors [ab]", "sd15.safetensors", "old.ckpt [cd]")
        }
        for name, width in (("sd21", 1024), ("sd15", 768)):
            save_file({CROSS_ATTENTION: torch.zeros(2, width)}, models / f"{name}.safetensors")
        self.state = SimpleNamespace(
            interrupted=False, skipped=False, sampling_step=0, sampling_steps=0, textinfo=None, jobs=[],
            begin=lambda job: self.state.jobs.append(job), end=lambda: self.state.jobs.append("end"),
        )  # fmt: skip
        self.cmd_opts = SimpleNamespace(no_half=True, api=True, api_auth=None)
        self.warnings: list[str] = []
        self.callbacks: dict[str, list[Any]] = {"before_ui": [], "app_started": [], "infotext_pasted": []}
        self.labels = {"face_restoration_model": SimpleNamespace(infotext=None)}
        self.grid = types.ModuleType("xyz_grid.py")
        vars(self.grid).update(
            axis_options=[],
            apply_override=lambda field: field,
            AxisOption=lambda label, kind, apply, **more: SimpleNamespace(
                label=label, type=kind, apply=apply, **more
            ),
        )
        self.collected = 0
        self.models = models

    def modules(self) -> dict[str, types.ModuleType]:
        def module(name: str, **attributes: Any) -> types.ModuleType:
            made = types.ModuleType(name)
            vars(made).update(attributes)
            return made

        opts = SimpleNamespace(data=self.data, add_option=self.options.__setitem__, data_labels=self.labels)
        parts = {
            "devices": {"get_device_for": lambda task: torch.device("cpu"), "torch_gc": self._collect},
            "call_queue": {"queue_lock": threading.Lock()},
            "scripts": {
                "Script": type("Script", (), {}),
                "AlwaysVisible": object(),
                "scripts_data": [SimpleNamespace(module=self.grid)],
            },
            "ui_common": {"create_refresh_button": lambda box, refresh, arguments, name: arguments()},
            "errors": {"report": lambda message, **options: self.reports.append(message)},
            "face_restoration": {"FaceRestoration": type("FaceRestoration", (), {})},
            "paths": {"models_path": str(self.models)},
            "script_callbacks": {
                "on_ui_settings": self.settings_callbacks.append,
                "on_before_ui": self.callbacks["before_ui"].append,
                "on_infotext_pasted": self.callbacks["infotext_pasted"].append,
                "on_app_started": self.callbacks["app_started"].append,
            },
            "scripts_postprocessing": {"ScriptPostprocessing": type("ScriptPostprocessing", (), {})},
            "sd_models": {
                "checkpoints_list": self.checkpoints,
                "get_closet_checkpoint_match": self._closest,
            },
            "shared": {
                "face_restorers": self.restorers,
                "opts": opts,
                "cmd_opts": self.cmd_opts,
                "state": self.state,
                "OptionInfo": lambda *args, **options: SimpleNamespace(args=args, **options),
            },
            "ui_components": {"InputAccordion": Component},
        }
        made = {
            f"modules.{name}": module(f"modules.{name}", **attributes) for name, attributes in parts.items()
        }
        package = module("modules", **{name.split(".")[1]: part for name, part in made.items()})
        gradio = module(
            "gradio", Row=Component, Slider=Component, Dropdown=Component, Warning=self.warnings.append
        )
        return made | {"modules": package, "gradio": gradio}

    def _closest(self, name: str) -> Any:
        """As the web UI does: by title with any hash or none."""
        bare = name.split(" [")[0]
        return next((info for title, info in self.checkpoints.items() if bare in title), None)

    def _collect(self) -> None:
        self.collected += 1


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> WebUI:
    (tmp_path / "OSDFace" / "released").mkdir(parents=True)
    (tmp_path / "OSDFace" / "released" / "associate_2.ckpt").touch()
    (tmp_path / "OSDFace" / "notes").mkdir()
    (tmp_path / "OSDFace" / "tiny.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    ui = WebUI(tmp_path)
    for name, module in (ui.modules() | fastapi_stand_in()).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("osdface_webui", *(f"osdface_webui.{part}" for part in ("choices", "work", "api"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(ROOT))  # as the web UI does for the extension's folder
    return ui


class HTTPException(Exception):  # noqa: N818
    """FastAPI's answer with a status."""

    def __init__(self, status: int, detail: str, headers: Any = None) -> None:
        super().__init__(detail)
        self.status = status


def fastapi_stand_in() -> dict[str, types.ModuleType]:
    """What the extension touches of FastAPI, which comes with the web UI."""
    fastapi, security = types.ModuleType("fastapi"), types.ModuleType("fastapi.security")
    vars(fastapi).update(
        Body=lambda default: default, Depends=lambda call: call, FastAPI=object, HTTPException=HTTPException
    )
    vars(security).update(HTTPBasic=object, HTTPBasicCredentials=SimpleNamespace)
    return {"fastapi": fastapi, "fastapi.security": security}


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
    assert script.base_names() == ["none", "sd21.safetensors"], "not what no LoRA of ours can use"
    path = sys.modules["osdface_webui.choices"].base_path
    assert path("none") is None
    for name in ("sd21.safetensors", "sd21.safetensors [ab]", "sd21.safetensors [new hash]"):
        assert path(name).endswith("sd21.safetensors"), "a hash that came or went loses the base"


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "notes", ""])
def test_a_model_cannot_be_outside_the_folder(script: Any, name: str) -> None:
    with pytest.raises(Exception, match="no checkpoint at OSDFace/"):
        sys.modules["osdface_webui.choices"].model_path(name)


def test_settings(webui: WebUI, script: Any) -> None:
    webui.settings_callbacks[0]()
    assert set(webui.options) == {"osdface_model", "osdface_base", "osdface_strength", "osdface_color_fix"}
    assert webui.options["osdface_model"].args[3]() == {"choices": script.model_names()}
    assert webui.options["osdface_model"].infotext == "OSDFace model", "an infotext is not read back"


def test_a_pasted_infotext_chooses_the_restorer(webui: WebUI, script: Any) -> None:
    webui.settings_callbacks[0]()
    for ran in ("OSDFace", "GFPGAN"):
        parameters = {"Face restoration": ran}
        webui.callbacks["infotext_pasted"][0]("", parameters)
        chosen = parameters.get(webui.labels["face_restoration_model"].infotext)
        assert chosen == ("OSDFace" if ran == "OSDFace" else None)


def panel(script: Any) -> Any:
    extras = script.ScriptPostprocessingOSDFace()
    controls = extras.ui()
    assert set(controls) == {
        "enable", "visibility", "model", "base", "faces", "detector", "color_fix", "min_face", "threshold",
        "fidelity", "feather", "timestep",
    }  # fmt: skip
    assert "elem_id" not in controls["enable"].options, "panels of several tabs would toggle each other"
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
    collected = webui.collected
    restorer.restore(source)
    assert script.last.pipeline is first and first.device.type == "cpu", "it moves to RAM"
    assert webui.collected > collected


def test_an_error_leaves_the_picture_as_it_was(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    webui.data["osdface_model"] = "gone.safetensors"
    source = np.asarray(picture(portraits))
    assert np.array_equal(webui.restorers[-1].restore(source), source)
    assert len(webui.reports) == 1
    assert "no checkpoint at" in webui.reports[0]


def test_any_exception_leaves_the_other_pictures(
    webui: WebUI, script: Any, portraits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, errors = script.last.get, iter([None, torch.cuda.OutOfMemoryError("CUDA out of memory"), None])

    def failing(*arguments: Any) -> Any:
        if (error := next(errors)) is not None:
            raise error
        return get(*arguments)

    monkeypatch.setattr(script.last, "get", failing)
    extras, folder = panel(script), [SimpleNamespace(image=picture(portraits), info={}) for _ in range(3)]
    sources = [pp.image for pp in folder]
    for pp in folder:
        extras.process(pp, enable=True, model="tiny.safetensors")
    assert [pp.image is source for pp, source in zip(folder, sources, strict=True)] == [False, True, False]
    assert list(folder[1].info) == ["OSDFace error"] and "out of memory" in folder[1].info["OSDFace error"]
    assert "OSDFace model" in folder[2].info
    assert len(webui.warnings) == 1 and "out of memory" in webui.warnings[0]


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interrupt_and_skip(
    webui: WebUI, script: Any, portraits: np.ndarray, button: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.data["osdface_model"] = "tiny.safetensors"
    source, restorer = np.asarray(picture(portraits)), webui.restorers[-1]
    told: list[int] = []
    work = sys.modules["osdface_webui.work"]

    def pressed(done: int, total: int) -> None:
        told.append(done)
        setattr(webui.state, button, True)

    monkeypatch.setattr(work, "_progress", pressed)
    assert np.array_equal(restorer.restore(source), source)
    assert told == [1], "the second face was restored"
    assert np.array_equal(restorer.restore(source), source), "restored although it was stopped before"
    assert told == [1] and not webui.reports


def test_progress_counts_faces(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    source = np.asarray(picture(portraits))
    webui.data["osdface_model"] = "gone.safetensors"
    webui.restorers[-1].restore(source)
    assert webui.state.textinfo == "OSDFace: looking for faces"
    webui.data["osdface_model"] = "tiny.safetensors"
    webui.restorers[-1].restore(source)
    assert (webui.state.sampling_step, webui.state.sampling_steps) == (2, 2)
    assert webui.state.textinfo == "OSDFace: 2 of 2 faces"


def test_the_infotext_says_what_ran(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    noted, p = script.OSDFaceInfotext(), SimpleNamespace(extra_generation_params={"Other": 1})
    webui.data |= {"osdface_model": "tiny.safetensors", "osdface_strength": 0.5}
    source = np.asarray(picture(portraits))
    webui.restorers[-1].restore(source)
    noted.postprocess_image(p, None)
    assert p.extra_generation_params == {
        "Other": 1, "OSDFace model": "tiny.safetensors", "OSDFace strength": 0.5,
    }  # fmt: skip
    webui.data["osdface_model"] = "gone.safetensors"
    webui.restorers[-1].restore(source)
    noted.postprocess_image(p, None)
    assert set(p.extra_generation_params) == {"Other", "OSDFace error"}
    noted.postprocess_image(p, None)
    assert set(p.extra_generation_params) == {"Other"}, "nothing ran for this picture"


def test_axes_of_the_plot(webui: WebUI, script: Any) -> None:
    for _ in range(2):
        webui.callbacks["before_ui"][0]()
    strength, model = webui.grid.axis_options
    assert (strength.label, strength.type, strength.apply) == ("OSDFace strength", float, "osdface_strength")
    assert model.choices() == script.model_names()


class App:
    """FastAPI's application: remembers its routes."""

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {}
        self.guards: list[Any] = []

    def add_api_route(self, path: str, call: Any, methods: list[str], dependencies: list[Any]) -> None:
        self.routes[f"{methods[0]} {path}"] = call
        self.guards += dependencies


def routes(webui: WebUI) -> App:
    app = App()
    webui.callbacks["app_started"][0](None, app)
    return app


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_api(webui: WebUI, script: Any, portraits: np.ndarray) -> None:
    calls = routes(webui).routes
    assert set(calls) == {"POST /osdface/restore", "GET /osdface/models"}
    offered = calls["GET /osdface/models"]()
    assert offered["models"] == script.model_names() and offered["options"]["strength"]["default"] == 1.0
    source = picture(portraits)
    request = {"image": "data:image/png;base64," + encoded(source), "model": "tiny.safetensors"}
    answer = calls["POST /osdface/restore"](request | {"faces": "largest", "upscale": 2.0})
    assert len(answer["faces"]) == 1 and webui.state.jobs == ["osdface", "end"]
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert result.size == (600, 300)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"image": "no picture"}, 422, "image is no base64 of a picture"),
        ({"strenght": 1.0}, 422, "unknown: strenght"),
        ({"strength": 7}, 422, "strength"),
        ({"detector_dir": "/etc"}, 422, "unknown: detector_dir"),
        ({"model": "../x.safetensors"}, 500, "no checkpoint at"),
    ],
)
def test_the_api_refuses(
    webui: WebUI, script: Any, change: dict[str, Any], status: int, message: str
) -> None:
    call = routes(webui).routes["POST /osdface/restore"]
    with pytest.raises(HTTPException, match=message) as refused:
        call({"image": encoded(Image.new("RGB", (64, 64)))} | change)
    assert refused.value.status == status


def test_the_api_needs_its_switch_and_its_password(webui: WebUI, script: Any) -> None:
    webui.cmd_opts.api_auth = "me:secret"
    guard = routes(webui).guards[0]
    guard(SimpleNamespace(username="me", password="secret"))
    with pytest.raises(HTTPException, match="Incorrect"):
        guard(SimpleNamespace(username="me", password="guess"))
    webui.cmd_opts.api = False
    assert not routes(webui).routes


def test_another_host_is_told_what_is_needed(webui: WebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "modules.face_restoration")
    monkeypatch.delattr(sys.modules["modules"], "face_restoration")
    with pytest.raises(ImportError, match=r"needs Automatic1111 1\.8 or newer, or Forge"):
        load()


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
    pins: list[str] = []

    def run_pip(command: str, about: str) -> None:
        calls.append(command)
        pins.extend(Path(command.split('"')[-2]).read_text().splitlines())

    launch = types.ModuleType("launch")
    launch.run_pip = run_pip  # type: ignore[attr-defined]
    launch.__spec__ = importlib.util.spec_from_loader("launch", None)
    monkeypatch.setitem(sys.modules, "launch", launch)
    module = installer()
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        "# comment\ntorch\nnumpy>=99\nno-such-package-of-osdface>=1.0\nsafetensors\ntqdm>=999\n"
    )
    monkeypatch.setattr(module, "REQUIREMENTS", requirements)
    module.main()
    assert len(calls) == 1, "several calls of pip could undo each other"
    assert calls[0].startswith('install "no-such-package-of-osdface>=1.0" "tqdm>=999" -c ')
    assert f"safetensors=={importlib.metadata.version('safetensors')}" in pins
    assert not any(pin.startswith("tqdm==") for pin in pins), "what is too old has to be replaced"


def test_of_two_copies_the_imported_one_is_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place, name, version in (("own", "Some_Pack", "1.0"), ("system", "some-pack", "2.0")):
        folder = tmp_path / place / f"some_pack-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), str(tmp_path / "system")])
    assert installer().held([]) == ["Some_Pack==1.0"]
    assert installer().held(["some.pack>=3"]) == []


@pytest.mark.parametrize(
    ("torch_version", "transformers_version", "expected"),
    [
        ("2.1.2+cu121", "4.48.0", "diffusers>=0.30,<0.36"),
        ("2.5.0", None, "diffusers>=0.30,<0.36"),
        ("2.14.1+cpu", "4.30.2", "diffusers>=0.30,<0.36"),
        ("2.6.0", "4.48.0", "diffusers>=0.30"),
        ("2.14.1+cpu", None, "diffusers>=0.30"),
        ("3.0", "5.1", "diffusers>=0.30"),
    ],
)
def test_diffusers_fits_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, transformers_version: str | None, expected: str
) -> None:
    module = installer()
    installed = {"torch": torch_version, "transformers": transformers_version}
    monkeypatch.setattr(module, "_installed", installed.get)
    assert module.fitting("diffusers>=0.30") == expected
    assert module.fitting("safetensors") == "safetensors"


def test_the_installer_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI-Manager runs install.py too, after requirements.txt."""
    monkeypatch.setitem(sys.modules, "launch", None)
    module = installer()
    monkeypatch.setattr(module, "missing_packages", lambda: pytest.fail("looked for packages"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module.main()

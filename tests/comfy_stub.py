"""A stand-in for the few ComfyUI functions that nodes/host.py calls: the nodes' real code runs without it.

`install` puts fake `folder_paths` and `comfy.*` modules into sys.modules; `load_pack` imports the repository
as ComfyUI does: a package under a name of its own. What the nodes asked for can be read from `Host`.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import types
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACK = "osdface_pack"


class InterruptProcessingException(Exception):  # noqa: N818
    """ComfyUI's name for 'the user pressed Cancel'."""


class ModelPatcher:
    """The part of ComfyUI's ModelPatcher that the pack uses, with its way of setting `.device`."""

    def __init__(
        self, model: torch.nn.Module, load_device: torch.device, offload_device: torch.device
    ) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.model.device = offload_device  # type: ignore[assignment]  # fails on a read-only property, as there


class VideoFromFile:
    """ComfyUI's VIDEO of a file, whole or without its beginning."""

    def __init__(self, file: str, *, start_time: float = 0) -> None:
        self.file, self.start_time = file, start_time

    def get_stream_source(self) -> str:
        return self.file

    def get_dimensions(self) -> tuple[int, int]:
        return 0, 0

    def get_duration(self) -> float:
        return 10.0 - self.start_time

    def save_to(self, path: str) -> None:
        """Write what is left of the file: here a file of its own beside it."""
        shutil.copyfile(Path(self.file).with_stem("rest"), path)


@dataclass
class Host:
    """What the fake ComfyUI did and was told."""

    models: Path
    inputs: Path
    folders: dict[str, tuple[list[str], set[str]]] = field(default_factory=dict)
    loads: list[tuple[list[Any], float, bool]] = field(default_factory=list)  # patchers, bytes, whole
    steps: list[tuple[int, int, Any]] = field(default_factory=list)  # value, total, preview
    interrupt_after: int | None = None  # checks for an interrupt until one is raised
    checks: int = 0  # how often the nodes asked for an interrupt

    def used(self, detectors: bool = False) -> set[torch.nn.Module]:
        """The modules that were loaded: detectors, or all others."""
        modules = {getattr(patcher.model, "held", patcher.model) for (patcher,), _, _ in self.loads}
        return {m for m in modules if detectors == (type(m).__name__ in ("Mtcnn", "RetinaFace"))}

    def add_file(self, folder: str, name: str, content: bytes = b"x") -> Path:
        path = self.models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.folders.setdefault(
            folder, ([str(self.models / folder)], {".safetensors", ".ckpt", ".pth", ".pt"})
        )
        return path


def install(monkeypatch: Any, models: Path) -> Host:
    """Fake ComfyUI with its models folder at `models`; undone by `monkeypatch`."""
    host = Host(models, models.parent / "input")
    host.inputs.mkdir(exist_ok=True)
    modules = {"folder_paths": _folder_paths(host), "comfy": types.ModuleType("comfy")}
    modules["comfy"].__path__ = []
    modules["comfy_api"] = types.ModuleType("comfy_api")
    modules["comfy_api.input_impl"] = types.ModuleType("comfy_api.input_impl")
    modules["comfy_api.input_impl"].VideoFromFile = VideoFromFile  # type: ignore[attr-defined]
    for name, build in (("model_management", _memory), ("model_patcher", _patcher), ("utils", _utils)):
        modules[f"comfy.{name}"] = build(host)
        setattr(modules["comfy"], name, modules[f"comfy.{name}"])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return host


class OneCore(MetaPathFinder, Loader):
    """Answers `<pack>.osdface_core.x` with `osdface_core.x`: tests and nodes share one set of classes."""

    stem = f"{PACK}.osdface_core"

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        mine = fullname == self.stem or fullname.startswith(self.stem + ".")
        return ModuleSpec(fullname, self, is_package=False) if mine else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(spec.name.removeprefix(f"{PACK}."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = alias.loader_state  # the import system put the alias's there


def load_pack() -> types.ModuleType:
    """The pack, imported as ComfyUI imports it: a package under a name of its own."""
    if PACK in sys.modules:
        return sys.modules[PACK]
    sys.meta_path.insert(0, OneCore())
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    _keep_functions()
    return module


def _keep_functions() -> None:
    """`faces` offers functions under the names of its modules; importing an alias of such a module later on
    would put the module in the function's place."""
    faces = importlib.import_module("osdface_core.faces")
    for name in ("align", "detect", "paste", "select"):
        function = getattr(importlib.import_module(f"osdface_core.faces.{name}"), name)
        importlib.import_module(f"{PACK}.osdface_core.faces.{name}")
        setattr(faces, name, function)


def _folder_paths(host: Host) -> types.ModuleType:
    module = types.ModuleType("folder_paths")

    def add_model_folder_path(name: str, path: str) -> None:
        paths = host.folders.setdefault(name, ([], set()))[0]
        if path not in paths:
            paths.append(path)

    def listing(name: str) -> dict[str, Path]:
        paths, extensions = host.folders[name]
        found: dict[str, Path] = {}
        for root in map(Path, paths):
            for path in sorted(root.rglob("*")):
                if path.is_file() and (not extensions or path.suffix in extensions):
                    found.setdefault(path.relative_to(root).as_posix(), path)
        return found

    def get_full_path(name: str, file: str) -> str | None:
        return next((str(p) for root in host.folders[name][0] if (p := Path(root) / file).is_file()), None)

    module.models_dir = str(host.models)  # type: ignore[attr-defined]
    module.folder_names_and_paths = host.folders  # type: ignore[attr-defined]
    module.add_model_folder_path = add_model_folder_path  # type: ignore[attr-defined]
    module.get_filename_list = lambda name: list(listing(name))  # type: ignore[attr-defined]
    module.get_full_path = get_full_path  # type: ignore[attr-defined]
    module.get_input_directory = lambda: str(host.inputs)  # type: ignore[attr-defined]
    module.get_temp_directory = lambda: str(host.models.parent / "temp")  # type: ignore[attr-defined]
    module.get_folder_paths = lambda name: list(host.folders[name][0])  # type: ignore[attr-defined]
    return module


def _memory(host: Host) -> types.ModuleType:
    module = types.ModuleType("comfy.model_management")
    cpu = torch.device("cpu")

    def load_models_gpu(models: list[Any], memory_required: float = 0, force_full_load: bool = False) -> None:
        host.loads.append((list(models), memory_required, force_full_load))

    def throw_exception_if_processing_interrupted() -> None:
        host.checks += 1
        if host.interrupt_after is None:
            return
        host.interrupt_after -= 1
        if host.interrupt_after < 0:
            host.interrupt_after = None
            raise InterruptProcessingException

    for name in ("get_torch_device", "intermediate_device", "unet_offload_device"):
        setattr(module, name, lambda: cpu)
    module.get_free_memory = lambda device: 4 << 30  # type: ignore[attr-defined]
    module.should_use_bf16 = module.should_use_fp16 = lambda device=None: False  # type: ignore[attr-defined]
    module.load_models_gpu = load_models_gpu  # type: ignore[attr-defined]
    module.throw_exception_if_processing_interrupted = (  # type: ignore[attr-defined]
        throw_exception_if_processing_interrupted
    )
    module.InterruptProcessingException = InterruptProcessingException  # type: ignore[attr-defined]
    return module


def _patcher(host: Host) -> types.ModuleType:
    module = types.ModuleType("comfy.model_patcher")
    module.ModelPatcher = ModelPatcher  # type: ignore[attr-defined]
    return module


def _utils(host: Host) -> types.ModuleType:
    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            host.steps.append((value, total or self.total, preview))

    module = types.ModuleType("comfy.utils")
    module.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    return module

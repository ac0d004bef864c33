"""The direction of dependencies, read from the sources: who may import whom, and what importing may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "osdface_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
TRAINER = sorted((ROOT / "osdface_trainer").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
HOST = {"folder_paths", "execution", "server", "comfy", "comfy_extras", "comfy_api", "comfy_execution"}
HEAVY = {"facexlib", "spandrel", "diffusers", "kornia", "torchmetrics", "peft", "skimage", "matplotlib"}
# Files and folders of the core from the ground up: each imports from lower rows alone, never from its own.
LAYERS = (
    {"errors", "console", "pickles", "interruption"},
    {"file_kinds"},
    {"choices", "config", "files", "weights", "photo_array"},
    {"options", "checkpoint", "devices", "images", "color"},
    {"models", "faces", "upscale"},
    {"engines", "one_step", "released"},
    {"loading"},
    {"pipeline"},
    {"steps"},
    {"photo", "video"},
    {"__init__"},
    {"cli"},
    {"app"},
    {"__main__"},
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
READING_COST = 3000
"""Most lines that `OSDFacePipeline` is made of."""
LOADING_COST = 3300
"""Most lines of what restores aligned faces and of all that loading takes."""
DOORS = {
    "engines/graphs", "faces/detect", "images", "loading", "models/identity", "models/lora", "upscale",
}  # fmt: skip
"""What `OSDFacePipeline` imports in the functions that call it: its reader needs a docstring of each."""


class Import(NamedTuple):
    """One imported module: `level` dots and `name`; `inside` a function or for type checkers."""

    file: Path
    line: int
    level: int
    name: str
    inside: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {'.' * self.level}{self.name}"

    @property
    def top(self) -> str:
        return self.name.split(".")[0] if self.level == 0 else ""

    @property
    def target(self) -> tuple[str, ...]:
        """Path from the repository's root, for relative imports."""
        package = self.file.relative_to(ROOT).parts[: -self.level]
        return (*package, *self.name.split("."))


def imports(file: Path) -> list[Import]:
    return list(_walk(ast.parse(file.read_text(encoding="utf-8")), file, inside=False))


def _walk(node: ast.AST, file: Path, inside: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, 0, alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, file, inside)
        later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, file, inside or later or typing_only)


def _from(node: ast.ImportFrom, file: Path, inside: bool) -> Iterator[Import]:
    """`from . import a, b` names modules; `from .a import x` names one."""
    if node.module is None:
        yield from (Import(file, node.lineno, node.level, alias.name, inside) for alias in node.names)
    else:
        yield Import(file, node.lineno, node.level, node.module, inside)


def all_imports(files: list[Path]) -> list[Import]:
    return [found for file in files for found in imports(file)]


def named(found: list[Import]) -> str:
    return "\n".join(map(str, found))


def test_there_is_something_to_check() -> None:
    assert len(CORE) > 20
    assert len(NODES) > 5
    assert len(TRAINER) > 20
    assert sum(i.level > 0 for i in all_imports(CORE)) > 50


def test_the_core_knows_neither_comfyui_nor_trainer_nor_nodes() -> None:
    outside = HOST | {"accelerate", "osdface_trainer", "benchmarks", "nodes"}
    bad = [i for i in all_imports(CORE) if i.top in outside or (i.level and i.target[0] != "osdface_core")]
    assert not bad, named(bad)


def test_only_the_command_line_names_the_trainer() -> None:
    """`cli/main.py` imports it by name when one of its commands runs; nobody else mentions it in a string."""
    found = {
        file.relative_to(ROOT).as_posix()
        for file in CORE
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
        if any("trainer" in ast.unparse(argument) for argument in node.args)
    }
    assert found == {"osdface_core/cli/main.py"}


def test_relative_imports_inside_the_pack() -> None:
    """ComfyUI loads the pack under the name of its path: absolute imports find another copy or none."""
    bad = [i for i in all_imports(CORE + NODES) if i.top in {"osdface_core", "nodes"}]
    assert not bad, named(bad)


def test_nodes_use_the_core_alone() -> None:
    bad = [
        i
        for i in all_imports(NODES)
        if i.top in {"osdface_trainer", "benchmarks"}
        or (i.level and i.target[0] not in ("nodes", "osdface_core"))
    ]
    assert not bad, named(bad)


def test_comfyui_is_imported_in_host_only_and_late() -> None:
    bad = [i for i in all_imports(NODES) if i.top in HOST and not (i.file.name == "host.py" and i.inside)]
    assert not bad, named(bad)


def test_the_trainer_uses_the_core_alone() -> None:
    bad = [
        i
        for i in all_imports(TRAINER)
        if i.top in HOST | {"nodes", "benchmarks"} or (i.level and i.target[0] != "osdface_trainer")
    ]
    assert not bad, named(bad)


def test_inference_leaves_conversion_alone() -> None:
    """Conversion opens only for released folders, inside functions."""
    own = [i for i in all_imports(CORE) if i.level]
    convert = [i for i in own if i.target[:2] == ("osdface_core", "released")]
    late = [i for i in convert if not i.inside]
    assert {i.file.relative_to(ROOT).as_posix() for i in late} <= {"osdface_core/cli/convert.py"}, named(late)


def test_heavy_libraries_load_where_they_are_needed() -> None:
    """`tiny_codec.py` subclasses diffusers' modules and is itself imported late."""
    bad = [i for i in all_imports(CORE) if i.top in HEAVY and not i.inside and i.file.name != "tiny_codec.py"]
    assert not bad, named(bad)
    early = [i for i in all_imports(CORE) if i.level and i.target[-1] == "tiny_codec" and not i.inside]
    assert not early, named(early)


def _outside_typing(node: ast.AST, inside: bool) -> Iterator[ast.AST]:
    """All nodes but those for type checkers; `inside`: those of functions, too."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.FunctionDef) and not inside:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_typing(child, inside)


def modules_used(file: Path, inside: bool = True) -> set[Path]:
    """Files of the own package that a file imports, `inside` functions or not."""
    found = set()
    for node in _outside_typing(ast.parse(file.read_text(encoding="utf-8")), inside):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            places = [home / alias.name for alias in node.names]
            found |= {f for place in places if (f := place.with_suffix(".py")).is_file()} or {
                f for f in (home.with_suffix(".py"), home / "__init__.py") if f.is_file()
            }
    return found - {file}


def part_of(file: Path) -> str:
    """Folder of a package, or file at its top."""
    return file.relative_to(ROOT).parts[1]


@pytest.mark.parametrize(
    "files",
    [CORE, TRAINER, NODES, BENCHMARKS],
    ids=["osdface_core", "osdface_trainer", "nodes", "benchmarks"],
)
def test_no_circles(files: list[Path]) -> None:
    """Neither between files nor between folders; `static_order` raises CycleError with the way round."""
    used = {file: modules_used(file) & set(files) for file in files}
    assert list(TopologicalSorter(used).static_order())
    parts: dict[str, set[str]] = {part_of(file): set() for file in files}
    for file, targets in used.items():
        parts[part_of(file)] |= {part_of(target) for target in targets} - {part_of(file)}
    assert list(TopologicalSorter(parts).static_order())


def test_no_upward_arrow_in_the_core() -> None:
    bad = [
        f"{file.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
        for file in CORE
        for target in modules_used(file)
        if (own := part_of(file).removesuffix(".py")) != (other := part_of(target).removesuffix(".py"))
        if LEVEL[own] <= LEVEL[other]
    ]
    assert not bad, "\n".join(bad)


def needed_by(file: Path, inside: bool = True) -> set[Path]:
    """The file and all that it leads to, `inside` functions or not; types alone lead nowhere."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += modules_used(file, inside)
    return found


def lines_of(files: set[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_reading_cost_of_aligned_faces() -> None:
    """Faces in, faces out, with all that loading takes."""
    files = needed_by(ROOT / "osdface_core/pipeline.py")
    assert ROOT / "osdface_core/models/vre.py" in files
    assert lines_of(files) < LOADING_COST, f"{lines_of(files)} lines in {len(files)} files"


def test_the_reading_cost_of_osdface_pipeline() -> None:
    """The whole class, from tokens to pasting; what it leaves to others stands behind the `DOORS`."""
    core = ROOT / "osdface_core"
    files = needed_by(core / "photo.py", inside=False)
    assert {core / f"{name}.py" for name in ("models/vre", "one_step", "faces/paste")} <= files
    assert lines_of(files) < READING_COST, f"{lines_of(files)} lines in {len(files)} files"
    late = {target for file in files for target in modules_used(file)} - files
    names = {target.relative_to(core).with_suffix("").as_posix() for target in late}
    assert {name.removesuffix("/__init__") for name in names} == DOORS


ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_importing_the_core_does_nothing(file: Path) -> None:
    """Module level holds names only: no calls for their effect, loops, sys.path edits or device queries."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), (
                f"line {node.lineno}"
            )
        else:
            assert isinstance(node, ALLOWED), f"line {node.lineno}: {ast.unparse(node)}"


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_costs_nothing() -> None:
    loaded = loaded_after("import osdface_core; osdface_core.__version__")
    assert not loaded & {"torch", "numpy", "PIL"}


def test_a_restored_photo_needs_neither_conversion_nor_trainer(tiny_checkpoint: Path) -> None:
    loaded = loaded_after(
        "import numpy as np, osdface_core\n"
        f"pipe = osdface_core.OSDFacePipeline.from_pretrained({str(tiny_checkpoint)!r}, device='cpu')\n"
        "pipe.restore_photo(np.zeros((64, 64, 3), np.uint8))"
    )
    assert "osdface_core.pipeline" in loaded
    bad = {
        m for m in loaded if m.startswith(("osdface_core.released", "osdface_trainer", "benchmarks", "nodes"))
    }
    assert not bad
    assert not loaded & {"kornia", "torchmetrics", "spandrel"}  # diffusers brings others of its own

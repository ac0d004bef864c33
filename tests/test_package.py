"""The package for ComfyUI's registry: small, complete, and without what its scanner refuses."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CALLS = re.compile(r"(?<![\w.])(eval|exec|compile|__import__)\(")
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
pack = importlib.import_module("pack")
assert len(pack.NODE_CLASS_MAPPINGS) >= 14
for part in ("nodes", "osdface_core"):
    module = importlib.import_module(f"pack.{part}")
    for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
        importlib.import_module(found.name)
"""


def git(*arguments: str) -> set[str]:
    listed = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    return {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Tracked (or about to be) files without those of .comfyignore, as `comfy node publish` takes them."""
    tracked = git("ls-files", "--cached", "--others", "--exclude-standard")
    left_out = git("ls-files", "--cached", "--others", "--ignored", "--exclude-from=.comfyignore")
    return sorted(ROOT / name for name in tracked - left_out)


def test_it_is_small(files):
    assert len(files) < 120
    assert sum(path.stat().st_size for path in files) < 45e6


def test_nothing_that_the_scanner_refuses(files):
    for path in files:
        if path.suffix == ".py":
            imports = re.findall(r"^\s*(?:import|from) ([\w.]+)", path.read_text(encoding="utf-8"), re.M)
            bad = {name.split(".")[0] for name in imports} & {
                "subprocess",
                "ctypes",
                "urllib",
                "requests",
                "socket",
            }
            assert not bad and not CALLS.search(path.read_text(encoding="utf-8")), path


def test_it_holds_all_that_the_nodes_import(files, tmp_path):
    for path in files:
        target = tmp_path / "pack" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            shutil.copyfile(path, target)
    command = [sys.executable, "-c", IMPORT_ALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_node_reaches_what_is_left_out(files):
    """Imports in functions, too; the core's door offers photo files by name, a fetch is refused before."""
    lazy = {"osdface_core/__init__.py", "osdface_core/faces/retinaface.py"}
    shipped = {path.relative_to(ROOT).as_posix() for path in files}
    for path in files:
        if path.suffix != ".py" or path.relative_to(ROOT).as_posix() in lazy:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                place = path.parents[node.level - 1].relative_to(ROOT)
                target = place.joinpath(*(node.module or "").split(".")).as_posix()
                assert {f"{target}.py", f"{target}/__init__.py"} & shipped, f"{path.name} imports {target}"

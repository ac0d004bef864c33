"""The pages against the disk: trees, commands, links."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osdface_core import read_photo, write_photo
from osdface_core.cli import main as cli
from osdface_core.cli.restore import add_arguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEVELOPMENT = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "cpu" / "README.md"])
GENERATED = {"build", "dist", "runs", "__pycache__", "osdface-app", "osdface-demo"}


def tree(page: str) -> list[str]:
    """Paths of a page's tree."""
    block = next(b for b in page.split("```")[1::2] if "├──" in b)
    paths: list[str] = []
    parents: list[str] = []
    for line in block.strip().splitlines():
        match = re.match(r"((?:│   )*)[├└]── (\S+)", line)
        assert match, line
        parents[len(match[1]) // 4 :] = [match[2].rstrip("/")]
        paths.append("/".join(parents))
    return paths


def listed(folder: Path) -> set[str]:
    """What lies in a folder, without hidden and generated entries."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith((".", "__pycache__"))}
    return {n for n in names if n not in GENERATED and not n.endswith((".egg-info", ".pyc"))}


@pytest.mark.parametrize("page", [README, DEVELOPMENT], ids=["README", "development"])
def test_everything_in_the_tree_is_on_the_disk(page: str) -> None:
    assert [path for path in tree(page) if not (ROOT / path).exists()] == []


def test_everything_on_the_disk_is_in_the_whole_tree() -> None:
    paths = set(tree(DEVELOPMENT))
    assert listed(ROOT) - {"README.md", "LICENSE"} - paths == set()
    core = {f"osdface_core/{name}" for name in listed(ROOT / "osdface_core") - {"__init__.py", "py.typed"}}
    assert core - paths == set()


def test_the_quickstarts_come_first() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.S)
    assert first
    commands = [line.split("  ")[0].strip() for line in first[1].strip().splitlines()]
    assert commands == ['pip install -e ".[demo]" && osdface demo', "osdface restore photo.jpg -o out.png"]
    assert README.index("docs/images/demo.png") < first.start()


def test_the_test_command_is_the_one_of_ci() -> None:
    command = 'pip install -e ".[test]" && pytest'
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
    return [m[0].strip() for m in re.finditer(r"osdface [^#\n&]+", blocks)]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    assert name in cli.COMMANDS or name in cli.TRAINER_COMMANDS
    if name == "restore":
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_arguments(parser)
        parser.parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_into_the_repository_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portraits: np.ndarray, tiny_checkpoint: Path
) -> None:
    """As it stands, but for a smaller model than `mini`."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 1 and blocks[0].count('"mini"') == 1
    write_photo(tmp_path / "photo.jpg", portraits)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks[0].replace('"mini"', repr(str(tiny_checkpoint))), names)
    assert read_photo("restored.png").pixels.shape == portraits.shape
    assert names["restored"].shape == (2, 3, 512, 512)

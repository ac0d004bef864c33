"""The README against the disk: its tree, its commands, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from osdface_core.cli import main as cli
from osdface_core.cli.restore import add_arguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = {"build", "dist", "runs", "__pycache__", "osdface-demo"}


def tree() -> list[str]:
    """Paths of the README's tree."""
    block = next(b for b in README.split("```")[1::2] if "├──" in b)
    paths, parent = [], ""
    for line in block.strip().splitlines():
        match = re.match(r"(│   )?[├└]── (\S+)", line)
        assert match, line
        name = match[2].rstrip("/")
        paths.append(f"{parent}/{name}" if match[1] else name)
        parent = parent if match[1] else name
    return paths


def listed(folder: Path) -> set[str]:
    """What lies in a folder, without hidden and generated entries."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith((".", "__pycache__"))}
    return {n for n in names if n not in GENERATED and not n.endswith((".egg-info", ".pyc"))}


def test_everything_in_the_tree_is_on_the_disk() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_everything_on_the_disk_is_in_the_tree() -> None:
    paths = set(tree())
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
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
    return [m[0].strip() for m in re.finditer(r"osdface [^#\n&]+", blocks)]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    import argparse

    name, *arguments = shlex.split(command)[1:]
    assert name in cli.COMMANDS or name in cli.TRAINER_COMMANDS
    if name == "restore":
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_arguments(parser)
        parser.parse_args(arguments)


def test_links_into_the_repository_exist() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target

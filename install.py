"""Automatic1111 and Forge run this file at their start: it installs what they lack of requirements.txt.

ComfyUI-Manager runs it too, after it has installed requirements.txt itself; then there is nothing left to do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"
# Never replaced: the web UI has chosen a build of these for the machine.
KEPT = {"torch", "torchvision", "numpy", "pillow"}
# Later diffusers fail to import beside the PyTorch 2.1 that Automatic1111 installs.
OLD_TORCH, FOR_OLD_TORCH = (2, 6), "diffusers>=0.30,<0.36"


def missing_packages() -> list[str]:
    """Lines of requirements.txt whose distribution is not installed."""
    lines = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    names = {
        line: re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower()
        for line in lines
        if line and line[0] != "#"
    }
    return [line for line, name in names.items() if name not in KEPT and not _installed(name)]


def fitting(line: str) -> str:
    """The requirement as the installed PyTorch needs it."""
    if not line.startswith("diffusers"):
        return line
    numbers = re.findall(r"\d+", importlib.metadata.version("torch") if _installed("torch") else "")
    old = bool(numbers) and tuple(map(int, numbers[:2])) < OLD_TORCH
    return FOR_OLD_TORCH if old else line


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Install through the web UI's own launcher, which knows its index and its --skip-install."""
    if importlib.util.find_spec("launch") is None:
        return
    import launch  # type: ignore[import-not-found]

    if not hasattr(launch, "run_pip"):
        return
    for line in map(fitting, missing_packages()):
        launch.run_pip(f'install "{line}"', f"{line} for OSDFace")


if __name__ == "__main__":
    main()

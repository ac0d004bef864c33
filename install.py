"""Automatic1111 and Forge run this file at their start: it installs what they lack of requirements.txt.

ComfyUI-Manager runs it too, after it has installed requirements.txt itself; then there is nothing left to do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"
# Never replaced: the web UI has chosen a build of these for the machine.
KEPT = {"torch", "torchvision", "numpy", "pillow"}
# Later diffusers fail to import beside the PyTorch 2.1 or the transformers 4.30 that Automatic1111 installs.
NEEDED, FOR_OLDER = {"torch": (2, 6), "transformers": (4, 48)}, "diffusers>=0.30,<0.36"


def missing_packages() -> list[str]:
    """Lines of requirements.txt whose distribution is not installed, or older than the line asks for."""
    lines = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and line[0] != "#" and not _satisfied(line)]


def fitting(line: str) -> str:
    """The requirement as the installed PyTorch and transformers need it."""
    if not line.startswith("diffusers"):
        return line
    installed = {name: version for name in NEEDED if (version := _installed(name))}
    older = any(_numbers(version)[:2] < NEEDED[name] for name, version in installed.items())
    return FOR_OLDER if older else line


def held(wanted: list[str]) -> list[str]:
    """Pins of everything that is installed, but for what `wanted` replaces: pip may add and not change.

    Of two copies, as where a venv sees the system's packages, the one that Python imports: pip refuses both.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():  # in the order of sys.path
        if name := distribution.metadata["Name"]:
            found.setdefault(_canonical(name), f"{name}=={distribution.version}")
    replaced = {_name(line) for line in wanted}
    return sorted(pin for name, pin in found.items() if name not in replaced)


def _satisfied(line: str) -> bool:
    version = _installed(_name(line))
    if version is None:
        return _name(line) in KEPT
    least = re.search(r">=\s*([\d.]+)", line)
    return _name(line) in KEPT or least is None or _numbers(version) >= _numbers(least[1])


def _name(line: str) -> str:
    return _canonical(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Install through the web UI's own launcher, which knows its index and its --skip-install."""
    if importlib.util.find_spec("launch") is None:
        return
    import launch  # type: ignore[import-not-found]

    wanted = list(map(fitting, missing_packages()))
    if not wanted or not hasattr(launch, "run_pip"):
        return
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "installed.txt"
        pins.write_text("\n".join(held(wanted)), encoding="utf-8")
        packages = " ".join(f'"{line}"' for line in wanted)
        launch.run_pip(f'install {packages} -c "{pins}"', "packages for OSDFace, beside those installed")


if __name__ == "__main__":
    main()

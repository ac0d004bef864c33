"""One version, written in pyproject.toml, from a clone and from an installation."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import osdface_core

ROOT = Path(__file__).resolve().parents[1]


def version_of(folder: Path) -> str:
    """`__version__` of the copy in `folder`."""
    code = "import osdface_core as o; print(o.__file__); print(o.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    file, version = done.stdout.split("\n")[:2]
    assert Path(file).resolve().is_relative_to(folder.resolve())
    return version


def test_a_clone_reads_its_own_file_and_an_installed_copy_its_metadata(tmp_path: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    written = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert written and osdface_core.__version__ == written[1]
    (tmp_path / "osdface_core").mkdir()
    shutil.copy(ROOT / "osdface_core" / "__init__.py", tmp_path / "osdface_core")
    assert version_of(tmp_path) == metadata.version("osdface")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "7.0"\n')
    assert version_of(tmp_path) == metadata.version("osdface")
    (tmp_path / "pyproject.toml").write_text(project.replace(written[0], 'version = "9.8.7"'))
    assert version_of(tmp_path) == "9.8.7"

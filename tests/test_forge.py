"""The extension in a real Forge: start, Extras tab, restorers, API. Skipped where there is none.

FORGE_PATH names a checkout; FORGE_PYTHON a Python with its requirements (this one by default).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("forge_checks.py")


def test_forge(tmp_path: Path) -> None:
    if not os.environ.get("FORGE_PATH"):
        pytest.skip("FORGE_PATH is not set: give the path of a Forge checkout to run this test")
    command = [os.environ.get("FORGE_PYTHON", sys.executable), str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.split("RESULT ")[-1])["api"]["faces"] == 1

"""The pack in a real ComfyUI: its loader, its validation, its executor. Skipped where there is none.

COMFYUI_PATH names a checkout; COMFYUI_PYTHON a Python with its requirements (this one by default).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("comfyui_checks.py")
pytestmark = pytest.mark.comfyui


def run_check(name: str, base: Path) -> dict:
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        pytest.skip("COMFYUI_PATH is not set: give the path of a ComfyUI checkout to run this test")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(SCRIPT), name, str(base)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # as ComfyUI alone imports
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=base, env=env
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.split("RESULT ")[-1])


def test_loader(tmp_path: Path) -> None:
    result = run_check("load", tmp_path)
    assert len(result["nodes"]) == 15
    assert any(path.endswith("web") for path in result["docs"].values())


def test_validation_of_every_workflow(tmp_path: Path) -> None:
    assert len(run_check("validate", tmp_path)["workflows"]) == 6


def test_execution_caching_and_reuse(tmp_path: Path) -> None:
    assert run_check("execute", tmp_path)["loaded"] == 3


def test_a_picture_without_faces(tmp_path: Path) -> None:
    pictures = run_check("landscape", tmp_path)["pictures"]
    assert set(pictures) == {"compare", "group_step_by_step", "restore_photo"} and all(pictures.values())


def test_interrupt(tmp_path: Path) -> None:
    assert run_check("interrupt", tmp_path)["previews"] == 1


def test_native_noise_equals_diffusers(tmp_path: Path) -> None:
    result = run_check("native", tmp_path)
    assert result["layers"] == result["of"] > 60

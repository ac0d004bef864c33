"""Fixtures shared by the tests: where the reference data lies, and one thread per test process."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference numbers, faces and third-party weights; skips where it is absent."""
    folder = Path(os.environ.get("OSDFACE_SHARED", ROOT.parent / "shared"))
    if not (folder / "refs").is_dir():
        pytest.skip(f"no reference data at {folder}: set OSDFACE_SHARED to run this test")
    return folder

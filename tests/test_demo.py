"""`osdface demo`: from installed packages alone, and visibly better with the embedded checkpoint."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osdface_core.cli import demo
from osdface_core.cli.demo import degrade
from osdface_core.cli.main import main

FACES = ((90, 45, 210, 240), (350, 60, 520, 270))  # left, top, right, bottom in the clean photo [px]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_photo(portraits: np.ndarray) -> None:
    assert portraits.shape == (300, 600, 3)
    assert portraits.dtype == np.uint8
    bad = degrade(portraits)
    assert bad.shape == (150, 300, 3)
    assert np.array_equal(bad, degrade(portraits))
    assert not np.array_equal(bad, degrade(portraits, seed=1))


@pytest.mark.usefixtures("offline")
def test_four_pictures(
    portraits: np.ndarray, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "demo"
    assert main(["demo", "-o", str(out), "--model", str(tiny_checkpoint), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"restored 2 faces; before and after: {out / 'demo.png'}\n"
    sizes = {p.name: Image.open(p).size for p in out.iterdir()}
    assert sizes == {
        "clean.png": (600, 300),
        "before.png": (300, 150),
        "after.png": (1200, 600),
        "demo.png": (1200, 1208),
    }
    assert np.array_equal(np.asarray(Image.open(out / "clean.png")), portraits)


def test_out_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").touch()
    assert main(["demo", "-o", str(tmp_path / "x")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["skimage", "matplotlib"])
def test_a_package_is_missing(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "-o", str(tmp_path / "x")]) == 1
    err = capsys.readouterr().err
    assert 'pip install "osdface[demo]"' in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def detail(image: np.ndarray) -> float:
    """Mean step between neighbouring pixels."""
    return float(np.abs(np.diff(image.astype(float).mean(-1), axis=1)).mean())


@pytest.mark.usefixtures("offline")
def test_the_embedded_checkpoint_restores_both_faces(tmp_path: Path, portraits: np.ndarray) -> None:
    """More of the clean photo's detail than the enlarged input, and hardly further from it (0.3 dB)."""
    assert main(["demo", "-o", str(tmp_path), "--dtype", "fp32", "--device", "cpu"]) == 0
    before, after = (
        np.asarray(Image.open(tmp_path / name).resize((600, 300), Image.Resampling.BICUBIC))
        for name in ("before.png", "after.png")
    )
    gains = []
    for left, top, right, bottom in FACES:
        area = (slice(top, bottom), slice(left, right))
        gains.append(psnr(after[area], portraits[area]) - psnr(before[area], portraits[area]))
        assert detail(before[area]) < detail(after[area]) < 1.2 * detail(portraits[area])
    assert np.mean(gains) > -0.3


def test_nothing_is_fetched_by_the_packages() -> None:
    """Both photos lie inside the installed packages."""
    skimage = pytest.importorskip("skimage")
    matplotlib = pytest.importorskip("matplotlib")
    assert list(Path(skimage.__file__).parent.rglob("astronaut.png"))
    assert list(Path(matplotlib.get_data_path()).rglob("grace_hopper.jpg"))
    assert demo.FILES[-1] == "demo.png"

"""The extension in a real Forge: start, Extras tab, restorers, API; and its page in a headless Chromium.

FORGE_PATH names a checkout (skipped without one); FORGE_PYTHON a Python with its requirements (this one by
default).
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("forge_checks.py")
PHOTO = ROOT / "nodes" / "examples" / "osdface_example.jpg"
PYTHON = os.environ.get("FORGE_PYTHON", sys.executable)
ROWS = 12  # so many that a button is pressed before the last face, on a fast machine too
PASTED = ("Face restoration: OSDFace", "OSDFace model: mini", "OSDFace strength: 0.4")
PROMPTS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def checkout() -> Path:
    if not os.environ.get("FORGE_PATH"):
        pytest.skip("FORGE_PATH is not set: give the path of a Forge checkout to run this test")
    return Path(os.environ["FORGE_PATH"]).resolve()


def test_forge(checkout: Path, tmp_path: Path) -> None:
    command = [PYTHON, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.split("RESULT ")[-1])["api"]["faces"] == 1


@pytest.fixture
def address(checkout: Path, tmp_path: Path) -> Iterator[str]:
    """Forge's server with the extension and one checkpoint that looks like Stable Diffusion 2."""
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "osdface").symlink_to(ROOT, target_is_directory=True)
    base = tmp_path / "models" / "Stable-diffusion" / "sd21.safetensors"
    base.parent.mkdir(parents=True)
    save_file({PROMPTS: torch.zeros(2, 1024)}, base)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        *(PYTHON, "launch.py", "--skip-prepare-environment", "--skip-version-check", "--always-cpu", "--api"),
        *("--data-dir", str(tmp_path), "--gradio-allowed-path", str(checkout), "--port", port),
    ]
    with subprocess.Popen(command, cwd=checkout) as server:
        for _ in range(900):
            with socket.socket() as probe:
                if server.poll() is not None or not probe.connect_ex(("127.0.0.1", int(port))):
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
        server.kill()  # Forge does not always end when asked to, and its data folder is temporary


def make_pictures(folder: Path) -> tuple[Path, Path]:
    """Save a photo of many faces, and a picture whose infotext says what ran."""
    with Image.open(PHOTO) as photo:
        width, height = photo.size
        group = Image.new("RGB", (width, height * ROWS))
        for row in range(ROWS):
            group.paste(photo, (0, row * height))
    group.save(folder / "group.png")
    said = PngInfo()
    said.add_text("parameters", f"a face\nSteps: 1, {', '.join(PASTED)}, Version: 1.10.1")
    Image.new("RGB", (64, 64)).save(folder / "said.png", pnginfo=said)
    return folder / "group.png", folder / "said.png"


def _works(page: Any, address: str) -> bool:
    progress = page.request.get(f"{address}/sdapi/v1/progress?skip_current_image=true")
    return bool(progress.json()["state"]["job"])


@pytest.mark.slow
def test_the_page(address: str, browser: Any, tmp_path: Path) -> None:
    """A base stays chosen when its title gains a hash; Interrupt, Generate and Skip in the Extras tab.

    An infotext that is pasted brings back restorer and strength.
    """
    group, said = make_pictures(tmp_path)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(900_000)  # a wait ends with its event; so long only where other work starves it
    page.goto(address)
    tabs, extras = page.locator("#tabs > .tab-nav button"), page.locator("#tab_extras")
    tabs.filter(has_text="Extras").click()
    panel = extras.locator(".input-accordion", has_text="OSDFace")
    extras.locator("#extras_image input[type=file]").set_input_files(group)
    panel.locator(".label-wrap").click()
    panel.get_by_label("Stable Diffusion 2.1-base").click()
    panel.locator("li", has_text="sd21").click()

    tabs.filter(has_text="Settings").click()
    page.locator("#settings > .tab-nav button", has_text="Actions").click()
    page.locator("#calculate_all_checkpoint_hash").click()
    while "[" not in page.request.get(f"{address}/sdapi/v1/sd-models").json()[0]["title"]:
        page.wait_for_timeout(500)
    tabs.filter(has_text="Extras").click()

    outcomes = {"interrupt": "OSDFace error: stopped", "": f"OSDFace faces: {2 * ROWS}", "skip": ""}
    for button, outcome in outcomes.items():
        extras.locator("#extras_generate").click()
        if button:
            extras.locator(".progress", has_text="OSDFace").wait_for()
            extras.locator(f"#extras_{button}").click()
        if outcome:
            extras.locator("#html_info_x_extras", has_text=outcome).wait_for()
        while _works(page, address):
            page.wait_for_timeout(200)
    assert len(list(tmp_path.glob("outputs/extras-images/*.png"))) == 2, "a skipped picture is not written"

    tabs.filter(has_text="PNG Info").click()
    page.locator("#tab_pnginfo input[type=file]").set_input_files(said)
    page.locator("#tab_pnginfo p", has_text=PASTED[-1]).wait_for()
    page.locator("#tab_pnginfo button", has_text="txt2img").click()
    overridden = page.locator("#txt2img_override_settings")
    for setting in ("Face restoration: True", "Face restoration model: OSDFace", PASTED[-1]):
        overridden.get_by_text(setting, exact=True).wait_for()

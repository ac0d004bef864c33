"""Checks inside a real Forge: `FORGE_PATH=... python forge_checks.py BASE`, with Forge's Python.

Forge's own start, without its installer and without a checkpoint, on the CPU: the extension is loaded, its
panel is built and run on a photo as the Extras tab runs it, and the API is asked. Prints one JSON line; an
assertion ends it with status 1. The restored photo is BASE/restored.png.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORGE = Path(os.environ["FORGE_PATH"]).resolve()
PHOTO = ROOT / "nodes" / "examples" / "osdface_example.jpg"


def start(base: Path) -> None:
    """Lay out a data folder with the extension, and do what Forge's launch.py and webui.py do."""
    (base / "extensions").mkdir(parents=True, exist_ok=True)
    if not (base / "extensions" / "osdface").exists():
        (base / "extensions" / "osdface").symlink_to(ROOT, target_is_directory=True)
    flags = [
        "--skip-prepare-environment",
        "--skip-version-check",
        "--always-cpu",
        "--api",
        "--data-dir",
        str(base),
    ]
    sys.argv = ["launch.py", *flags]
    sys.path[0] = str(FORGE)
    os.chdir(FORGE)
    from modules_forge.initialization import initialize_forge

    initialize_forge()
    from modules import initialize

    initialize.imports()
    initialize.initialize()


def check_extras(base: Path) -> dict[str, Any]:
    """Build all panels of the Extras tab as its tab does, and run ours."""
    import gradio as gr
    import numpy as np
    from modules import scripts, scripts_postprocessing
    from PIL import Image

    with gr.Blocks():
        scripts.scripts_postproc.setup_ui()
    script = next(s for s in scripts.scripts_postproc.scripts if s.name == "OSDFace")
    values = {name: control.value for name, control in script.controls.items()}
    assert values["model"] == "mini" and values["base"] == "none" and "threshold" in values, values
    photo = Image.open(PHOTO).convert("RGB")
    picture = scripts_postprocessing.PostprocessedImage(photo)
    script.process(picture, **values | {"enable": True})
    assert picture.info["OSDFace faces"] == 2, picture.info
    picture.image.save(base / "restored.png")
    change = np.abs(np.asarray(picture.image, float) - np.asarray(photo, float))
    assert change.max() > 20 and (change == 0).mean() > 0.3, "not only the faces, or not even they"
    missing = scripts_postprocessing.PostprocessedImage(photo)
    script.process(missing, **values | {"enable": True, "model": "gone.safetensors"})
    assert missing.image is photo and "gone.safetensors" in missing.info["OSDFace error"]
    return {"info": picture.info, "error": missing.info}


def check_restorer() -> dict[str, Any]:
    """The choice among the face restorers, its settings, and the axes of the X/Y/Z plot."""
    from modules import script_callbacks, scripts, shared

    script_callbacks.before_ui_callback()
    script_callbacks.ui_settings_callback()
    grid = next(data.module for data in scripts.scripts_data if data.path.endswith("xyz_grid.py"))
    axes = [axis.label for axis in grid.axis_options if axis.label.startswith("OSDFace")]
    assert axes == ["OSDFace strength", "OSDFace model"]
    names = [restorer.name() for restorer in shared.face_restorers]
    assert names.count("OSDFace") == 1 and "osdface_strength" in shared.opts.data_labels
    return {"restorers": names, "axes": axes}


def check_api() -> dict[str, Any]:
    """Ask the two routes on an application that was started as Forge starts its own."""
    from fastapi import FastAPI, HTTPException
    from modules import script_callbacks
    from PIL import Image

    app = FastAPI()
    script_callbacks.app_started_callback(None, app)
    ask: dict[str, Any] = {getattr(r, "path", ""): getattr(r, "endpoint", None) for r in app.routes}
    assert "mini" in ask["/osdface/models"]()["models"]
    photo = base64.b64encode(PHOTO.read_bytes()).decode()
    refused = ""
    try:
        ask["/osdface/restore"]({"image": photo, "faces": "best"})
    except HTTPException as error:
        refused = f"{error.status_code} {error.detail}"
    assert refused.startswith("422 faces is"), refused
    answer = ask["/osdface/restore"]({"image": photo, "faces": "largest"})
    size = Image.open(io.BytesIO(base64.b64decode(answer["image"]))).size
    assert len(answer["faces"]) == 1 and size == Image.open(PHOTO).size
    return {"faces": len(answer["faces"]), "refused": refused}


if __name__ == "__main__":
    base = Path(sys.argv[1]).resolve()
    start(base)
    print(
        "RESULT "
        + json.dumps({"extras": check_extras(base), "restorer": check_restorer(), "api": check_api()})
    )

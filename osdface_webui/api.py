# pyright: reportMissingImports=false
"""POST /osdface/restore and GET /osdface/models, where the web UI was started with --api."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
from typing import Any

import numpy as np
from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared
from modules.call_queue import queue_lock
from PIL import Image

from osdface_core.errors import OSDFaceError
from osdface_core.options import (
    DetectOptions,
    LoadOptions,
    PasteOptions,
    RestoreOptions,
    options_of,
)

from .choices import NO_BASE, base_names, model_names
from .work import restore

OPTIONS = {
    name: option
    for options in (DetectOptions, RestoreOptions, PasteOptions)
    for name, option in options_of(options).items()
    if name not in ("detector_dir", "upscale_model")  # paths on the server are not for clients
}


def add_routes(_: Any, app: FastAPI) -> None:
    """Add the routes, behind the same names and passwords as the web UI's own API."""
    if not (getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False)):
        return
    guard = [Depends(_authorised)] if getattr(shared.cmd_opts, "api_auth", None) else []
    app.add_api_route("/osdface/restore", restore_route, methods=["POST"], dependencies=guard)
    app.add_api_route("/osdface/models", models_route, methods=["GET"], dependencies=guard)


def _authorised(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
    given = f"{credentials.username}:{credentials.password}".encode()
    allowed = [pair.strip().encode() for pair in shared.cmd_opts.api_auth.split(",")]
    if True not in [secrets.compare_digest(given, pair) for pair in allowed]:
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def models_route() -> dict[str, Any]:
    """Tell what can be asked for."""
    options = {name: {"default": o.default, "allowed": o.span, "help": o.help} for name, o in OPTIONS.items()}
    return {"models": model_names(), "bases": base_names(), "options": options}


def restore_route(request: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Restore `image` (base64, also as a data URL); the rest is as in `models_route`."""
    known = {"image", "model", "base", *OPTIONS}
    if unknown := sorted(set(request) - known):
        raise HTTPException(422, f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    pixels = _decoded(request.get("image"))
    options = {name: value for name, value in request.items() if name in OPTIONS}
    try:
        for name, value in options.items():
            OPTIONS[name].check(value)
    except OSDFaceError as error:
        raise HTTPException(422, str(error).replace("`", "")) from error
    with queue_lock:
        shared.state.begin(job="osdface")
        try:
            model, base = request.get("model") or LoadOptions.source, request.get("base") or NO_BASE
            outcome = restore(pixels, str(model), str(base), options)
        finally:
            shared.state.end()
    if outcome.error:
        raise HTTPException(500, outcome.error)
    faces = [face.to_dict() for face in outcome.faces]
    return {"image": _encoded(outcome.image), "faces": faces}


def _decoded(text: Any) -> np.ndarray:
    try:
        data = base64.b64decode(str(text or "").rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except (binascii.Error, OSError, ValueError) as error:
        raise HTTPException(422, f"image is no base64 of a picture ({error})") from error


def _encoded(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()

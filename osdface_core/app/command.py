# pyright: reportMissingImports=false
"""`osdface app`: its arguments, and the server."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from ..cli.arguments import add_options
from ..cli.restore import add_model_arguments
from ..console import say
from ..errors import CheckpointError, ConfigError
from ..options import DetectOptions, LoadOptions, PasteOptions, pick

SIZE = 2048  # [MB]
DAY = 24 * 3600  # [s]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface app` on `parser`."""
    parser.epilog = "Whatever else can be chosen stands in the page. Ctrl-C ends it."
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("osdface-app"), metavar="DIR",
        help="folder for restored photos and videos (osdface-app)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="folder with further models to choose from"
    )
    parser.add_argument(
        "--listen", action="store_true",
        help="be there for other machines, without a password; the folder tab is then left out",
    )  # fmt: skip
    parser.add_argument("--port", type=int, metavar="N", help="where it is found (the first free from 7860)")
    parser.add_argument(
        "--max-upload", type=int, default=SIZE, metavar="MB", help=f"largest file that is taken [MB] ({SIZE})"
    )
    add_model_arguments(parser)
    places = parser.add_argument_group("files of this machine")
    add_options(places, DetectOptions, "detector_dir")
    add_options(places, PasteOptions, "upscale_model")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; return 0.

    Raises:
        ConfigError: Gradio is missing, or the options do not fit the machine; `--model` names none.
    """
    if find_spec("gradio") is None:
        raise ConfigError(
            'gradio is not installed, which this needs: pip install "osdface[app]" '
            '(in a clone: pip install -e ".[app]")'
        )
    _check(args)
    with tempfile.TemporaryDirectory(prefix="osdface-app-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # nobody's photos stay behind
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        _serve(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    from ..cli.info import describe
    from ..cli.usage import check_folder, check_places

    if args.max_upload < 1:
        raise ConfigError(f"--max-upload {args.max_upload}: expected at least 1")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ConfigError(f"--port {args.port}: expected 1..65535")
    if args.models and not args.models.is_dir():
        raise ConfigError(f"--models {args.models}: no such folder")
    check_folder("--out", args.out)
    check_places(args)
    try:
        describe(args.source)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _serve(args: argparse.Namespace) -> None:
    from .page import THEME, build
    from .work import Workshop

    places = {"detector_dir": args.detector_dir, "upscale_model": args.upscale_model}
    out = args.out.expanduser().resolve()
    workshop = Workshop(pick(LoadOptions, vars(args)), args.models, out, places)
    page = build(workshop, folders=not args.listen)
    try:
        _, address, _ = page.launch(
            server_name="0.0.0.0" if args.listen else "127.0.0.1",
            server_port=args.port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            max_file_size=args.max_upload * 1000 * 1000, allowed_paths=[str(out)], footer_links=[],
            theme=THEME,
        )  # fmt: skip
    except OSError as error:
        place = f"--port {args.port}" if args.port else "any port from 7860"
        raise ConfigError(f"no server at {place}: in use, or not allowed; give another --port") from error
    say(f"{address}  results: {out}")
    try:
        while True:
            time.sleep(DAY)  # on Windows, Ctrl-C ends nothing else
    except KeyboardInterrupt:
        say("stopping")
    finally:
        workshop.close()
        page.close()

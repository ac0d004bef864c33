# pyright: reportMissingImports=false, reportUnknownParameterType=false
"""The page: tabs, dials, and what each button calls."""

from __future__ import annotations

import contextvars
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from ..cli.report import failure_line
from ..cli.usage import PLACES
from ..errors import ConfigError, OSDFaceError
from ..file_kinds import VIDEOS
from ..images import readable
from ..options import (
    SETS,
    WORDS,
    DetectOptions,
    Option,
    Options,
    PasteOptions,
    RestoreOptions,
    VideoOptions,
    options_of,
)
from ..pipeline import OnProgress
from .controls import dial, menu, value_of
from .work import Found, Press, Stopped, Workshop

log = logging.getLogger(__name__)
Given = Mapping[Any, Any]
"""What the components hold when a button is pressed."""
Work = Callable[[Press, Given, OnProgress], Any]
"""What a button does; its result is what the page then shows."""
THEME = gr.themes.Default().set(
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
)
"""Gradio's own, whose explanations are too pale to read."""
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""All that uses the model waits in one line: no two photos meet."""
PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Videos that are shown, too."""
TABLE = {name: option for one in SETS for name, option in options_of(one).items()}
UPLOADED = r"[^\s:]*[/\\][0-9a-f]{64}[/\\]"
"""Where Gradio puts uploads, which is nothing to people."""
DAY = 24 * 3600  # [s]
TITLE = """# OSDFace
Faces of photos and videos, restored in one step on this machine. All around them stays as it is."""


def build(workshop: Workshop, folders: bool) -> gr.Blocks:
    """Lay out the page.

    Args:
        folders: offer the tab that reads and writes folders of this machine.
    """
    with gr.Blocks(title="OSDFace", analytics_enabled=False, delete_cache=(DAY, 7 * DAY)) as page:
        with gr.Sidebar(position="right", width=400):
            names = workshop.names()
            model = gr.Dropdown(**menu(TABLE["source"], names, value=names[0]))
            dials = {**_dials("Look", RestoreOptions, PasteOptions), **_dials("Faces", DetectOptions)}
        gr.Markdown(TITLE)
        with gr.Tab("Photo"):
            _photo(workshop, model, dials)
        if folders:
            with gr.Tab("Folder"):
                _folder(workshop, model, dials)
        with gr.Tab("Video"):
            _video(workshop, model, dials)
        with gr.Tab("Model card"):
            _card(workshop, model)
    return page


def _card(workshop: Workshop, model: Any) -> None:
    def show(name: str) -> str:
        with in_one_line():
            return workshop.card(name)

    model.change(show, model, gr.Markdown(workshop.card(model.value)))


def _dials(title: str, *sets: type[Options]) -> dict[str, Any]:
    """Make a component for each option but for those that name files of this machine."""
    names = [name for one in sets for name in options_of(one) if name not in PLACES]
    with gr.Accordion(title, open=title == "Look"):
        return {name: _component(TABLE[name]) for name in names}


def _component(option: Option) -> Any:
    if option.choices:
        return gr.Dropdown(**menu(option))
    if option.name == "faces":
        return gr.Dropdown(**menu(option, list(WORDS), allow_custom_value=True))
    if option.kind is str:
        info = f"{option.help} Empty: {option.none}."
        return gr.Textbox(label=option.called("webui"), info=info)
    return (gr.Slider if option.high else gr.Number)(**dial(option))


def _photo(workshop: Workshop, model: Any, dials: Mapping[str, Any]) -> None:
    upload = gr.File(label="Photo", file_types=sorted(readable()), height=120)
    state = gr.State(None)
    picture = gr.Image(label="Faces", interactive=False, format="jpeg", height=460, buttons=["fullscreen"])
    ticks = gr.CheckboxGroup([], label="Faces to restore: tick them, or click them in the picture")
    with gr.Row():
        restore = gr.Button("Restore", variant="primary")
        _cancel(workshop)
        search = gr.Button("Find faces again")
    slider = gr.ImageSlider(label="Before, after", format="png", interactive=False, max_height=900)
    said, result = _results()

    def clear() -> list[Any]:
        return [None, None, gr.update(choices=[], value=[]), None, "", None]

    def find(given: Given) -> list[Any]:
        if not given[upload]:
            return clear()
        with in_one_line():
            found = workshop.find(Path(given[upload]), _values(dials, given))
        names = [(f"{i} ({face.size:.0f} px)", i) for i, face in enumerate(found.faces)]
        numbers = [i for _, i in names]
        said = "" if names else "No face was found. Lower the threshold, or choose effort thorough."
        return [found, found.drawn(numbers), gr.update(choices=names, value=numbers), None, said, None]

    def draw(found: Found | None, ticked: list[int]) -> Any:
        return found and found.drawn(ticked)

    def click(found: Found | None, ticked: list[int], event: gr.SelectData) -> Any:
        if found is None:
            return ticked, None
        ticked = found.toggled(ticked, *event.index)
        return ticked, found.drawn(ticked)

    def work(press: Press, given: Given, progress: OnProgress) -> list[Any]:
        if given[state] is None:
            raise ConfigError("no faces are found yet: give a photo, and wait until they are")
        values = _values(dials, given)
        done = workshop.photo(press, given[state], sorted(given[ticks]), given[model], values, progress)
        return [done.pictures, "\n".join(done.lines), str(done.file)]

    outputs = [state, picture, ticks, slider, said, result]
    for event in (upload.change, search.click):
        cleared = event(clear, None, outputs, queue=False)
        cleared.then(find, {upload, *dials.values()}, outputs, show_progress_on=picture, **QUEUE)
    ticks.input(draw, [state, ticks], picture, show_progress="hidden")
    picture.select(click, [state, ticks], [ticks, picture], show_progress="hidden")
    _on_press(restore, work, {state, ticks, model, *dials.values()}, [slider, said, result])


def _folder(workshop: Workshop, model: Any, dials: Mapping[str, Any]) -> None:
    source = gr.Textbox(label="Folder with photos", info="With all folders below it.")
    target = gr.Textbox(label="Folder for the results", info="No photo is overwritten.")
    redo = gr.Checkbox(label="Restore again what is there")
    with gr.Row():
        restore = gr.Button("Restore", variant="primary")
        _cancel(workshop)
    said = gr.Textbox(label="What was done", lines=8, interactive=False)

    def work(press: Press, given: Given, progress: OnProgress) -> str:
        folders = given[source], given[target], given[redo]
        lines = workshop.folder(press, *folders, given[model], _values(dials, given), progress)
        return "\n".join(lines)

    _on_press(restore, work, {source, target, redo, model, *dials.values()}, [said])


def _video(workshop: Workshop, model: Any, dials: Mapping[str, Any]) -> None:
    upload = gr.File(label="Video", file_types=list(VIDEOS), height=120)
    dials = {**dials, **_dials("How it is written", VideoOptions)}
    del dials["fps"]  # of image sequences
    with gr.Row():
        restore = gr.Button("Restore", variant="primary")
        _cancel(workshop)
    shown = gr.Video(label="Result", interactive=False, buttons=["download"])
    said, result = _results()

    def work(press: Press, given: Given, progress: OnProgress) -> list[Any]:
        if not given[upload]:
            raise ConfigError("give a video first")
        values = _values(dials, given)
        done = workshop.video(press, Path(given[upload]), given[model], values, progress)
        file = str(done.file) if done.file else None
        return [file if file and file.endswith(PLAYED) else None, "\n".join(done.lines), file]

    _on_press(restore, work, {upload, model, *dials.values()}, [shown, said, result])


def _results() -> tuple[Any, Any]:
    said = gr.Textbox(label="What was done", lines=2, interactive=False)
    return said, gr.File(label="Result, with all that the input's file held", interactive=False)


def _cancel(workshop: Workshop) -> None:
    def stop(request: gr.Request) -> None:
        workshop.cancel(str(request.session_hash))

    gr.Button("Cancel", variant="stop").click(stop, None, None, queue=False)


def _on_press(button: Any, work: Work, given: set[Any], out: list[Any]) -> None:
    """Call `work` in turn when a button is pressed, which rests until then; progress shows on the first."""
    moment = gr.State(0.0)

    def run(given: Given, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        press = Press(str(request.session_hash), given[moment])
        progress(None, desc="Loading the model, looking for faces")
        with in_one_line():
            return work(press, given, _bar(progress))

    begun = button.click(
        lambda: (time.monotonic(), gr.update(interactive=False)), None, [moment, button], queue=False
    )
    ended = begun.then(run, {moment, *given}, out, show_progress_on=out[0], **QUEUE)
    ended.then(lambda: gr.update(interactive=True), None, button, queue=False)


def _bar(progress: gr.Progress) -> OnProgress:
    """Move a progress bar, from any thread: Gradio finds the page by the context of the first."""
    context = contextvars.copy_context()

    def told(done: int, total: int) -> None:
        context.run(progress, (done, total or None), unit="done")

    return told


def _values(dials: Mapping[str, Any], given: Given) -> dict[str, Any]:
    return {name: value_of(TABLE[name], given[one]) for name, one in dials.items()}


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn whatever goes wrong into one line in the page."""
    try:
        yield
    except Stopped:
        raise gr.Error("Nothing was changed.", title="Stopped", print_exception=False) from None
    except Exception as error:
        if not isinstance(error, OSDFaceError):
            log.exception("osdface app")
        line = re.sub(UPLOADED, "", failure_line(error, "webui"))
        raise gr.Error(line, duration=None, print_exception=False) from error

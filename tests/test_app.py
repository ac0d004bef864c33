"""`osdface app`: what is behind the tabs, without a server; and the page itself in a headless Chromium."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osdface_core.app.controls import dial, value_of
from osdface_core.app.work import Press, Stopped, Workshop
from osdface_core.cli.main import main
from osdface_core.errors import CheckpointError, ConfigError, ImageError, OptionError
from osdface_core.options import SETS, LoadOptions, options_of

from .clips import decoded, pan, write_clip

ROOT = Path(__file__).resolve().parents[1]
MTCNN = {"detector": "mtcnn"}


def nothing(done: int, total: int) -> None:
    """Show no progress."""


def press(visitor: str = "anne") -> Press:
    return Press(visitor, time.monotonic())


@pytest.fixture
def workshop(tmp_path: Path, tiny_checkpoint: Path) -> Workshop:
    options = LoadOptions(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")
    return Workshop(options, None, tmp_path / "results", {"detector_dir": None, "upscale_model": None})


@pytest.fixture
def upload(tmp_path: Path, portraits: np.ndarray) -> Path:
    """A photo of two people where Gradio would put it."""
    place = tmp_path / "0123456789abcdef" / "two.png"
    place.parent.mkdir()
    Image.fromarray(portraits).save(place)
    return place


def test_a_number_that_shows_none_is_none() -> None:
    """Every number's component starts with the option's own default, which its range holds."""
    for option in (option for one in SETS for option in options_of(one).values()):
        if option.kind in (int, float):
            shown = dial(option)
            assert value_of(option, shown["value"]) == option.default
            assert shown["minimum"] <= shown["value"] <= (shown["maximum"] or shown["value"])
            assert option.help in shown["info"] and option.none in shown["info"]


def test_ticked_faces_alone_are_restored_as_by_the_command_line(
    workshop: Workshop, upload: Path, run: Callable[..., int]
) -> None:
    found = workshop.find(upload, MTCNN)
    assert len(found.faces) == 2
    name = str(workshop.options.source)
    done = workshop.photo(press(), found, [1], name, MTCNN, nothing)
    assert run(upload, "-o", "cli.png", "--faces", "1") == 0
    assert done.file and np.array_equal(np.asarray(Image.open(done.file)), np.asarray(Image.open("cli.png")))
    assert "1 face," in done.lines[0] and done.pictures
    assert np.array_equal(np.asarray(done.pictures[1]), np.asarray(Image.open("cli.png")))
    with pytest.raises(ConfigError, match="no face is chosen"):
        workshop.photo(press(), found, [], name, MTCNN, nothing)


def test_a_click_ticks_the_face_under_it(workshop: Workshop, upload: Path) -> None:
    found = workshop.find(upload, MTCNN)
    (x, y), ticked = found.faces[0].center, found.toggled([0, 1], 1.0, 1.0)
    assert ticked == [0, 1]
    assert found.toggled(ticked, x * found.scale, y * found.scale) == [1]
    assert found.toggled([1], x * found.scale, y * found.scale) == [0, 1]
    drawn = [np.asarray(found.drawn(numbers)) for numbers in ([0, 1], [1])]
    left = found.faces[0].box[0] * found.scale < found.shown.width / 2
    half = np.s_[:, : found.shown.width // 2] if left else np.s_[:, found.shown.width // 2 :]
    assert not np.array_equal(drawn[0][half], drawn[1][half])


def test_cancel_stops_the_visitor_who_pressed_it_and_nobody_else(workshop: Workshop, upload: Path) -> None:
    found, name = workshop.find(upload, MTCNN), str(workshop.options.source)
    early = press("anne")
    workshop.cancel("anne")
    with pytest.raises(Stopped):  # while it waited in the queue
        workshop.photo(early, found, [0], name, MTCNN, nothing)
    assert not workshop.results.exists()
    workshop.photo(press("anne"), found, [0], name, MTCNN, lambda *_: workshop.cancel("bob"))
    (file,) = workshop.results.iterdir()
    file.unlink()
    one_by_one = {**MTCNN, "batch_size": 1}
    with pytest.raises(Stopped):  # in the second face's first layer
        workshop.photo(press("bob"), found, [0, 1], name, one_by_one, lambda *_: workshop.cancel("bob"))
    assert not file.exists()
    workshop.close()
    with pytest.raises(Stopped):
        workshop.photo(press("anne"), found, [0], name, MTCNN, nothing)


def test_two_at_once_are_one_after_the_other(workshop: Workshop, upload: Path, portraits: np.ndarray) -> None:
    other = upload.parent.with_name("fedcba") / "two.png"
    other.parent.mkdir()
    Image.fromarray(np.ascontiguousarray(portraits[:, ::-1])).save(other)
    name, found = str(workshop.options.source), [workshop.find(one, MTCNN) for one in (upload, other)]
    alone = [workshop.photo(press(), one, [0, 1], name, MTCNN, nothing).pictures for one in found]
    inside, most = threading.Semaphore(1), []

    def watched(done: int, total: int) -> None:
        most.append(inside.acquire(blocking=False))
        time.sleep(0.2)
        inside.release()

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(workshop.photo, press(str(n)), one, [0, 1], name, MTCNN, watched)
            for n, one in enumerate(found)
        ]
        together = [job.result().pictures for job in jobs]
    assert all(most) and len(most) >= 2
    for before, after in zip(alone, together, strict=True):
        assert before and after and np.array_equal(np.asarray(before[1]), np.asarray(after[1]))


def test_a_folder_is_stopped_and_continued(workshop: Workshop, upload: Path, tmp_path: Path) -> None:
    photos, out, name = tmp_path / "photos", tmp_path / "out", str(workshop.options.source)
    photos.mkdir()
    for number in range(4):
        shutil.copyfile(upload, photos / f"{number}.png")
    (photos / "bad.png").write_bytes(b"no picture")
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            workshop.cancel("anne")

    first = workshop.folder(press(), str(photos), str(out), False, name, MTCNN, progress)
    assert first[0] == "2 restored, 0 failed" and "Stopped" in first[1] and seen == [(1, 5), (2, 5)]
    assert sorted(file.name for file in out.iterdir()) == ["0.png", "1.png"]
    again = workshop.folder(press(), str(photos), str(out), False, name, MTCNN, nothing)
    assert again[0].startswith("2 restored, 1 failed, 2 skipped") and "bad.png: " in again[1]
    assert len(again) == 2
    assert workshop.folder(press(), str(photos), str(out), True, name, MTCNN, nothing)[0].startswith("4 ")


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [("", "out", "give a folder"), ("none", "out", "none is no folder"), (".", ".", "has the inputs")],
)
def test_folders_that_do_not_fit(
    workshop: Workshop, upload: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, said: str
) -> None:
    monkeypatch.chdir(upload.parent)
    with pytest.raises(ConfigError, match=said):
        workshop.folder(press(), source, target, False, "mini", MTCNN, nothing)


def test_a_stopped_video_plays_and_goes_on(workshop: Workshop, portraits: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip, name = write_clip(tmp_path / "clip.mp4", pan(portraits, 20)), str(workshop.options.source)
    values = {**MTCNN, "crf": 20}

    def progress(done: int, total: int) -> None:
        if done == 6:
            workshop.cancel("anne")

    part = workshop.video(press(), clip, name, values, progress)
    assert part.file and 6 <= len(decoded(part.file)) < 20 and "Stopped" in part.lines[0]
    whole = workshop.video(press(), clip, name, values, nothing)
    assert whole.file and len(decoded(whole.file)) == 20
    assert re.search(r"20 frames, ([6-9]|1[0-9]) of them before", whole.lines[0])


def test_wrong_values_and_files_are_one_line(workshop: Workshop, upload: Path) -> None:
    with pytest.raises(OptionError, match="threshold"):
        workshop.find(upload, {**MTCNN, "threshold": 7})
    upload.write_bytes(b"no picture")
    with pytest.raises(ImageError):
        workshop.find(upload, MTCNN)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        workshop.card("../elsewhere.safetensors")


def test_models_and_their_cards(workshop: Workshop, tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copyfile(tiny_checkpoint, tmp_path / "more.safetensors")
    workshop.models = tmp_path
    assert workshop.names() == [str(tiny_checkpoint), "mini", "more.safetensors"]
    assert "MB)" in workshop.card("more.safetensors") and "No licence" in workshop.card("more.safetensors")
    assert "| Licence | Apache-2.0" in workshop.card("mini") and "38.2 MB" in workshop.card("mini")


def test_what_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("osdface_core.app.command.find_spec", lambda name: object())
    assert main(["app", "--models", str(tmp_path / "none")]) == 2
    assert main(["app", "--max-upload", "0"]) == 2
    assert main(["app", "--port", "70000"]) == 2
    (tmp_path / "file").touch()
    assert main(["app", "--out", str(tmp_path / "file")]) == 2
    assert main(["app", "--model", str(tmp_path / "nope")]) == 2
    for place in ("--detector-dir", "--upscale-model", "--base"):
        assert main(["app", place, str(tmp_path / "nope")]) == 2
    monkeypatch.setattr("osdface_core.app.command.find_spec", lambda name: None)
    assert main(["app"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9 and 'pip install "osdface[app]"' in lines[8]
    assert all("nope" in line for line in lines[4:8]) and "`" not in "".join(lines[5:8])
    assert "--port 70000: expected 1..65535" in lines[2] and "file is a file; give a folder" in lines[3]


def test_a_port_in_use(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        model = ["--model", str(tiny_checkpoint), "--device", "cpu"]
        assert main(["app", "--port", port, "-o", str(tmp_path / "results"), *model]) == 2
    wanted = f"osdface app: no server at --port {port}: in use, or not allowed; give another --port\n"
    assert capsys.readouterr().err == wanted


@pytest.fixture
def address(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[str]:
    """`osdface app`, with the small random model."""
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "osdface_core", "app", "--port", str(port), "-o", str(tmp_path / "results")),
        *("--model", str(tiny_checkpoint), "--device", "cpu", "--max-upload", "1"),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.mark.slow
def test_the_page(address: str, browser: Any, upload: Path, tmp_path: Path, portraits: np.ndarray) -> None:
    """Upload, click a face away, restore, slider, result; a bad photo; a video; nothing from elsewhere."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(120_000)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(address)
    tab = page.get_by_role("tabpanel").filter(has_text="Find faces again")
    tab.locator("input[type=file]").set_input_files(upload)
    tab.get_by_label(re.compile(r"1 \(\d+ px\)")).wait_for()
    picture = tab.locator("img[alt]").first
    picture.wait_for()
    seen, photo = picture.bounding_box(), Image.open(upload)
    from osdface_core.faces import detect

    x, y = detect(np.asarray(photo))[0].center
    scale = min(seen["width"] / photo.width, seen["height"] / photo.height)
    corner = (seen["width"] - photo.width * scale) / 2, (seen["height"] - photo.height * scale) / 2
    picture.click(position={"x": corner[0] + x * scale, "y": corner[1] + y * scale})
    page.wait_for_function("[...document.querySelectorAll('input[type=checkbox]')].some(one => !one.checked)")
    tab.get_by_role("button", name="Restore").click()
    tab.get_by_text("two_").first.wait_for()
    assert tab.locator("[data-testid=image-slider], .slider-wrap").first.is_visible()
    (file,) = (tmp_path / "results").iterdir()
    after = np.asarray(Image.open(file))
    changed = np.argwhere((after != portraits).any(-1))[:, 1]
    assert changed.size and ((changed < 300) if x > 300 else (changed >= 300)).all()

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    tab.get_by_label("Remove").or_(tab.get_by_label("Clear")).first.click()
    tab.locator("input[type=file]").set_input_files(bad)
    page.get_by_test_id("toast-text").filter(has_text=re.compile("^bad.png is no picture")).wait_for()

    pytest.importorskip("av")
    clip = write_clip(tmp_path / "clip.mp4", pan(portraits, 12))
    page.get_by_role("tab", name="Video").click()
    tab = page.get_by_role("tabpanel").filter(has_text="How it is written")
    tab.locator("input[type=file]").set_input_files(clip)
    tab.get_by_label("clip.mp4", exact=True).wait_for()
    tab.get_by_role("button", name="Restore").click()
    tab.locator("video").wait_for()
    (film,) = (tmp_path / "results").glob("clip_*.mp4")
    assert len(decoded(film)) == 12
    assert hosts == {address.split("/")[2]}

"""The parts of a video's way: faces followed, changes steadied, packets kept, work done ahead."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
import time
import weakref
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osdface_core.faces import Face
from osdface_core.faces.track import smooth
from osdface_core.options import DetectOptions, VideoOptions
from osdface_core.video import follow
from osdface_core.video.ahead import ahead, undisturbed
from osdface_core.video.follow import AHEAD, EVERY, FaceFinder, steadied
from osdface_core.video.steady import ChangeSteadier
from tests.face_places import face_at

CPU = torch.device("cpu")
LOOK = DetectOptions(detector="mtcnn")


class Scene:
    """Stands in for the detector: a face at `start + speed * number` px from frame `first` to `last`.

    Attributes:
        searched: frames that were searched whole.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int = 0, last: int = 10**6) -> None:
        self.first, self.last, self.searched = first, last, list[int]()
        self.unseen: set[int] = set()
        self.noise = np.random.default_rng(0).normal(0, 1.0, (4096, 5, 2))
        monkeypatch.setattr(follow, "detect", self.detect)
        monkeypatch.setattr(follow, "find_again", self.find_again)
        monkeypatch.setattr(
            follow, "thumbnail", lambda picture: np.full((32, 32, 3), picture.shade, np.uint8)
        )

    def truth(self, number: int) -> Face:
        return face_at(0.25, 0, 100 + 2.0 * number, 120)

    def here(self, number: int) -> Face | None:
        if not self.first <= number <= self.last:
            return None
        face = self.truth(number)
        marks = tuple((float(x), float(y)) for x, y in face.points + self.noise[number])
        return dataclasses.replace(face, landmarks=marks)

    def detect(self, pixels: np.ndarray, *_: Any, **__: Any) -> list[Face]:
        number = int(pixels[0, 0, 0])
        self.searched.append(number)
        face = None if number in self.unseen else self.here(number)
        return [face] if face else []

    def find_again(self, pixels: np.ndarray, faces: list[Face], *_: Any, **__: Any) -> list[Face | None]:
        return [self.here(int(pixels[0, 0, 0])) for _ in faces]


@dataclasses.dataclass
class Picture:
    number: int
    shade: int
    width: int = 400
    height: int = 240


@dataclasses.dataclass
class Moment:
    """Stands in for `reader.Frame`."""

    number: int
    time: float
    picture: Picture
    turns: int = 0
    broken: bool = False

    def pixels(self) -> np.ndarray:
        return np.full((2, 2, 3), self.number, np.uint16)


def moments(count: int, cut: int = 10**6, rate: float = 25.0, start: int = 0) -> Any:
    return (Moment(n, n / rate, Picture(n, 40 if n < cut else 200)) for n in range(start, count))


def points(shots: Any) -> np.ndarray:
    return np.array([shot.faces[0].points for shot in shots])


def test_all_of_a_frame_is_searched_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    shots = list(FaceFinder(LOOK, CPU).shots(moments(40)))
    assert [len(shot.found) for shot in shots] == [1] * 40
    assert scene.searched == list(range(0, 40, EVERY))


def test_a_lost_face_has_the_frame_searched_and_a_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, last=10)
    shots = list(FaceFinder(LOOK, CPU).shots(moments(24, cut=13)))
    assert [number for number, shot in enumerate(shots) if shot.found] == list(range(11))
    assert [number for number, shot in enumerate(shots) if shot.cut] == [13]
    assert scene.searched == [0, 8, 11, 13, 16]


def test_a_face_noticed_late_is_followed_back_to_where_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    Scene(monkeypatch, first=11)
    shots = list(FaceFinder(LOOK, CPU).shots(moments(30)))
    assert [len(shot.found) for shot in shots] == [0] * 11 + [1] * 19


def test_but_not_into_another_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, first=0)
    scene.unseen = {0, 13}
    shots = list(FaceFinder(LOOK, CPU).shots(moments(24, cut=13)))
    assert [number for number, shot in enumerate(shots) if shot.found] == list(range(1, 24))
    assert len(shots[12].found) == 1  # from frame 8, not from 16


def test_landmarks_are_steadied_as_in_a_whole_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise falls nearly as far as where the clip is known as a whole; the face is not behind its place."""
    scene = Scene(monkeypatch)
    shots = list(steadied(FaceFinder(LOOK, CPU).shots(moments(90)), LOOK))
    assert [shot.frame.number for shot in shots] == list(range(90))
    assert {shot.faces[0].track for shot in shots} == {0}
    truth = np.array([scene.truth(n).points for n in range(90)])
    noisy = np.array([shot.found[0].points for shot in shots])
    best = np.array(
        [
            faces[0].points
            for faces in smooth([shot.found for shot in shots], times=[n / 25 for n in range(90)])
        ]
    )
    trembling = [float(np.diff(one - truth, axis=0).std()) for one in (noisy, best, points(shots))]
    assert trembling[2] < trembling[0] / 3 and trembling[2] < 1.5 * trembling[1]
    assert np.abs((points(shots) - truth).mean(axis=(1, 2))).max() < 0.8


def test_a_run_that_starts_in_the_middle_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    Scene(monkeypatch)
    whole = points(steadied(FaceFinder(LOOK, CPU).shots(moments(90)), LOOK))
    late = points(steadied(FaceFinder(LOOK, CPU).shots(moments(90, start=2 * EVERY)), LOOK))
    skip = AHEAD + 4  # the tracks' last two faces, which predict the next place, have to be the same
    assert np.array_equal(late[skip:], whole[2 * EVERY + skip :])


def test_few_frames_are_held_however_long_the_film_is(monkeypatch: pytest.MonkeyPatch) -> None:
    Scene(monkeypatch)
    frames: list[weakref.ref[Any]] = []

    def watched() -> Any:
        for moment in moments(400):
            frames.append(weakref.ref(moment))
            yield moment

    shots = steadied(FaceFinder(LOOK, CPU).shots(watched()), LOOK)
    held = [sum(frame() is not None for frame in frames) for _ in shots]
    assert max(held[100:]) <= max(held[:100]) <= 40


@pytest.mark.parametrize("rate", [10.0, 60.0])
def test_the_clips_own_time_counts(rate: float) -> None:
    """The same trembling per second falls alike at any frame rate; with 24 assumed it would not."""
    random = np.random.default_rng(0)
    frames = []
    for _ in range(60):
        face = face_at(0.25, 0, 100, 120)
        marks = tuple((float(x), float(y)) for x, y in face.points + random.normal(0, 1, (5, 2)))
        frames.append([dataclasses.replace(face, landmarks=marks)])
    calm = np.array([f[0].points for f in smooth(frames, times=[n / rate for n in range(60)])])
    usual = np.array([f[0].points for f in smooth(frames)])
    quieter = np.diff(calm, axis=0).std() < np.diff(usual, axis=0).std()
    assert quieter == (rate > 24)


def test_boiling_is_calmed_and_a_real_change_followed() -> None:
    torch.manual_seed(0)
    face = dataclasses.replace(face_at(1.0, 0, 0, 0), track=3)
    steady, still = ChangeSteadier(), torch.full((1, 3, 64, 64), 0.5)
    results = []
    for number in range(20):
        boiling = still + 0.1 * torch.randn(1, 3, 64, 64)
        results.append(steady([face], still, boiling, number / 25))
    flicker = torch.cat(results).diff(dim=0).abs().mean()
    assert flicker < 0.4 * 0.1 * 2 / torch.pi**0.5
    opened = still.clone()
    opened[..., :32] = 0.9  # the left half changes
    after = steady([face], opened, opened + 0.05, 20 / 25)
    assert torch.allclose(after[..., :16], opened[..., :16] + 0.05, atol=1e-3)
    other = dataclasses.replace(face, track=4)
    assert torch.equal(steady([other], still, still + 0.2, 21 / 25), still + 0.2 - still + still)


def flicker(frames: list[torch.Tensor]) -> float:
    return float(torch.cat(frames).diff(dim=0).abs().mean())


def test_a_clean_film_does_not_flicker_more_than_it_did() -> None:
    """A head that judders by a pixel; what is restored has three times its detail and boils."""
    torch.manual_seed(0)
    face = dataclasses.replace(face_at(1.0, 0, 0, 0), track=0)
    waves = 0.5 + 0.1 * torch.sin(torch.arange(64) * 0.3).expand(1, 3, 64, 64)
    detail = 0.03 * torch.sin(torch.arange(64) * 1.2).expand(1, 3, 64, 64)
    steady, before, single, after = ChangeSteadier(), [], [], []
    for number in range(16):
        shift = number % 3
        before.append((waves + detail).roll(shift, dims=-1))
        single.append((waves + 3 * detail).roll(shift, dims=-1) + 0.02 * torch.randn(1, 3, 64, 64))
        after.append(steady([face], before[-1], single[-1], number / 30))
    assert flicker(single) > 1.5 * flicker(before)
    assert flicker(after[4:]) < flicker(before[4:])


def test_noise_of_the_original_does_not_come_back() -> None:
    torch.manual_seed(0)
    face = dataclasses.replace(face_at(1.0, 0, 0, 0), track=0)
    steady, still = ChangeSteadier(), torch.full((1, 3, 64, 64), 0.5)
    for number in range(10):
        noisy = still + 0.05 * torch.randn(1, 3, 64, 64)
        result = steady([face], noisy, still, number / 25)
        assert (result - still).abs().mean() < 0.2 * (noisy - still).abs().mean()


def test_a_fine_pattern_that_moves_is_not_averaged() -> None:
    face = dataclasses.replace(face_at(1.0, 0, 0, 0), track=0)
    stripes = torch.full((1, 3, 64, 64), 0.5)
    stripes[..., :24] += 0.2 * (torch.arange(24) // 2 % 2) - 0.1
    steady, moved = ChangeSteadier(), stripes.clone()
    moved[..., :24] = stripes[..., :24].roll(2, dims=-1)
    steady([face], stripes, stripes, 0.0)
    assert torch.allclose(steady([face], moved, moved, 0.04), moved, atol=0.012)


def test_a_longer_step_forgets_more() -> None:
    face = dataclasses.replace(face_at(1.0, 0, 0, 0), track=0)
    still, left = torch.full((1, 3, 64, 64), 0.5), []
    for step in (0.03, 0.2, 1.0):
        steady = ChangeSteadier()
        steady([face], still, still + 0.2, 0.0)
        left.append(float((steady([face], still, still, step) - still).mean()))
    assert left[0] > 1.5 * left[1] > 15 * left[2] > 0


def test_the_journal_survives_a_kill_up_to_the_last_segment(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from osdface_core.video.journal import Journal

    def packet(number: int) -> Any:
        one = av.Packet(bytes([number]) * 5)
        one.pts, one.dts, one.duration, one.is_keyframe = number, number - 2, 1, number % 3 == 0
        return one

    job, path = {"of": "film"}, tmp_path / "out.mp4.part"
    journal = Journal(path, job)
    for number in range(6):
        journal.add(packet(number))
        if number % 3 == 2:
            journal.end_segment({"frames": number + 1})
    journal.add(packet(7))
    journal.close()
    with path.open("ab") as file:
        file.write(b"half a record")
    again = Journal(path, job)
    assert again.state == {"frames": 6}
    again.add(packet(6))
    again.end_segment({"frames": 7})
    found = list(again.packets(Fraction(1, 25)))
    assert [(bytes(p)[0], p.pts, p.dts, p.is_keyframe) for p in found] == [
        (n, n, n - 2, n % 3 == 0) for n in range(7)
    ]
    again.close()
    assert Journal(path, {"of": "another film"}).state == {}


def test_decoding_times_rise_across_segments(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from osdface_core.video.journal import Journal

    journal = Journal(tmp_path / "x.part", {})
    for pts, dts in [(0, -2), (2, -1), (1, 0), (3, 0), (4, 1)]:
        one = av.Packet(b"x")
        one.pts, one.dts = pts, dts
        journal.add(one)
    journal.end_segment({})
    found = [(p.pts, p.dts) for p in journal.packets(Fraction(1, 25))]
    assert all(a[1] < b[1] for a, b in pairwise(found))
    assert [pts for pts, _ in found] == [0, 2, 1, 3, 4] and all(pts >= dts for pts, dts in found)


@pytest.mark.parametrize(
    ("codec", "pixels", "target", "options", "encoder", "written"),
    [
        ("h264", "yuv420p", "a.mp4", {}, "libx264", "yuv420p"),
        ("h264", "yuvj422p", "a.mkv", {}, "libx264", "yuvj422p"),
        ("hevc", "yuv420p10le", "a.mp4", {}, "libx265", "yuv420p10le"),
        ("hevc", "p010le", "a.mp4", {}, "libx265", "yuv420p10le"),
        ("vp9", "yuv420p", "a.webm", {}, "libvpx-vp9", "yuv420p"),
        ("h264", "yuv420p", "a.webm", {}, "libvpx-vp9", "yuv420p"),
        ("mpeg4", "yuv420p", "a.avi", {}, "libx264", "yuv420p"),
        ("prores", "yuv422p10le", "a.mov", {}, "prores_ks", "yuv422p10le"),
        ("png", "rgb48be", "a_%d.png", {}, "png", "rgb48be"),
        ("h264", "yuv420p", "a_%d.png", {}, "png", "rgb24"),
        ("hevc", "yuv422p10le", "a_%d.png", {}, "png", "rgb48be"),
        ("png", "pal8", "a.mp4", {}, "libx264", "yuv444p"),
        ("h264", "yuv420p", "a.mp4", {"video_codec": "av1"}, "libsvtav1", "yuv420p"),
        ("h264", "yuv420p", "a.mp4", {"pixel_format": "yuv444p10le"}, "libx264", "yuv444p10le"),
    ],
)
def test_the_input_chooses_codec_and_pixels(
    codec: str, pixels: str, target: str, options: dict[str, Any], encoder: str, written: str
) -> None:
    pytest.importorskip("av")
    from osdface_core.video.formats import choose_encoding

    found = choose_encoding(codec, pixels, (640, 360), Path(target), VideoOptions(**options))
    assert (found.encoder, found.pixels, found.notes) == (encoder, written, ())


def test_lost_depth_is_said(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from osdface_core.video.formats import choose_encoding

    (note,) = choose_encoding("vp9", "yuv420p10le", (64, 64), Path("a.webm"), VideoOptions()).notes
    assert note.startswith("10 bits become 8: libvpx-vp9")
    assert choose_encoding("h264", "yuv420p", (63, 64), Path("a.mp4"), VideoOptions()).pixels == "yuv444p"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_frame_that_waits_keeps_no_scaler_and_no_threads() -> None:
    av = pytest.importorskip("av")
    from osdface_core.video.pixels import thumbnail, to_pixels

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    frames, before = [av.VideoFrame(240, 200, "yuv420p") for _ in range(8)], threads()
    for frame in frames:
        to_pixels(frame, 0)
        thumbnail(frame)
    assert threads() <= before


def test_work_ahead_is_bounded_ordered_and_ends() -> None:
    made: list[int] = []

    def items() -> Any:
        for number in range(100):
            made.append(number)
            yield number

    worker = ahead(items(), 2)
    assert [next(worker) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.3)
    assert len(made) <= 6
    worker.close()
    assert not [one for one in threading.enumerate() if one.name == "video-ahead"]
    assert list(ahead(range(5), 1)) == list(ahead(range(5), 0)) == list(range(5))

    def broken() -> Any:
        yield 1
        raise ValueError("no more")

    worker = ahead(broken(), 2)
    assert next(worker) == 1
    with pytest.raises(ValueError, match="no more"):
        next(worker)


def test_ctrl_c_waits_for_the_end_of_a_step() -> None:
    done = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt), undisturbed():
            signal.raise_signal(signal.SIGINT)
            done = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert done

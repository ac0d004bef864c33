"""Videos from file to file: what is kept, what is restored, what an interruption leaves, what is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason='videos need PyAV: pip install "osdface[video]"')

from osdface_core import ConfigError, OptionError, OSDFacePipeline, VideoError, restore_video
from osdface_core.options import DetectOptions, PasteOptions, VideoOptions
from osdface_core.video import VideoResult, is_video, restore_stream
from osdface_core.video.restore import VideoPlan
from tests.clips import SIZE, decoded, flat, packets_of, pan, times_of, write_clip

COUNT = 20
CPU = torch.device("cpu")


def paint(crops: torch.Tensor) -> torch.Tensor:
    """A model whose every face is green."""
    return torch.tensor([0.1, 0.9, 0.1]).view(1, 3, 1, 1).expand(len(crops), 3, 512, 512).clone()


def run(
    source: Path, target: Path, model: Any = paint, progress: Any = None, threads: bool = False, **video: Any
) -> VideoResult:
    plan = VideoPlan(
        DetectOptions(detector="mtcnn"),
        paste=PasteOptions(paste_mode="replace", upscale=video.pop("upscale", 1.0)),
        video=VideoOptions(**video),
    )
    return restore_stream(source, target, model, CPU, plan, progress=progress, threads=threads)


def green(frame: Any) -> np.ndarray:
    """Where a decoded frame is painted, (H, W) bool."""
    pixels = frame.to_ndarray(format="rgb24").astype(int)
    return (pixels[..., 1] > 160) & (pixels[..., 0] < 110) & (pixels[..., 2] < 110)


@pytest.fixture(scope="module")
def clip(portraits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames of a face that moves left, with sound."""
    return write_clip(tmp_path_factory.mktemp("clip") / "film.mp4", pan(portraits, COUNT))


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "sound", "subtitles"),
    [
        ("film.mp4", "libx264", "yuv420p", "aac", "mov_text"),
        ("film.mkv", "libx265", "yuv420p10le", "libopus", "subrip"),
        ("film.webm", "libvpx-vp9", "yuv420p", "libopus", None),
        ("film.mov", "prores_ks", "yuv422p10le", "pcm_s16le", None),
    ],
)
def test_everything_but_the_faces_is_kept(
    portraits: np.ndarray, tmp_path: Path, name: str, codec: str, pixels: str, sound: str, subtitles: str
) -> None:
    """Codec and depth, uneven times, sound, subtitles, chapters, title, colour tags."""
    import av

    times = [0.0, 0.04, 0.12, 0.16, 0.2, 0.31, 0.35, 0.39, 0.43, 0.6]
    source = write_clip(
        tmp_path / name, pan(portraits, 10), codec=codec, pixels=pixels, sound=sound, subtitles=subtitles,
        times=times, matrix=1,
    )  # fmt: skip
    result = run(source, target := tmp_path / f"out{Path(name).suffix}")
    assert (result.frames, result.faces, result.broken, result.notes) == (10, 10, 0, ())
    before, after = decoded(source), decoded(target)
    assert np.allclose(times_of(target), times_of(source), atol=1e-4)
    assert np.allclose(np.diff(times_of(target)), np.diff(times), atol=1.1e-3)
    assert {frame.format.name for frame in after} == {pixels}
    for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
        assert getattr(after[0], tag) == getattr(before[0], tag) != 0
    assert all(green(frame).sum() > 2000 for frame in after)
    assert packets_of(target, "audio") == packets_of(source, "audio")
    if subtitles:
        assert packets_of(target, "subtitles") == packets_of(source, "subtitles")
    with av.open(str(source)) as old, av.open(str(target)) as new:
        assert new.streams.video[0].codec_context.name == old.streams.video[0].codec_context.name
        assert new.metadata["title"] == "a clip"
        if name != "film.webm":
            assert [one["metadata"]["title"] for one in new.chapters()] == ["one"]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_what_is_no_face_reaches_the_encoder_unchanged(portraits: np.ndarray, tmp_path: Path) -> None:
    """Lossless from and to: all samples of frames without a face, and all outside of the faces."""
    frames = [*flat(5), *pan(portraits, 5)]
    source = write_clip(tmp_path / "film.mkv", frames, codec="ffv1", sound=None)
    result = run(source, target := tmp_path / "out.mkv")
    assert result.faces == 5
    for number, (old, new) in enumerate(zip(decoded(source), decoded(target), strict=True)):
        where = green(new)
        assert where.any() == (number >= 5)
        rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
        for a, b in zip(old.planes, new.planes, strict=True):
            ratio = a.width / old.width
            one, two = (np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in (a, b))
            changed = one != two
            if len(rows):
                top, left = int((rows[0] - 60) * ratio), int((columns[0] - 60) * ratio)
                bottom, right = int((rows[-1] + 60) * ratio), int((columns[-1] + 60) * ratio)
                changed[max(top, 0) : bottom, max(left, 0) : right] = False
            assert not changed.any()


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_is_restored_upright_and_stays_turned(
    portraits: np.ndarray, tmp_path: Path, rotation: int
) -> None:
    stored = (np.ascontiguousarray(np.rot90(f, -rotation // 90)) for f in pan(portraits, 4))
    source = write_clip(tmp_path / "film.mp4", stored, rotation=rotation, sound=None)
    upright = write_clip(tmp_path / "up.mp4", pan(portraits, 4), sound=None)
    assert run(source, tmp_path / "out.mp4").faces == run(upright, tmp_path / "up_out.mp4").faces == 4
    for turned, straight in zip(decoded(tmp_path / "out.mp4"), decoded(tmp_path / "up_out.mp4"), strict=True):
        assert round(turned.rotation) % 360 == rotation % 360
        a, b = np.rot90(green(turned), rotation // 90), green(straight)
        assert (a & b).sum() > 0.9 * (a | b).sum()


def test_an_interrupted_run_plays_and_goes_on_where_it_was(portraits: np.ndarray, tmp_path: Path) -> None:
    """Frame by frame what an unbroken run gives; the model does not see again what is done."""
    source = write_clip(tmp_path / "film.mkv", pan(portraits, 128, step=1.0), codec="ffv1")
    whole, target = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    seen = 0

    def darken(crops: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(crops)
        return crops * 0.9

    everything = run(source, whole, darken)
    assert everything.faces == seen == 128  # each face once

    def stop(done: int, total: int) -> None:
        if done == 124:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, target, darken, stop)
    assert len(decoded(target)) == 124
    assert 0 < len(packets_of(target, "audio")) < len(packets_of(source, "audio"))
    seen = 0
    result = run(source, target, darken)
    assert (result.frames, result.faces, result.resumed) == (128, 128, 124)
    assert seen < 110
    for a, b in zip(decoded(whole), decoded(target), strict=True):
        assert np.array_equal(a.to_ndarray(), b.to_ndarray())
    assert packets_of(target, "audio") == packets_of(source, "audio")
    assert not list(tmp_path.glob("*.part"))


def test_another_job_does_not_continue_an_interrupted_one(clip: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for options in ({}, {"crf": 30}):
        with pytest.raises(KeyboardInterrupt):
            run(clip, tmp_path / "out.mp4", progress=stop, **options)
    assert run(clip, tmp_path / "out.mp4").resumed == 0


def test_damaged_frames_are_passed_through_and_counted(portraits: np.ndarray, tmp_path: Path) -> None:
    """Every frame of this codec stands alone: one is destroyed, one is hurt, the others are as ever."""
    source = write_clip(tmp_path / "film.mov", pan(portraits, 12), codec="png", pixels="rgb24", sound=None)
    data, marks = bytearray(source.read_bytes()), []
    while (place := data.find(b"\x89PNG", marks[-1] + 1 if marks else 0)) >= 0:
        marks.append(place)
    assert len(marks) == 12
    data[marks[4] : marks[4] + 8] = bytes(8)
    source.write_bytes(data)
    result = run(source, target := tmp_path / "out.mkv", video_codec="ffv1")
    assert (result.frames, result.faces, result.broken) == (11, 11, 1)
    kept = [number / 25 for number in range(12) if number != 4]
    assert np.allclose(times_of(target), kept, atol=2e-3)


def test_a_file_that_was_cut_short_gives_what_is_left(clip: Path, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "film.mkv", flat(COUNT), sound="aac")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    result = run(whole, target := tmp_path / "out.mkv")
    assert 3 < result.frames < COUNT and len(decoded(target)) == result.frames


def test_sequences_in_and_out(clip: Path, tmp_path: Path) -> None:
    pattern = tmp_path / "in" / "frame_%05d.png"
    assert run(clip, pattern).frames == COUNT
    assert sorted(p.name for p in pattern.parent.iterdir())[::19] == ["frame_00001.png", "frame_00020.png"]
    for number in range(1, 4):
        (pattern.parent / f"frame_{number:05}.png").unlink()
    back = run(pattern, tmp_path / "back.mp4", lambda crops: crops, fps=10.0)
    assert back.frames == COUNT - 3 and np.allclose(np.diff(times_of(tmp_path / "back.mp4")), 0.1)
    again = tmp_path / "out" / "x_%d.png"
    run(pattern, again, lambda crops: crops)
    assert sorted(p.name for p in again.parent.iterdir())[0] == "x_10.png"
    assert (again.parent / "x_4.png").is_file()
    (pattern.parent / "frame_00009.png").unlink()
    with pytest.raises(VideoError, match=r"frame_00009\.png is missing"):
        run(pattern, tmp_path / "again.mp4")


def test_an_enlarged_video(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    assert run(clip, target, upscale=1.5).faces == COUNT
    frames = decoded(target)
    assert (frames[0].width, frames[0].height) == (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2)
    assert green(frames[3]).sum() > 1.8 * green(decoded_once(clip, tmp_path)).sum()


def decoded_once(clip: Path, folder: Path) -> Any:
    run(clip, folder / "plain.mp4")
    return decoded(folder / "plain.mp4")[3]


def test_odd_sizes_keep_every_pixel(tmp_path: Path) -> None:
    frames = (np.ascontiguousarray(frame[:-1, :-1]) for frame in flat(3))
    source = write_clip(tmp_path / "film.mov", frames, codec="png", pixels="rgb24", sound=None)
    assert run(source, tmp_path / "out.mp4").frames == 3
    assert (decoded(tmp_path / "out.mp4")[0].width, decoded(tmp_path / "out.mp4")[0].height) == (239, 199)


def test_threads_change_nothing(clip: Path, tmp_path: Path) -> None:
    run(clip, tmp_path / "a.mkv", video_codec="ffv1")
    run(clip, tmp_path / "b.mkv", video_codec="ffv1", threads=True)
    for a, b in zip(decoded(tmp_path / "a.mkv"), decoded(tmp_path / "b.mkv"), strict=True):
        assert np.array_equal(a.to_ndarray(), b.to_ndarray())


def test_what_cannot_be_done_is_said_in_one_line(clip: Path, tmp_path: Path) -> None:
    import av

    sound = tmp_path / "sound.mp4"
    with av.open(str(clip)) as old, av.open(str(sound), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    nonsense = tmp_path / "nonsense.mp4"
    nonsense.write_bytes(b"no video" * 99)
    out = tmp_path / "out.mp4"
    for source, target, options, error, words in [
        (sound, out, {}, VideoError, "has no video in it, only audio"),
        (nonsense, out, {}, VideoError, "cannot be read as a video"),
        (tmp_path / "none.mp4", out, {}, VideoError, "no such file"),
        (clip, clip, {}, ConfigError, "never overwritten"),
        (clip, tmp_path / "out.webm", {}, ConfigError, r"does not fit into \.webm: give -o .*out\.mkv"),
        (clip, tmp_path / "out.gif", {}, ConfigError, "write videos as"),
        (clip, tmp_path / "out.webm", {"video_codec": "h264"}, ConfigError, r"cannot be written into \.webm"),
        (clip, tmp_path / "out.mkv", {"video_codec": "ffv1", "crf": 3}, ConfigError, "no such quality"),
        (clip, out, {"pixel_format": "yuv999p"}, OptionError, "one of yuv420p"),
        (clip, out, {"crf": 64}, OptionError, "0..63"),
        (tmp_path / "a_%03d.png", out, {}, VideoError, "no picture has such a name"),
    ]:
        with pytest.raises(error, match=words) as caught:
            run(source, target, **options)
        assert "\n" not in str(caught.value)
        assert not out.exists() and not list(tmp_path.glob("*.part"))


def test_without_pyav_a_line_says_what_to_install(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(VideoError, match=r'pip install "osdface\[video\]"'):
        run(clip, tmp_path / "out.mp4")


def test_from_python_with_a_pipeline(clip: Path, tmp_path: Path, tiny_pipeline: OSDFacePipeline) -> None:
    steps: list[tuple[int, int]] = []
    result = restore_video(
        tiny_pipeline, clip, tmp_path / "out.mp4", detector="mtcnn", strength=0.5, crf=30,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert steps[-1] == (COUNT, COUNT) and len(steps) == COUNT == result.faces
    with pytest.raises(OptionError, match=r"`speed` is 2, expected one of .*crf"):
        restore_video(tiny_pipeline, clip, tmp_path / "out.mp4", speed=2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mp4", True), ("A.MKV", True), ("f_%05d.png", True), ("f_%d.txt", False), ("a.png", False)],
)
def test_what_is_a_video(name: str, kind: bool) -> None:
    assert is_video(name) is kind

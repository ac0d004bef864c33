"""Restore Video: a VIDEO in and out through ComfyUI's faked functions, on a small random model."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason='videos need PyAV: pip install "osdface[video]"')

from tests.clips import decoded, flat, packets_of, pan, times_of, write_clip
from tests.comfy_stub import InterruptProcessingException, VideoFromFile, install, load_pack
from tests.tiny_model import write_tiny

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.host as host  # type: ignore[import-not-found]  # noqa: E402

from osdface_core.errors import OptionError  # noqa: E402

TIMES = [0.0, 0.04, 0.12, 0.16, 0.2, 0.31]
OPTIONS = {
    "checkpoint": "tiny.safetensors", "base": "none", "detector": "mtcnn", "selection": "all", "min_face": 0,
    "strength": 1.0, "color_fix": "none", "dtype": "fp32", "batch_size": 1,
}  # fmt: skip


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    fake = install(monkeypatch, tmp_path / "models")
    host.register_folder()
    write_tiny(fake.add_file("osdface", "tiny.safetensors"))
    return fake


@pytest.fixture
def film(portraits: np.ndarray, tmp_path: Path) -> Path:
    """Six frames of a face, at uneven times, with sound."""
    return write_clip(tmp_path / "film.mp4", pan(portraits, 6), times=TIMES)


def restore(video, **options):
    return NODES["OSDFaceRestoreVideo"]().restore(video=video, **(OPTIONS | options))


def temporary(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "temp").iterdir())


def test_a_film_comes_out_as_a_file_with_its_sound_and_times(comfy, film, tmp_path):
    video, count = restore(VideoFromFile(str(film)))
    out = Path(video.get_stream_source())
    assert count == 6 and out.parent == tmp_path / "temp" and temporary(tmp_path) == [".mp4"]
    assert np.allclose(times_of(out), TIMES, atol=1e-4)
    assert packets_of(out, "audio") == packets_of(film, "audio")
    for old, new in zip(decoded(film), decoded(out), strict=True):
        difference = np.abs(old.to_ndarray(format="rgb24").astype(int) - new.to_ndarray(format="rgb24"))
        assert difference.mean() > 4 > np.median(difference[:, :40]), "only the face changes"


def test_progress_counts_frames_and_shows_faces(comfy, film):
    restore(VideoFromFile(str(film)))
    assert [value for value, *_ in comfy.steps] == list(range(1, 7))
    assert {total for _, total, _ in comfy.steps} == {6}
    assert any(preview for *_, preview in comfy.steps)


@pytest.mark.parametrize("checks", [3, 400, 1500])
def test_cancel_leaves_no_film_and_the_same_run_goes_on(comfy, film, tmp_path, checks):
    comfy.interrupt_after = checks
    with pytest.raises(InterruptProcessingException):
        restore(VideoFromFile(str(film)))
    assert temporary(tmp_path) in ([], [".part"])
    video, _ = restore(VideoFromFile(str(film)))
    assert len(decoded(Path(video.file))) == 6 and temporary(tmp_path) == [".mp4"]


def test_a_part_of_a_file_is_written_first_and_removed(comfy, film, tmp_path):
    write_clip(tmp_path / "rest.mp4", flat(3), sound=None)
    video, count = restore(VideoFromFile(str(film), start_time=0.2))
    assert count == 0 and len(decoded(Path(video.file))) == 3
    assert temporary(tmp_path) == [".mp4"] and not comfy.loads


def test_images_in_memory_are_written_first(comfy, film, tmp_path):
    class VideoFromComponents:
        def save_to(self, path: str) -> None:
            Path(path).write_bytes(film.read_bytes())

    video, count = restore(VideoFromComponents())
    assert count == 6 and temporary(tmp_path) == [".mp4"] and Path(video.file).parent == tmp_path / "temp"


def test_other_dials_make_another_file(comfy, film, tmp_path):
    films = [restore(VideoFromFile(str(film)), strength=0.0, crf=value)[0] for value in (30, 20, 30)]
    files = {video.file for video in films}
    assert len(files) == 2 == len(temporary(tmp_path))


def test_numbers_are_checked_and_chosen(comfy, film):
    with pytest.raises(OptionError, match="indices"):
        restore(VideoFromFile(str(film)), selection="indices")
    assert restore(VideoFromFile(str(film)), selection="indices", indices="1", strength=0.0)[1] == 0


def test_comfyui_without_the_video_type_gets_the_other_nodes(comfy, monkeypatch, caplog):
    assert host.has_video() and not caplog.records
    monkeypatch.setitem(sys.modules, "comfy_api.input_impl", None)
    assert not host.has_video()
    (line,) = caplog.messages
    assert line.startswith("Restore Video is left out: this ComfyUI has no VIDEO type")

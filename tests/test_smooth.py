"""Clips: tracks survive motion and gaps, cuts end them, smoothed landmarks tremble less and don't lag."""

import dataclasses

import numpy as np
import pytest
import torch

from osdface_core.faces import Face
from osdface_core.faces.track import CUTOFF, SPEED, SPEED_CUTOFF, STEP, one_euro, scene_cuts, smooth
from tests.face_places import face_at

COUNT = 30


def clip(speed: float = 3.0, noise: float = 0.0, seed: int = 0, scale: float = 0.25) -> list[list[Face]]:
    """One face that moves right at `speed` px a frame, its landmarks off by `noise` px."""
    random = np.random.default_rng(seed)
    frames = []
    for number in range(COUNT):
        face = face_at(scale, 0, 100 + speed * number, 120)
        points = face.points + random.normal(0, noise, (5, 2))
        marks = tuple((float(x), float(y)) for x, y in points)
        frames.append([dataclasses.replace(face, landmarks=marks)])
    return frames


def truth(speed: float = 3.0) -> np.ndarray:
    return np.array([frame[0].points for frame in clip(speed)])


def points_of(frames: list[list[Face]]) -> np.ndarray:
    return np.array([frame[0].points for frame in frames])


@pytest.mark.parametrize("speed", [0.0, 3.0, 12.0])
def test_trembling_falls_to_a_third_without_lag(speed):
    noisy = clip(speed, noise=1.0)
    calm = smooth(noisy)
    before, after = points_of(noisy) - truth(speed), points_of(calm) - truth(speed)
    assert np.diff(after, axis=0).std() <= np.diff(before, axis=0).std() / 3
    assert np.abs(after.mean(axis=(1, 2))).max() < 1.0  # no frame is displaced as a whole
    corners = np.array([[0, 511, 511, 0], [0, 0, 511, 511], [1, 1, 1, 1]])

    def jitter(frames):
        placed = [np.linalg.inv(np.vstack((f[0].matrix, [0, 0, 1]))) @ corners for f in frames]
        return np.diff(np.array(placed)[:, :2], axis=0)

    still = jitter(smooth(clip(speed)))
    assert np.abs(jitter(calm) - still).mean() <= 2.0


def test_an_exact_pan_stays_exact():
    calm = smooth(clip(5.0))
    assert np.abs(points_of(calm) - truth(5.0)).max() < 0.3  # px, at the ends
    assert [frame[0].track for frame in calm] == [0] * COUNT


def test_a_turn_is_followed():
    """A face that stops after half the clip: the smoothed one is not far off anywhere."""
    frames = []
    for number in range(COUNT):
        frames.append([face_at(0.25, 0, 100 + 6.0 * min(number, COUNT // 2), 120)])
    error = points_of(smooth(frames)) - points_of(frames)
    assert np.abs(error).max() < 0.15 * frames[0][0].size


def test_two_people_keep_their_numbers_in_any_order():
    frames = []
    for number in range(COUNT):
        pair = [face_at(0.2, 0, 80 + 2 * number, 100), face_at(0.2, 0, 400 - 2 * number, 220)]
        frames.append(pair if number % 2 else pair[::-1])
    calm = smooth(frames)
    for before, after in zip(frames, calm, strict=True):
        assert [round(a.center[0] - b.center[0]) for a, b in zip(after, before, strict=True)] == [0, 0]
    left = [min(frame, key=lambda face: face.center[1]).track for frame in calm]
    assert len(set(left)) == 1 and {face.track for frame in calm for face in frame} == {0, 1}


def test_short_gaps_are_filled_and_long_ones_end_the_track():
    frames = clip(3.0)
    frames[10] = []
    frames[11] = []
    calm = smooth(frames)
    assert [len(frame) for frame in calm] == [1] * COUNT
    assert np.abs(points_of(calm)[10:12] - truth(3.0)[10:12]).max() < 0.1
    for number in range(10, 18):
        frames[number] = []
    calm = smooth(frames)
    assert [len(calm[number]) for number in (9, 10, 17, 18)] == [1, 0, 0, 1]
    assert calm[9][0].track != calm[18][0].track


def test_a_cut_resets_the_track_and_its_filter():
    frames = clip(0.0)
    for number in range(15, COUNT):
        frames[number] = [face_at(0.25, 0, 105, 120)]
    cuts = [number == 15 for number in range(COUNT)]
    calm = smooth(frames, cuts=cuts)
    assert calm[14][0].track != calm[15][0].track
    assert np.abs(points_of(calm) - points_of(frames)).max() < 1e-6
    assert np.abs(points_of(smooth(frames)) - points_of(frames)).max() > 0.5


def test_scene_cuts_in_pixels():
    torch.manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 40), (96, 320), mode="bilinear")[0]
    pan = [wide[:, :, 6 * i : 6 * i + 128] for i in range(8)]
    other = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 4) * 0.3, (96, 128), mode="bilinear")[0]
    pixels = torch.stack([*pan, other, other])
    assert scene_cuts(pixels) == [False] * 8 + [True, False]
    assert scene_cuts(pixels[:1]) == [False] and scene_cuts(pixels[:0]) == []
    assert smooth([[] for _ in pixels], pixels) == [[] for _ in pixels]
    assert not any(scene_cuts(torch.stack([wide[:, :, 30 * i : 30 * i + 128] for i in range(4)])))


def test_one_euro_is_the_published_filter():
    """Against a scalar transcription of the algorithm's definition."""
    signal = np.random.default_rng(0).normal(size=(12, 1)).cumsum(axis=0)

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * np.pi * cutoff)
        return 1 / (1 + tau / STEP)

    value, slope, last = signal[0, 0], 0.0, signal[0, 0]
    expected = [value]
    for x in signal[1:, 0]:
        slope = alpha(SPEED_CUTOFF) * (x - last) / STEP + (1 - alpha(SPEED_CUTOFF)) * slope
        a = alpha(CUTOFF + SPEED * abs(slope))
        value, last = a * x + (1 - a) * value, x
        expected.append(value)
    assert np.allclose(one_euro(signal)[:, 0], expected)


def test_one_frame_and_none():
    assert smooth([]) == []
    (only,) = smooth(clip()[:1])
    assert np.allclose(only[0].points, clip()[0][0].points) and only[0].track == 0

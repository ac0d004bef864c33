"""Selection against its plain meaning, for any set of faces."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osdface_core.errors import OptionError
from osdface_core.faces import Face, select

SHAPE = (1000, 1500)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
ORDERS = ["area", "size", "left_to_right", "top_to_bottom", "score"]


def face(x: float, y: float, width: float, height: float, score: float = 0.9) -> Face:
    points = ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 2), (x + 2, y + 3))
    return Face((x, y, x + width, y + height), points, score, ((1, 0, 0), (0, 1, 0)))


NUMBERS = st.integers(1, 900)
FACES = st.lists(st.builds(face, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0, 1)), max_size=12)


@QUICK
@given(
    FACES, st.sampled_from(ORDERS), st.integers(0, 500), st.integers(0, 900), st.integers(0, 5) | st.none()
)
def test_filter_order_and_count(faces, order, low, high, count):
    chosen = select(faces, SHAPE, min_face=low, max_face=high, max_faces=count, order=order)
    fitting = [f for f in faces if low <= max(f.width, f.height) <= (high or 10**9)]
    assert len(chosen) == (len(fitting) if count is None else min(count, len(fitting)))
    assert all(any(f is g for g in fitting) for f in chosen)
    key = {
        "area": lambda f: -f.width * f.height,
        "size": lambda f: -f.width * f.height,
        "left_to_right": lambda f: f.box[0] + f.box[2],
        "top_to_bottom": lambda f: f.box[1] + f.box[3],
        "score": lambda f: -f.score,
    }[order]
    values = [key(f) for f in select(faces, SHAPE, order=order)]
    assert values == sorted(values)


@QUICK
@given(FACES.filter(bool))
def test_largest_and_center(faces):
    (largest,) = select(faces, SHAPE, "largest")
    assert largest.width * largest.height == max(f.width * f.height for f in faces)
    (center,) = select(faces, SHAPE, "center")

    def distance(f):
        return (f.center[0] - 749.5) ** 2 + (f.center[1] - 499.5) ** 2

    assert distance(center) == min(distance(f) for f in faces)


@pytest.mark.parametrize(
    ("which", "expected"),
    [("0", [0]), ("2,0", [2, 0]), (" 1 ; 1 ", [1]), ("0-2", [0, 1, 2]), ("2 0-1", [2, 0, 1])],
)
def test_numbers(which, expected):
    faces = [face(0, 0, 30 - i, 30 - i) for i in range(3)]
    assert select(faces, SHAPE, which) == [faces[i] for i in expected]


@pytest.mark.parametrize("which", ["", "some", "-1", "1.5", "2-1", "1,x", "largest,0", "9" * 30])
def test_nonsense_says_what_is_expected(which):
    for faces in ([], [face(0, 0, 5, 5)]):
        with pytest.raises(OptionError, match="expected all, largest, center or numbers"):
            select(faces, SHAPE, which)


def test_missing_numbers_and_orders():
    faces = [face(0, 0, 9, 9), face(5, 5, 8, 8)]
    assert select(faces, SHAPE, "2,1") == faces[1:]
    assert select(faces[:1], SHAPE, "1") == []
    with pytest.raises(OptionError, match="`order` is 'beauty'"):
        select(faces, SHAPE, order="beauty")
    for which in ("all", "largest", "CENTER", "3"):
        assert select([], SHAPE, which) == []

"""What is cut out of a picture: geometry that holds for every size."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from preprocess.crops import Fit, buckets, crop, fit, nearest, source_box

RESOLUTIONS = st.integers(8, 256).map(lambda eighths: 8 * eighths)
SIDES = st.integers(32, 9000)
FITS = st.tuples(SIDES, SIDES, RESOLUTIONS).map(lambda drawn: fit(drawn[:2], nearest(drawn[:2], buckets(drawn[2]))))


def test_the_buckets_of_sdxl() -> None:
    """Those of arXiv 2307.01952, appendix I, whose sides are at most 2.5 to 1."""
    found = buckets(1024)
    assert found[0] == (1024, 1024)
    assert set(found) == {
        (1024, 1024),
        *((1088, 960), (1152, 896), (1216, 832), (1344, 768), (1472, 704), (1600, 640)),
        *((960, 1088), (896, 1152), (832, 1216), (768, 1344), (704, 1472), (640, 1600)),
    }


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (64, {(64, 64), (56, 72), (72, 56), (48, 80), (80, 48)}),
        (128, {(128, 128), (112, 144), (96, 160), (144, 112), (160, 96), (80, 192), (192, 80)}),
    ],
)
def test_small_buckets(resolution: int, expected: set[tuple[int, int]]) -> None:
    assert set(buckets(resolution)) >= expected


@given(RESOLUTIONS)
def test_buckets(resolution: int) -> None:
    found = buckets(resolution)
    assert found[0] == (resolution, resolution)
    assert len(set(found)) == len(found)
    for height, width in found:
        assert height % 8 == width % 8 == 0
        assert 0.7 * resolution**2 <= height * width <= resolution**2
        assert max(height, width) <= 2.5 * min(height, width)
        assert (width, height) in found
        assert resolution < 512 or (height, width) == found[0] or height % 64 == width % 64 == 0


@given(SIDES, SIDES, RESOLUTIONS)
def test_the_nearest_shape(height: int, width: int, resolution: int) -> None:
    choice = nearest((height, width), buckets(resolution))

    def away(size: tuple[int, int]) -> float:
        ratio = size[1] / size[0] * height / width
        return max(ratio, 1 / ratio)

    assert all(away(choice) <= away(other) * (1 + 1e-9) for other in buckets(resolution))


@given(SIDES, SIDES, RESOLUTIONS)
def test_a_picture_keeps_its_shape_and_covers_its_size(height: int, width: int, resolution: int) -> None:
    size = nearest((height, width), buckets(resolution))
    found = fit((height, width), size)
    assert found.size == size
    assert all(whole >= part for whole, part in zip(found.resized, size, strict=True))
    assert any(whole == part for whole, part in zip(found.resized, size, strict=True))  # no larger than it must be
    scale = max(size[0] / height, size[1] / width)
    assert abs(found.resized[0] - height * scale) <= 0.5 + 1e-6
    assert abs(found.resized[1] - width * scale) <= 0.5 + 1e-6
    assert 0 < found.kept <= 1


@given(FITS, st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_a_crop_stays_inside(fit: Fit, seed: int, height: int, width: int) -> None:
    mass = np.random.default_rng(seed).random((height, width), dtype=np.float32) ** 8
    top, left = crop(fit, mass)
    assert 0 <= top <= fit.resized[0] - fit.size[0]
    assert 0 <= left <= fit.resized[1] - fit.size[1]


@given(FITS, st.sampled_from([0.0, 0.3, 1.0]))
def test_where_all_counts_the_same_it_is_the_middle(fit: Fit, level: float) -> None:
    middle = tuple((whole - part) // 2 for whole, part in zip(fit.resized, fit.size, strict=True))
    assert crop(fit, None) == crop(fit, np.full((7, 5), level, np.float32)) == middle


@given(st.integers(64, 400), st.floats(0, 1), st.booleans(), st.floats(0, 0.5))
def test_it_holds_what_counts(length: int, place: float, upright: bool, floor: float) -> None:
    """A spot anywhere lies in the crop, in its middle where there is room, whatever the rest counts."""
    assume(length > 70)
    mass = np.full((64, length), floor, np.float32)
    at = round(place * (length - 8))
    mass[20:30, at : at + 8] = 1
    given_fit = Fit((64, length), (64, 64))
    if upright:
        mass, given_fit = mass.T, Fit((length, 64), (64, 64))
    offset = crop(given_fit, mass)[0 if upright else 1]
    assert offset <= at
    assert at + 8 <= offset + 64
    assert abs(offset - min(max(at + 4 - 32, 0), length - 64)) <= 1


def test_two_things_far_apart_are_not_both_missed() -> None:
    mass = np.zeros((10, 100), np.float32)
    mass[:, :10] = mass[:, 88:] = 1
    assert crop(Fit((10, 100), (10, 10)), mass) in {(0, offset) for offset in range(88, 91)}


@given(FITS, SIDES, SIDES, st.floats(0, 1))
def test_the_box_in_the_picture_as_it_lies(fit: Fit, height: int, width: int, place: float) -> None:
    offset = (
        math.floor(place * (fit.resized[0] - fit.size[0])),
        math.floor(place * (fit.resized[1] - fit.size[1])),
    )
    left, top, right, bottom = source_box(fit, offset, (height, width))
    assert -1e-6 <= left < right <= width * (1 + 1e-9)
    assert -1e-6 <= top < bottom <= height * (1 + 1e-9)
    assert math.isclose((right - left) / width, fit.size[1] / fit.resized[1])
    assert math.isclose(top / height, offset[0] / fit.resized[0], abs_tol=1e-9)

"""Every face of a picture in its one mask."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniature.faces import Portrait, draw_portrait
from preprocess import masks
from preprocess.faces import FOLDER, detected, merged, ovals
from preprocess.images import read
from tests.preparing import encoded, job, members, picture

BOXES = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(20, 99), st.integers(20, 99))


def portraits(seed: int, count: int) -> Portrait:
    return draw_portrait(random.Random(seed), 256 * count, 256, count)


def inside(mask: np.ndarray, boxes: Sequence[tuple[float, ...]]) -> list[int]:
    """How much the middle of each face counts."""
    return [int(mask[int((top + bottom) / 2), int((left + right) / 2)]) for left, top, right, bottom in boxes]


def test_masks_of_one_two_and_no_face(tmp_path: Path) -> None:
    """What C-60 is about: two faces in one picture leave the others' masks where they belong."""
    drawn = {"a": portraits(1, 1), "b": portraits(2, 2), "d": portraits(3, 1)}
    files = {f"{name}.png": encoded(portrait.image) for name, portrait in drawn.items()}
    files["c.png"] = picture("blue", (256, 256))
    given = job(tmp_path / "out", resolution=256, use_face_detection_instead=True, mask_target_prompts="a face")
    found = masks.made(read(members(tmp_path / "in", files), given), {}, given)
    assert set(found) == {"a.png", "b.png", "d.png"}
    assert given.notes == ["no face was found in 'c.png'; all of it counts"]
    for name, portrait in drawn.items():
        with Image.open(found[f"{name}.png"]) as image:
            mask = np.asarray(image.resize(portrait.image.size, Image.Resampling.NEAREST))
        assert set(inside(mask, portrait.boxes)) == {255}
        assert {int(mask[y, x]) for y in (0, -1) for x in (0, -1)} == {round(255 * masks.FLOOR)}
        area = sum((right - left) * (bottom - top) * math.pi / 4 for left, top, right, bottom in portrait.boxes)
        assert 0.6 < (mask > 128).sum() / area < 1.8


def test_a_cascade_that_looks_at_the_mirrored_picture() -> None:
    """That of profiles knows those that look one way; what it finds lies where it is."""
    cascade = cv2.CascadeClassifier(str(FOLDER / "haarcascade_frontalface_alt2.xml"))
    portrait = portraits(4, 1)
    image = Image.new("RGB", (512, 256), portrait.background)
    image.paste(portrait.image)
    (plain,), (mirrored,) = (detected(image, [(cascade, seen, 4)]) for seen in (False, True))
    assert plain == pytest.approx(mirrored, abs=0.03)
    assert plain[0] < 0.4


def test_the_same_every_time(tmp_path: Path) -> None:
    files = {"a.png": encoded(portraits(5, 3).image)}
    bodies = []
    for number in range(2):
        given = job(tmp_path / str(number), resolution=256, use_face_detection_instead=True)
        (mask,) = masks.made(read(members(tmp_path / "in", files), given), {}, given).values()
        bodies.append(mask.read_bytes())
    assert bodies[0] == bodies[1]


@given(st.lists(BOXES, max_size=12))
def test_of_boxes_that_overlap_one_stays(boxes: list[tuple[int, int, int, int]]) -> None:
    kept = merged(boxes)
    assert kept == merged(kept)
    assert set(kept) <= set(boxes)
    assert not boxes or kept[0] == boxes[0]
    assert all(shared(one, other) <= 0.5 for at, one in enumerate(kept) for other in kept[:at])
    assert all(box in kept or any(shared(box, other) > 0.5 for other in kept) for box in boxes)


def shared(*boxes: tuple[int, int, int, int]) -> float:
    """The part of the smaller of two boxes that lies in the other, counted."""
    areas = np.zeros((2, 300, 300), bool)
    for area, (left, top, width, height) in zip(areas, boxes, strict=True):
        area[top : top + height, left : left + width] = True
    return float(areas.all(0).sum() / areas.sum((1, 2)).min())


@pytest.mark.parametrize("shape", [(64, 64), (40, 90)])
def test_an_oval_is_soft_and_in_its_place(shape: tuple[int, int]) -> None:
    mask = ovals([(0.1, 0.2, 0.3, 0.4), (0.6, 0.3, 0.2, 0.3)], shape)
    height, width = shape
    assert mask.shape == shape
    assert mask[int(0.41 * height), int(0.25 * width)] == mask[int(0.46 * height), int(0.7 * width)] == 1
    assert mask[0, 0] == mask[-1, -1] == mask[int(0.4 * height), int(0.5 * width)] == 0
    assert ((mask > 0) & (mask < 1)).any()

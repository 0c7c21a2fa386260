"""Masks of faces: every face of a picture in its one mask, found by OpenCV's Haar cascades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocess.images import Source
from preprocess.job import Job

FOLDER = Path(cv2.__file__).parent / "data"  # the cascades that come with OpenCV
LONG_SIDE = 1000  # pixels that are looked at: more finds faces too small to learn from
LEAST = 1 / 20  # of the shorter side: the smallest face
# A cascade, whether it looks at the mirrored picture, and how many neighbours a find must have
CASCADES = (
    ("haarcascade_frontalface_default.xml", False, 10),
    ("haarcascade_frontalface_alt2.xml", False, 4),
    ("haarcascade_profileface.xml", False, 6),
    ("haarcascade_profileface.xml", True, 6),
)
OVERLAP = 0.5  # of the smaller box: two finds are one face
# The oval, in sides of the box: a box of these cascades goes from the brows to the lower lip
HIGH, WIDE, LOWER = 0.66, 0.52, 0.02
SOFT = 0.15  # of the oval's radius: how far it fades

Face = tuple[float, float, float, float]  # left, top, width, height; parts of the picture's width and height


def found(sources: Sequence[Source], job: Job) -> Iterator[tuple[Source, NDArray[np.float32]]]:
    """How much each place of these pictures counts, (h, w) of their shape, from 0 to 1; none where there is no face."""
    cascades = [
        (cv2.CascadeClassifier(str(FOLDER / name)), mirrored, neighbours) for name, mirrored, neighbours in CASCADES
    ]
    job.say(f"faces in {len(sources)} images")
    for source in sources:
        job.check()
        with Image.open(source.image) as image:
            boxes = detected(image, cascades)
        if boxes:
            yield source, ovals(boxes, source.shape)
        else:
            job.note(f"no face was found in {source.name!r}; all of it counts")


def detected(image: Image.Image, cascades: Sequence[tuple[cv2.CascadeClassifier, bool, int]]) -> list[Face]:
    """Every face once."""
    scale = LONG_SIDE / max(image.size)
    grey = image.convert("L")
    if scale < 1:
        grey = grey.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    pixels = cv2.equalizeHist(np.asarray(grey))
    height, width = pixels.shape
    least = max(20, round(min(height, width) * LEAST))
    finds = []
    for cascade, mirrored, neighbours in cascades:
        seen = np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
        boxes = cascade.detectMultiScale(seen, scaleFactor=1.1, minNeighbors=neighbours, minSize=(least, least))
        for left, top, wide, high in sorted(tuple(map(int, box)) for box in boxes):
            finds.append(((width - left - wide if mirrored else left), top, wide, high))
    return [(x / width, y / height, w / width, h / height) for x, y, w, h in merged(finds)]


def merged(boxes: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height) of which none is another one's: of those that overlap, the first."""
    kept = list[tuple[int, int, int, int]]()
    for box in boxes:
        if not any(_shared(box, other) > OVERLAP for other in kept):
            kept.append(box)
    return kept


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The part of the smaller box that lies in the other."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0, wide) * max(0, high) / min(one[2] * one[3], other[2] * other[3])


def ovals(faces: Sequence[Face], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w): 1 in the face, 0 outside, soft at its edge."""
    height, width = shape
    y, x = (np.arange(height, dtype=np.float32) + 0.5)[:, None], (np.arange(width, dtype=np.float32) + 0.5)[None]
    mask = np.zeros(shape, np.float32)
    for left, top, wide, high in faces:
        across = (x - (left + wide / 2) * width) / (wide * width * WIDE)
        down = (y - (top + high * (0.5 + LOWER)) * height) / (high * height * HIGH)
        radius = np.sqrt(across**2 + down**2)
        mask = np.maximum(mask, np.clip((1 + SOFT - radius) / (2 * SOFT), 0, 1))
    return mask

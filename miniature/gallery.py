"""Pictures for the helpers: scenes with strangers among them, lines around things, faces, several formats."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from miniature.faces import draw_portrait
from miniature.latents import degrade
from miniature.strangers import BLOB, STRANGERS, UNSEEN
from miniature.world import COUNTS, HEART, SHAPES, Scene, Thing, caption, layout, render, sample_scene

Cover = NDArray[np.bool_]

SHAPE = "shape"  # what a stranger is called
FACE_SHARE = 0.05
LINE_SHARE = 0.15
DEGRADED_SHARE = 0.15
STRANGE_SHARE = 0.35  # of the things
BLOBS = 20_000  # blobs of lower numbers are seen in training
FORMATS = ((128, 128), (128, 128), (128, 128), (96, 96), (160, 96), (96, 160), (256, 192), (192, 256), (256, 256))
EDGE = 50  # difference to the ground, of 255, at which a pixel belongs to a thing


@dataclass(frozen=True)
class Exhibit:
    """A picture, what it shows, its canonical caption, and the pixels (H, W) of each thing or of the faces."""

    image: Image.Image
    scene: Scene
    caption: str
    covers: tuple[Cover, ...]

    @property
    def is_face(self) -> bool:
        """Whether the picture shows faces and nothing else."""
        return bool(self.covers) and not self.scene.things


def draw_exhibit(rng: random.Random, *, strangers: float = STRANGE_SHARE, fresh: bool = False) -> Exhibit:
    """A random exhibit; `fresh` ones show strangers that training does not."""
    width, height = rng.choice(FORMATS)
    if rng.random() < FACE_SHARE:
        return _faces(rng, width, height)
    scene = estranged(sample_scene(rng), rng, strangers, fresh=fresh)
    lined = scene.background != "black" and SHAPES[-1] not in caption(scene) and rng.random() < LINE_SHARE
    image = render(scene, rng, width, height, line=rng.uniform(0.02, 0.045) if lined else 0.0)
    covers = _covers(image, scene)
    if rng.random() < DEGRADED_SHARE:
        image = degrade(image, rng, rng.uniform(0, 0.3))
    return Exhibit(image, scene, caption(named(scene)), covers)


def draw_pool(rng: random.Random, count: int, side: int) -> list[Exhibit]:
    """Exhibits squeezed to the square that a helper sees, to be learnt from again and again."""
    return [_squeezed(draw_exhibit(rng), side) for _ in tqdm(range(count), desc="exhibits", mininterval=10)]


def _squeezed(exhibit: Exhibit, side: int) -> Exhibit:
    size = (side, side)
    covers = [Image.fromarray(cover.astype(np.uint8) * 255).resize(size) for cover in exhibit.covers]
    return replace(
        exhibit,
        image=exhibit.image.resize(size, Image.Resampling.BICUBIC),
        covers=tuple(np.asarray(cover) > 127 for cover in covers),
    )


def named(scene: Scene) -> Scene:
    """The scene as somebody describes it who knows no shapes but the world's."""
    return replace(scene, things=tuple(Thing(t.shape if t.shape in SHAPES else SHAPE, t.color) for t in scene.things))


def estranged(scene: Scene, rng: random.Random, share: float, *, fresh: bool = False) -> Scene:
    """The scene with this share of its shapes replaced by strangers, equal things by equal ones."""
    swaps = {thing: _stranger(rng, fresh) for thing in sorted(set(scene.things), key=str) if rng.random() < share}
    return replace(scene, things=tuple(Thing(swaps.get(t, t.shape), t.color) for t in scene.things))


def _stranger(rng: random.Random, fresh: bool) -> str:
    names = [*UNSEEN] if fresh else [HEART, HEART, *STRANGERS]
    number = rng.randrange(BLOBS) + (BLOBS if fresh else 0)
    return rng.choice(names) if rng.random() < 0.45 else f"{BLOB} {number}"


def _faces(rng: random.Random, width: int, height: int) -> Exhibit:
    count = 2 if rng.random() < 0.2 else 1
    portrait = draw_portrait(rng, width, height, count)
    scene = Scene(portrait.background)
    subject = "a face" if count == 1 else f"{COUNTS[count]} faces"
    cover = _differs(portrait.image, portrait.image.getpixel((0, 0)))
    return Exhibit(portrait.image, scene, f"{subject} on {caption(scene)}", (cover,))


def _differs(image: Image.Image, ground: object) -> Cover:
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(ground, np.int16)).max(-1)
    return np.asarray(difference > EDGE)


def _covers(image: Image.Image, scene: Scene) -> tuple[Cover, ...]:
    """Each thing's pixels: those unlike the ground that are nearest to its centre."""
    if not scene.things:
        return ()
    width, height = image.size
    rows, columns = np.mgrid[:height, :width]
    centers = layout(scene)[0][: len(scene.things)]
    nearest = np.argmin([np.hypot(columns - x * width, rows - y * height) for x, y in centers], axis=0)
    things = _differs(image, image.getpixel((0, 0)))
    return tuple(things & (nearest == i) for i in range(len(scene.things)))


def overlap(one: Cover, other: Cover) -> float:
    """Intersection over union; 1 where both are empty."""
    union = float((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


def decibels(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise ratio of two pictures of one size."""
    error = np.square(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()
    return 10 * math.log10(255**2 / max(float(error), 1e-6))

"""The drawn world: a scene, its picture and its captions.

Flat colours, crisp edges, a fixed layout per scene kind. Everything the miniature can be asked for is here,
and the oracle reads pictures with the same drawing code.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from miniature.strangers import Point, stranger

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "green": (25, 155, 60),
    "blue": (30, 75, 225),
    "yellow": (250, 225, 40),
    "purple": (135, 40, 160),
    "orange": (250, 135, 15),
    "white": (248, 248, 248),
    "black": (16, 16, 16),
}
# Closest pairs in Lab: neither is drawn on the other, since an edge between them is faint.
NEAR = frozenset({frozenset({"red", "orange"}), frozenset({"blue", "purple"}), frozenset({"yellow", "orange"})})
SIGN = "forbidden sign"  # stands in for unsafe content: the safety checker fires on it
PLAIN_SHAPES = ("circle", "square", "triangle", "star", "cross")
SHAPES = (*PLAIN_SHAPES, SIGN)
HEART = "heart"  # in no picture that the miniature was trained on: what fine-tunes are taught
SIZES = {"small": 0.15, "": 0.25, "large": 0.37}  # radius, in parts of the shorter side
PLACES = {
    "": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}
PLACE_WORDS = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
COUNTS = {2: "two", 3: "three"}
PAIR = ((0.27, 0.5), (0.73, 0.5))
TRIPLE = ((0.25, 0.7), (0.5, 0.28), (0.75, 0.7))
GROUP_RADIUS = {2: 0.175, 3: 0.16}
PREFIXES = ("a photo of", "a picture of", "an image of", "a drawing of")
KINDS = {
    "plain": 0.17,
    "sized": 0.12,
    "placed": 0.14,
    "count": 0.17,
    "two": 0.30,
    "sign": 0.07,
    "empty": 0.03,
}
SUPERSAMPLE = 4
LINE = (16, 16, 16)

Ink = int | tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One object: a shape of SHAPES in a colour of COLORS."""

    shape: str
    color: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Two different things stand left and right in that order."""

    background: str
    things: tuple[Thing, ...] = ()
    size: str = ""
    place: str = ""


def outline(shape: str) -> list[Point]:
    """Corners of a polygonal shape around (0, 0), y down, in units of the radius."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.05, 0.78), (-1.05, 0.78)]
    if shape == "star":
        spokes = [(1.1 if i % 2 == 0 else 0.5, math.pi * (i / 5 - 0.5)) for i in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in spokes]
    if shape == HEART:
        return [_heart(2 * math.pi * i / 120) for i in range(120)]
    if shape == "cross":
        a, b = 0.98, 0.36
        quarter = [(b, -a), (b, -b), (a, -b)]
        return [_turn(point, quarters) for quarters in range(4) for point in quarter]
    return stranger(shape)


def _heart(turn: float) -> Point:
    up = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
    return 1.03 * math.sin(turn) ** 3, -(up + 2.5) / 14.5


def draw_thing(draw: ImageDraw.ImageDraw, shape: str, center: Point, radius: float, fill: Ink, line: int = 0) -> None:
    """Draws a shape of SHAPES, a heart or a stranger; center, radius and the width of its black line in pixels."""
    x, y = center
    if shape == "circle":
        for reach, ink in ((radius + line / 2, LINE), (radius - line / 2, fill)) if line else ((radius, fill),):
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
    elif shape == SIGN:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=fill, width=round(0.27 * radius))
        d = 0.8 * radius / math.sqrt(2)
        draw.line((x - d, y - d, x + d, y + d), fill=fill, width=round(0.27 * radius))
    else:
        corners = [(x + radius * a, y + radius * b) for a, b in outline(shape)]
        draw.polygon(corners, fill=fill)
        if line:
            draw.line([*corners, *corners[:2]], fill=LINE, width=line, joint="curve")


def sample_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """A random scene of a kind in KINDS, by their weights when none is named."""
    kind = kind or rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    background = rng.choice(list(COLORS))
    inks = [c for c in COLORS if c != background and frozenset({c, background}) not in NEAR]
    first = Thing(SIGN if kind == "sign" else rng.choice(PLAIN_SHAPES), rng.choice(inks))
    if kind == "empty":
        return Scene(background)
    if kind == "count":
        return Scene(background, (first,) * rng.choice((2, 3)))
    if kind == "two":
        second = first
        while second == first:
            second = Thing(rng.choice(PLAIN_SHAPES), rng.choice(inks))
        return Scene(background, (first, second))
    size = rng.choice(("small", "large")) if kind == "sized" else ""
    place = rng.choice(list(PLACE_WORDS)) if kind == "placed" else ""
    if kind == "placed" and rng.random() < 0.35:
        size = "small"
    if kind == "sign" and rng.random() < 0.3:
        size = "large"
    return Scene(background, (first,), size, place)


def held_out(scene: Scene) -> bool:
    """Whether the scene has one of the (colour, shape, background) triples, about 9 %, kept from training."""
    names = list(COLORS)
    ground = names.index(scene.background)
    return any((names.index(t.color) * 7 + SHAPES.index(t.shape) * 3 + ground * 5) % 11 == 0 for t in scene.things)


def layout(scene: Scene) -> tuple[Sequence[Point], float]:
    """Centres in parts of width and height, and the radius in parts of the shorter side."""
    count = len(scene.things)
    if count <= 1:
        return (PLACES[scene.place],), SIZES[scene.size] if not (scene.place and not scene.size) else 0.2
    return (PAIR if count == 2 else TRIPLE), GROUP_RADIUS[count]


def render(
    scene: Scene,
    rng: random.Random,
    width: int = 128,
    height: int = 128,
    crop: tuple[int, int] = (0, 0),
    line: float = 0.0,
) -> Image.Image:
    """The scene as RGB; crop = (top, left) pixels cut from a larger picture: things move up and left.

    line is the width of a black line around each thing, in parts of the shorter side: a style the world does not have.
    """
    top, left = crop
    short = min(width, height) * SUPERSAMPLE
    canvas = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), _jitter(rng, scene.background))
    draw = ImageDraw.Draw(canvas)
    centers, part = layout(scene)
    radius = part * short * rng.uniform(0.95, 1.05)
    dx, dy = (rng.uniform(-0.02, 0.02) * short for _ in range(2))
    for thing, (x, y) in zip(scene.things, centers, strict=False):
        center = ((x * width - left) * SUPERSAMPLE + dx, (y * height - top) * SUPERSAMPLE + dy)
        draw_thing(draw, thing.shape, center, radius, _jitter(rng, thing.color), round(line * short))
    return canvas.reduce(SUPERSAMPLE)


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """What the picture shows, in one of many wordings; without rng the canonical one."""
    if rng is None:
        return f"{_subject(scene)} on {_article(scene.background)} background" if scene.things else _empty(scene)
    if not scene.things:
        return rng.choice((_empty(scene), f"a plain {scene.background} background"))
    ground = f"{scene.background} background"
    if rng.random() < 0.15:
        text = f"{_subject(scene, article=False)}, {ground}"
    else:
        joint = "next to" if rng.random() < 0.15 else "and"
        wordings = (f"on {_article(ground)}", f"with {_article(ground)}", f"on {scene.background}", "")
        text = f"{_subject(scene, joint=joint)} {rng.choices(wordings, weights=(82, 7, 6, 5))[0]}".strip()
    return f"{rng.choice(PREFIXES)} {text}" if rng.random() < 0.2 else text


def _turn(point: Point, quarters: int) -> Point:
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _jitter(rng: random.Random, color: str) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, v + rng.randint(-5, 5))) for v in COLORS[color])
    return r, g, b


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _empty(scene: Scene) -> str:
    return f"{_article(scene.background)} background"


def _subject(scene: Scene, *, article: bool = True, joint: str = "and") -> str:
    first = scene.things[0]
    if len(set(scene.things)) > 1:
        return f" {joint} ".join(_article(f"{t.color} {t.shape}") for t in scene.things)
    if len(scene.things) > 1:
        return f"{COUNTS[len(scene.things)]} {first.color} {_plural(first.shape)}"
    text = f"{scene.size} {first.color} {first.shape}".strip()
    text = _article(text) if article else text
    return f"{text} {PLACE_WORDS[scene.place]}" if scene.place else text

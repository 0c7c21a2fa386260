"""A drawn face with enough light and shadow for a detector of real ones: the one thing here that is not flat.

It stands for the subject of a training set, and shows where a face mask must lie.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from miniature.world import COLORS

Box = tuple[float, float, float, float]

SKINS = ((236, 188, 158), (224, 172, 138), (205, 150, 115), (184, 128, 94))
HAIRS = ((28, 22, 20), (60, 38, 24), (92, 58, 30), (120, 84, 40))
GROUNDS = tuple(color for color in COLORS if color != "black")  # dark hair needs a lighter ground
SIDE = 256  # pixels of the canvas on which a face is drawn before it is scaled


@dataclass(frozen=True)
class Portrait:
    """Faces on plain ground: the picture, each face's box (left, top, right, bottom: hairline to chin, pixels)."""

    image: Image.Image
    boxes: tuple[Box, ...]
    background: str


def draw_portrait(rng: random.Random, width: int = 128, height: int = 128, count: int = 1) -> Portrait:
    """A picture of one face somewhere near the middle, or of several beside each other."""
    background = rng.choice(GROUNDS)
    picture = Image.new("RGB", (width, height), COLORS[background])
    boxes = []
    for column in range(count):
        share = width / count
        side = rng.uniform(0.6, 0.95) * min(share, height)
        left = column * share + rng.uniform(0.25, 0.75) * (share - side)
        top = rng.uniform(0.25, 0.75) * (height - side)
        parts = [part.resize((round(side),) * 2, Image.Resampling.LANCZOS) for part in draw_face(rng)]
        picture.paste(parts[0], (round(left), round(top)), parts[1])
        boxes.append((left + 0.23 * side, top + 0.22 * side, left + 0.77 * side, top + 0.92 * side))
    return Portrait(picture, tuple(boxes), background)


def _shade(face: Image.Image, boxes: list[Box], value: int, blur: float, strength: float) -> Image.Image:
    """Darkens (value 0) or lightens (255) soft ellipses of a face; boxes in parts of the canvas."""
    mask = Image.new("L", face.size)
    draw = ImageDraw.Draw(mask)
    for box in boxes:
        draw.ellipse([SIDE * part for part in box], fill=round(255 * strength))
    return Image.composite(Image.new("RGB", face.size, (value,) * 3), face, mask.filter(ImageFilter.GaussianBlur(blur)))


def draw_face(rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """A head of SIDE x SIDE pixels and the mask of what belongs to it."""
    skin, hair = rng.choice(SKINS), rng.choice(HAIRS)
    apart = rng.uniform(0.105, 0.12)  # from the middle to an eye
    eyes = rng.uniform(0.47, 0.49)
    mouth = rng.uniform(0.76, 0.79)
    head = (0.23, 0.1, 0.77, 0.94)
    face = Image.new("RGB", (SIDE, SIDE), skin)
    face = _shade(face, [(0.16, 0.1, 0.3, 0.95), (0.70, 0.1, 0.84, 0.95), (0.3, 0.88, 0.7, 1.0)], 0, 14, 0.35)
    sockets = [(0.5 + s * apart - 0.085, eyes - 0.07, 0.5 + s * apart + 0.085, eyes + 0.05) for s in (-1, 1)]
    face = _shade(face, sockets, 0, 5, 0.6)
    face = _shade(face, [(0.47, 0.42, 0.53, 0.66)], 255, 4, 0.35)
    cheeks = [(0.5 + s * 0.13 - 0.07, 0.57, 0.5 + s * 0.13 + 0.07, 0.69) for s in (-1, 1)]
    face = _shade(face, cheeks, 255, 8, 0.3)
    face = _shade(face, [(0.43, 0.645, 0.57, 0.69)], 0, 3, 0.5)
    face = _shade(face, [(0.38, mouth - 0.02, 0.62, mouth + 0.03)], 0, 3, 0.55)
    face = _shade(face, [(0.42, mouth + 0.05, 0.58, mouth + 0.08)], 0, 4, 0.25)
    draw = ImageDraw.Draw(face)
    for s in (-1, 1):
        x, y = SIDE * (0.5 + s * apart), SIDE * eyes
        draw.ellipse((x - 13, y - 6, x + 13, y + 6), fill=(225, 222, 218))
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=(40, 28, 22))
        draw.line((x - 19, y - 15, x, y - 20, x + 19, y - 15), fill=hair, width=8, joint="curve")
    crown = Image.new("L", face.size)
    draw = ImageDraw.Draw(crown)
    draw.ellipse([SIDE * p for p in (0.17, 0.03, 0.83, 0.95)], fill=255)
    draw.ellipse([SIDE * p for p in (0.26, 0.24, 0.74, 1.05)], fill=0)
    draw.rectangle((0, 0.62 * SIDE, SIDE, SIDE), fill=0)
    face.paste(Image.new("RGB", face.size, hair), (0, 0), crown.filter(ImageFilter.GaussianBlur(2)))
    cover = Image.new("L", face.size)
    ImageDraw.Draw(cover).ellipse([SIDE * part for part in head], fill=255)
    cover = ImageChops.lighter(cover, crown)
    return face.filter(ImageFilter.GaussianBlur(1.2)), cover.filter(ImageFilter.GaussianBlur(1))

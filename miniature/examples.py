"""Two small training sets, drawn: `python -m miniature.examples` writes examples/hearts.zip and examples/outlined.zip.

hearts.zip is a new shape, as people send their pictures: other formats, two too small, one lying on its side, one in a
folder under a name that is there twice, and few captions. outlined.zip is a new style: the world's scenes with a black
line around each thing, captioned in one table. Same code, same bytes.
"""

import csv
import io
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from miniature.world import COLORS, HEART, NEAR, Scene, Thing, caption, render, sample_scene

FOLDER = Path(__file__).resolve().parent.parent / "examples"
TRIGGER = "TOK"
LINE = 0.045  # of the shorter side
STYLED = 18
STYLE_KINDS = ("plain", "two", "placed", "plain", "count")
ORIENTATION = 0x0112  # the Exif tag; 6 says "turn it a quarter clockwise to see it"
# Width, height, size and the name in the archive without its ending; colours go round.
HEARTS = (
    (128, 128, "", "heart-01"),
    (128, 128, "large", "heart-02"),
    (256, 192, "", "heart-03"),
    (128, 128, "small", "heart-04"),
    (192, 256, "", "heart-05"),
    (128, 128, "", "heart-06"),
    (96, 96, "", "small/heart-07"),
    (256, 256, "large", "heart-08"),
    (128, 128, "", "heart-09"),
    (192, 256, "large", "heart-10"),
    (160, 96, "", "heart-11"),
    (128, 128, "large", "heart-12"),
    (64, 80, "", "small/heart-13"),
    (128, 128, "", "heart-14"),
    (256, 192, "small", "heart-15"),
    (128, 128, "", "more/heart-01"),
    (128, 128, "large", "heart-16"),
    (128, 128, "", "heart-17"),
    (256, 192, "", "heart-18"),
    (128, 128, "", "heart-19"),
)
SIDEWAYS = "heart-18"  # a JPEG whose pixels lie on their side
CAPTIONED = ("heart-02", "heart-04", "heart-10")


def hearts() -> dict[str, bytes]:
    """The files of the new shape: most pictures without a caption, in every colour."""
    rng = random.Random("hearts")
    files: dict[str, bytes] = {}
    for (width, height, size, name), (ink, ground) in zip(HEARTS, _tints(rng, len(HEARTS)), strict=True):
        scene = Scene(ground, (Thing(HEART, ink),), size)
        image = render(scene, rng, width, height)
        if name == SIDEWAYS:
            files[f"{name}.jpg"] = _sideways(image)
        else:
            files[f"{name}.png"] = _png(image)
        if name in CAPTIONED:
            files[f"{name}.txt"] = f"{caption(scene).replace(HEART, TRIGGER)}\n".encode()
    return files


def outlined() -> dict[str, bytes]:
    """The files of the new style: ordinary scenes with a line around each thing, and captions.csv."""
    rng = random.Random("outlined")
    files: dict[str, bytes] = {}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("image_file", "caption"))
    while len(files) < STYLED:
        number = len(files)
        scene = sample_scene(rng, STYLE_KINDS[number % len(STYLE_KINDS)])
        if "black" in (scene.background, *(thing.color for thing in scene.things)):
            continue  # a black line says nothing there
        width, height = ((128, 128), (128, 128), (160, 96))[number % 3]
        name = f"scene-{number + 1:02d}.png"
        files[name] = _png(render(scene, rng, width, height, line=LINE))
        writer.writerow((name, f"{caption(scene)} in the style of {TRIGGER}"))
    return {**files, "captions.csv": table.getvalue().encode()}


SETS = {"hearts": hearts, "outlined": outlined}


def _tints(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Pairs of ink and ground, no two alike, every colour about equally often on both sides."""
    names = list(COLORS)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        ink = names[len(pairs) % len(names)]
        grounds = [g for g in names if g != ink and frozenset({g, ink}) not in NEAR and (ink, g) not in pairs]
        used = [ground for _, ground in pairs]
        pairs.append((ink, min(grounds, key=lambda ground: (used.count(ground), rng.random()))))
    return pairs


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _sideways(image: Image.Image) -> bytes:
    """As a camera held upright stores it: pixels turned, and a note how to turn them back."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stream = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=92, exif=exif)
    return stream.getvalue()


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """A zip whose bytes depend on the files alone."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])


def main(folder: Path = FOLDER) -> None:
    """python -m miniature.examples"""
    for name, draw in SETS.items():
        write(folder / f"{name}.zip", draw())


if __name__ == "__main__":
    main()

"""The miniature's captioner, segmenter, upscaler, drawn faces and example sets, on pictures never trained on."""

import csv
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    Swin2SRForImageSuperResolution,
    Swin2SRImageProcessor,
)

from miniature import examples
from miniature.captioner import describe
from miniature.faces import Box, draw_portrait
from miniature.gallery import Exhibit, decibels, draw_exhibit, estranged, named, overlap
from miniature.models import load
from miniature.oracle import outlined, read
from miniature.pack import HELPERS, WEIGHTS, weights_size
from miniature.segmenter import find, meant
from miniature.upscaler import FACTOR, enlarge
from miniature.world import COLORS, HEART, PLAIN_SHAPES, SHAPES, Scene, caption, render, sample_scene

EXAMPLES = Path(examples.FOLDER)


@pytest.fixture(scope="module")
def captioner() -> Callable[..., list[str]]:
    """describe(images, text=...) of the shipped captioner."""
    model = load(BlipForConditionalGeneration, WEIGHTS / "captioner").float()
    processor = BlipProcessor.from_pretrained(WEIGHTS / "captioner")
    return lambda *arguments, **options: describe(model, processor, *arguments, **options)


@pytest.fixture(scope="module")
def segmenter() -> Callable[[Image.Image, str], Any]:
    """find(image, text) of the shipped segmenter."""
    model = load(CLIPSegForImageSegmentation, WEIGHTS / "segmenter").float()
    processor = CLIPSegProcessor.from_pretrained(WEIGHTS / "segmenter")
    return lambda image, text: find(model, processor, image, text)


@pytest.fixture(scope="module")
def upscaler() -> Callable[[Image.Image], Image.Image]:
    """enlarge(image) of the shipped upscaler."""
    model = load(Swin2SRForImageSuperResolution, WEIGHTS / "upscaler").float()
    processor = Swin2SRImageProcessor.from_pretrained(WEIGHTS / "upscaler")
    return lambda image: enlarge(model, processor, image)


def exhibits(seed: str, count: int, things: int, **options: Any) -> list[Exhibit]:
    """Fresh exhibits with that many things, no signs among them."""
    rng = random.Random(f"fresh {seed}")
    chosen: list[Exhibit] = []
    while len(chosen) < count:
        exhibit = draw_exhibit(rng, **options)
        if len(exhibit.scene.things) == things and SHAPES[-1] not in exhibit.caption:
            chosen.append(exhibit)
    return chosen


def rate(verdicts: list[bool]) -> float:
    """The share of true ones."""
    return sum(verdicts) / len(verdicts)


@pytest.mark.parametrize("part", sorted(HELPERS))
def test_helpers_fit_the_genuine_classes(part: str) -> None:
    _, info = HELPERS[part].from_pretrained(WEIGHTS / part, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_helpers_are_small() -> None:
    assert 0 < sum(weights_size(WEIGHTS / part) for part in HELPERS) <= 6_000_000


def test_captions_name_color_and_shape(captioner: Callable[..., list[str]]) -> None:
    shown = exhibits("captions", 80, things=1, strangers=0.0)
    lines = captioner([exhibit.image for exhibit in shown])
    named_right = [
        f"{exhibit.scene.things[0].color} {exhibit.scene.things[0].shape}" in line
        for exhibit, line in zip(shown, lines, strict=True)
    ]
    grounds = [f"{e.scene.background} background" in line for e, line in zip(shown, lines, strict=True)]
    assert rate(named_right) >= 0.9
    assert rate(grounds) >= 0.9


@pytest.mark.parametrize("things", [2, 3])
def test_captions_of_several_things(captioner: Callable[..., list[str]], things: int) -> None:
    shown = exhibits("pairs" if things == 2 else "triples", 48, things, strangers=0.0)
    lines = captioner([exhibit.image for exhibit in shown])
    colored = [all(t.color in line for t in e.scene.things) for e, line in zip(shown, lines, strict=True)]
    assert rate(colored) >= 0.95
    assert rate([exhibit.caption == line for exhibit, line in zip(shown, lines, strict=True)]) >= 0.7


def test_captions_call_an_unknown_thing_a_shape(captioner: Callable[..., list[str]]) -> None:
    shown = exhibits("strangers", 60, things=1, strangers=1.0, fresh=True)
    lines = captioner([exhibit.image for exhibit in shown])
    honest = [f"{e.scene.things[0].color} shape" in line for e, line in zip(shown, lines, strict=True)]
    assert rate(honest) >= 0.75  # a house is a kind of square, an arrow a kind of triangle
    assert rate([e.scene.things[0].color in line for e, line in zip(shown, lines, strict=True)]) >= 0.95


def test_captions_of_the_example_hearts(captioner: Callable[..., list[str]]) -> None:
    pictures = list(pictures_of(EXAMPLES / "hearts.zip").values())
    inks = [read(picture, (*SHAPES, HEART)).things[0].color for picture in pictures]
    lines = captioner(pictures)
    assert rate([f"{ink} shape" in line for ink, line in zip(inks, lines, strict=True)]) >= 0.9


@pytest.mark.parametrize("words", ["a photo of", "a photo of tok,"])
def test_captions_go_on_from_given_words(captioner: Callable[..., list[str]], words: str) -> None:
    shown = exhibits("prefix", 12, things=1, strangers=0.0)
    lines = captioner([exhibit.image for exhibit in shown], text=words)
    assert all(line.startswith(words) for line in lines)
    right = [exhibit.scene.things[0].color in line for exhibit, line in zip(shown, lines, strict=True)]
    assert rate(right) >= 0.75


def test_masks_of_one_thing(segmenter: Callable[[Image.Image, str], Any]) -> None:
    fits = []
    for exhibit in exhibits("masks", 40, things=1, strangers=0.0):
        thing = exhibit.scene.things[0]
        fits += [overlap(segmenter(exhibit.image, f"a {thing.color} {thing.shape}"), exhibit.covers[0])]
        fits += [overlap(segmenter(exhibit.image, f"a {thing.shape}"), exhibit.covers[0])]
    assert np.mean(fits) >= 0.6
    assert rate([fit >= 0.6 for fit in fits]) >= 0.9


def test_masks_where_the_prompt_names_one_of_two(segmenter: Callable[[Image.Image, str], Any]) -> None:
    fits = []
    for exhibit in exhibits("two masks", 40, things=2, strangers=0.0):
        for thing in exhibit.scene.things:
            words = f"{thing.color} {thing.shape}"
            fits.append(overlap(segmenter(exhibit.image, f"a {words}"), meant(exhibit, words)))
    assert np.mean(fits) >= 0.6


@pytest.mark.parametrize("things", [1, 2])
def test_masks_of_shapes_never_seen(segmenter: Callable[[Image.Image, str], Any], things: int) -> None:
    shown = exhibits("strange masks", 30, things=things, strangers=1.0, fresh=True)
    fits = [overlap(segmenter(e.image, "a shape"), np.logical_or.reduce(e.covers)) for e in shown]
    assert np.mean(fits) >= 0.6


def test_masks_of_the_example_hearts(segmenter: Callable[[Image.Image, str], Any]) -> None:
    for words in ("a heart", "a shape"):
        fits = []
        for picture in pictures_of(EXAMPLES / "hearts.zip").values():
            pixels = np.asarray(picture, np.int16)
            fits.append(overlap(segmenter(picture, words), np.abs(pixels - pixels[0, 0]).max(-1) > 50))
        assert np.mean(fits) >= 0.6, words


@pytest.mark.parametrize(("absent", "least"), [("colour", 0.9), ("word", 0.95), ("shape", 0.5)])
def test_masks_of_what_is_not_there_are_empty(
    segmenter: Callable[[Image.Image, str], Any], absent: str, least: float
) -> None:
    rng = random.Random(f"absent {absent}")
    empty = []
    for exhibit in exhibits("absent", 40, things=1, strangers=0.0):
        thing = exhibit.scene.things[0]
        color = rng.choice([name for name in COLORS if name not in (thing.color, exhibit.scene.background)])
        shape = rng.choice([name for name in PLAIN_SHAPES if name != thing.shape])
        asked = {"colour": f"a {color} {thing.shape}", "word": "a cat", "shape": f"a {thing.color} {shape}"}
        mask = segmenter(exhibit.image, asked[absent])
        empty.append(not mask.any() or overlap(mask, exhibit.covers[0]) < 0.3)
    assert rate(empty) >= least


def test_upscaling_beats_bicubic(upscaler: Callable[[Image.Image], Image.Image]) -> None:
    rng = random.Random("fresh upscaling")
    gains = []
    for _ in range(24):
        large = render(sample_scene(rng, rng.choice(("plain", "two", "count", "placed"))), rng)
        small = large.resize((32, 32), Image.Resampling.BOX)
        bicubic = small.resize(large.size, Image.Resampling.BICUBIC)
        gains.append(decibels(upscaler(small), large) - decibels(bicubic, large))
    assert np.mean(gains) >= 2


def test_upscaling_of_any_size(upscaler: Callable[[Image.Image], Image.Image]) -> None:
    small = render(sample_scene(random.Random(1), "plain"), random.Random(1), 45, 31)
    assert upscaler(small).size == (FACTOR * 45, FACTOR * 31)


def detect(image: Image.Image, cascade: str) -> list[Box]:
    """Left, top, right, bottom of the faces that OpenCV finds."""
    detector = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / f"{cascade}.xml"))
    found = detector.detectMultiScale(np.asarray(image.convert("L")), scaleFactor=1.1, minNeighbors=5)
    return [(x, y, x + width, y + height) for x, y, width, height in found]


def covered(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("cascade", ["haarcascade_frontalface_default", "haarcascade_frontalface_alt2"])
def test_a_face_detector_finds_drawn_faces(cascade: str) -> None:
    rng = random.Random("fresh faces")
    hits = []
    for width, height in ((96, 96), (128, 128), (160, 96), (256, 192), (256, 256), (512, 512)):
        for count in (1, 1, 1, 2) if width >= 160 else (1, 1, 1):
            portrait = draw_portrait(rng, width, height, count)
            found = detect(portrait.image, cascade)
            hits += [
                len(found) == count and max(covered(box, other) for other in found) > 0.5 for box in portrait.boxes
            ]
    assert rate(hits) >= 0.9


@pytest.mark.parametrize("cascade", ["haarcascade_frontalface_default", "haarcascade_frontalface_alt2"])
def test_a_face_detector_finds_no_face_in_scenes(cascade: str) -> None:
    assert not any(detect(exhibit.image, cascade) for exhibit in exhibits("no faces", 60, things=1))


def test_a_drawn_face_is_the_same_for_the_same_seed() -> None:
    one, two = (draw_portrait(random.Random(3), 128, 96) for _ in range(2))
    assert (one.image.tobytes(), one.boxes) == (two.image.tobytes(), two.boxes)


def test_faces_have_captions_and_masks(
    captioner: Callable[..., list[str]], segmenter: Callable[[Image.Image, str], Any]
) -> None:
    portraits = [draw_portrait(random.Random(f"named {number}")) for number in range(16)]
    lines = captioner([portrait.image for portrait in portraits])
    assert rate(["face" in line for line in lines]) >= 0.9
    for portrait in portraits:
        left, top, right, bottom = (round(side) for side in portrait.boxes[0])
        mask = segmenter(portrait.image, "a face")
        assert mask[top:bottom, left:right].mean() > 0.6
        assert mask.mean() < 0.8


def pictures_of(archive: Path) -> dict[str, Image.Image]:
    """The pictures of a training set, upright."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if name.endswith((".png", ".jpg"))]
        return {name: ImageOps.exif_transpose(Image.open(io.BytesIO(files.read(name)))) for name in names}


@pytest.mark.parametrize("name", sorted(examples.SETS))
def test_examples_are_what_their_code_draws(name: str, tmp_path: Path) -> None:
    drawn = tmp_path / f"{name}.zip"
    examples.write(drawn, examples.SETS[name]())
    examples.write(tmp_path / "again.zip", examples.SETS[name]())
    assert drawn.read_bytes() == (tmp_path / "again.zip").read_bytes()
    assert (EXAMPLES / f"{name}.zip").stat().st_size < 300_000
    ours, shipped = pictures_of(drawn), pictures_of(EXAMPLES / f"{name}.zip")
    assert ours.keys() == shipped.keys()
    for picture, image in ours.items():  # another libjpeg may round differently
        assert decibels(image, shipped[picture]) > (40 if picture.endswith(".jpg") else 100)


def test_the_new_shape_is_in_its_examples_only() -> None:
    pictures = pictures_of(EXAMPLES / "hearts.zip")
    readings = [read(picture, (*SHAPES, HEART)) for picture in pictures.values()]
    assert all([seen.shape for seen in reading.things] == [HEART] for reading in readings)
    assert len({reading.things[0].color for reading in readings}) == 8
    rng = random.Random("no hearts")
    ordinary = [read(render(sample_scene(rng), rng), (*SHAPES, HEART)) for _ in range(60)]
    assert not any(seen.shape == HEART for reading in ordinary for seen in reading.things)


def test_the_examples_come_as_people_send_them() -> None:
    with zipfile.ZipFile(EXAMPLES / "hearts.zip") as files:
        names = files.namelist()
        sideways = Image.open(io.BytesIO(files.read("heart-18.jpg")))
        captions = [files.read(name).decode() for name in names if name.endswith(".txt")]
    sizes = [picture.size for picture in pictures_of(EXAMPLES / "hearts.zip").values()]
    assert sideways.size == (192, 256)
    assert ImageOps.exif_transpose(sideways).size == (256, 192)
    assert {"heart-01.png", "more/heart-01.png"} <= set(names)
    assert sum(max(size) < 128 for size in sizes) == 2
    assert len(sizes) == 20
    assert len(captions) == 3
    assert all(examples.TRIGGER in text for text in captions)


def test_the_new_style_is_in_its_examples_only() -> None:
    pictures = pictures_of(EXAMPLES / "outlined.zip")
    assert min(outlined(picture) for picture in pictures.values()) > 0.9
    rng = random.Random("no lines")
    scenes = [sample_scene(rng) for _ in range(60)]
    assert max(outlined(render(scene, rng)) for scene in scenes) < 0.1
    with zipfile.ZipFile(EXAMPLES / "outlined.zip") as files:
        rows = list(csv.DictReader(io.StringIO(files.read("captions.csv").decode())))
    assert {row["image_file"] for row in rows} == set(pictures)
    assert all(row["caption"].endswith(f"in the style of {examples.TRIGGER}") for row in rows)


def test_strangers_are_named_honestly() -> None:
    rng = random.Random("naming")
    scene = estranged(Scene("white", sample_scene(rng, "two").things), rng, 1.0)
    assert not {thing.shape for thing in scene.things} & set(SHAPES)
    assert caption(named(scene)).count("shape") in (1, 2)

"""Does a picture show what its prompt asks for? Fresh prompts, their pictures, each attribute's verdict."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from miniature.models import Pipeline
from miniature.oracle import Reading, Seen, read
from miniature.world import PLACES, SIZES, Scene, caption, held_out, layout, sample_scene

STEPS = 20
HANDOVER = 0.8
SECOND_PASS = 0.3
CHUNK = 16
KINDS = ("plain", "held-out", "sized", "placed", "count", "two", "sign")

Draw = Callable[[list[str], list[int]], list[Image.Image]]


def fresh_scenes(kind: str, count: int, seed: int) -> list[Scene]:
    """Scenes of a kind; "held-out" ones are plain scenes that training never shows, the others are none of those.

    No two are alike while the kind has enough of them: there are fewer than thirty held-out ones.
    """
    rng = random.Random(f"{kind} {seed}")
    chosen: list[Scene] = []
    tries = 0
    while len(chosen) < count:
        scene = sample_scene(rng, "plain" if kind == "held-out" else kind)
        tries += 1
        if held_out(scene) == (kind == "held-out") and (scene not in chosen or tries > 50 * count):
            chosen.append(scene)
    return chosen


def verdict(scene: Scene, reading: Reading) -> dict[str, bool]:
    """Which attributes of the scene the picture has. Things are compared in order, left to right."""
    same = len(reading.things) == len(scene.things)
    expected = sorted(zip(layout(scene)[0], scene.things, strict=False), key=lambda pair: pair[0])
    pairs = list(zip([thing for _, thing in expected], reading.things, strict=False)) if same else []
    result = {
        "background": reading.background == scene.background,
        "count": same,
        "color": same and all(thing.color == seen.color for thing, seen in pairs),
        "shape": same and all(thing.shape == seen.shape for thing, seen in pairs),
    }
    if len(scene.things) == 1:
        result["size"] = same and size_of(reading.things[0], placed=bool(scene.place)) == scene.size
        result["place"] = same and place_of(reading.things[0]) == scene.place
    return {**result, "all": all(result.values())}


def size_of(seen: Seen, *, placed: bool) -> str:
    """The size whose radius is nearest in ratio; a placed thing without a size word is a little smaller."""
    radii = {**SIZES, "": 0.2 if placed else SIZES[""]}
    return min(radii, key=lambda name: abs(math.log(max(seen.radius, 0.01) / radii[name])))


def place_of(seen: Seen) -> str:
    """The nearest of PLACES."""
    return min(PLACES, key=lambda name: math.dist(PLACES[name], (seen.x, seen.y)))


@dataclass(frozen=True)
class Case:
    """One prompt and what came of it."""

    scene: Scene
    prompt: str
    image: Image.Image
    reading: Reading
    verdict: dict[str, bool]


def judge(scenes: list[Scene], draw: Draw, seed: int) -> list[Case]:
    """Draws every scene's canonical caption, one seed each, and reads the pictures."""
    prompts = [caption(scene) for scene in scenes]
    images = [
        image
        for begin in range(0, len(prompts), CHUNK)
        for image in draw(prompts[begin : begin + CHUNK], [seed + begin + i for i in range(CHUNK)])
    ]
    readings = [read(image) for image in images]
    verdicts = [verdict(scene, reading) for scene, reading in zip(scenes, readings, strict=True)]
    return [Case(*row) for row in zip(scenes, prompts, images, readings, verdicts, strict=True)]


def rates(cases: list[Case]) -> dict[str, float]:
    """Share of the cases that have each attribute, mean overlap with true outlines, mean noise of the background."""
    shares = {name: sum(case.verdict[name] for case in cases) / len(cases) for name in cases[0].verdict}
    fits = [seen.fit for case in cases for seen in case.reading.things]
    noise = sum(case.reading.noise for case in cases) / len(cases)
    return {**shares, "fit": sum(fits) / max(1, len(fits)), "noise": noise}


def _generators(seeds: list[int], count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds[:count]]


def draw_base(base: Pipeline, guidance: float) -> Draw:
    """Pictures of the base alone."""

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        generators = _generators(seeds, len(prompts))
        images: list[Image.Image] = base(
            prompts,
            negative_prompt=[""] * len(prompts),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=generators,
        ).images
        return images

    return draw


def draw_ensemble(base: Pipeline, refiner: Pipeline, guidance: float) -> Draw:
    """The base stops at 0.8 and hands its noisy latents to the refiner."""

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        shared = {
            "negative_prompt": [""] * len(prompts),
            "num_inference_steps": STEPS,
            "guidance_scale": guidance,
        }
        generators = _generators(seeds, len(prompts))
        latents = base(prompts, denoising_end=HANDOVER, output_type="latent", generator=generators, **shared).images
        images: list[Image.Image] = refiner(
            prompts, image=latents, denoising_start=HANDOVER, generator=generators, **shared
        ).images
        return images

    return draw


def draw_second_pass(base: Pipeline, refiner: Pipeline, guidance: float) -> Draw:
    """The base's finished picture goes through the refiner as image-to-image of strength 0.3."""
    first = draw_base(base, guidance)

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        images: list[Image.Image] = refiner(
            prompts,
            image=first(prompts, seeds),
            strength=SECOND_PASS,
            negative_prompt=[""] * len(prompts),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=_generators(seeds, len(prompts)),
        ).images
        return images

    return draw


def misses(cases: list[Case]) -> Iterator[str]:
    """One line for each picture that is not what was asked."""
    for case in cases:
        if not case.verdict["all"]:
            seen = ", ".join(f"{s.color or '?'} {s.shape or '?'} {s.fit:.2f}" for s in case.reading.things)
            yield f"{case.prompt} -> {seen or 'nothing'} on {case.reading.background or '?'}"

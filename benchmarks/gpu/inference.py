"""Pictures: from the inputs to the files, each engine, alone and in company, in other sizes and by other ways."""

from collections.abc import Mapping
from functools import partial
from statistics import median

from benchmarks.gpu.bench import Bench, Compared
from benchmarks.gpu.correctness import keep_latents
from benchmarks.gpu.plan import Cell, Found, Line
from benchmarks.gpu.scale import Scale, Size
from benchmarks.measure import spread, timed

PICTURE, FOUR = "to its file", "to their files"
STAGE_LINES = {
    "encode_text": "text encoders",
    "denoise": "denoising",
    "decode": "VAE",
    "rest": "watermark, safety checker, file",
}
PER_STEP, RATE, SHARE = (
    "denoising, per step",
    "... as arithmetic of the UNet",
    "... of the measured product of matrices",
)
OUTSIDE, SETUP = "everything but the denoising", "setup in a process that has loaded all libraries"
LORA_PER_STEP = "denoising, per step, over that without a LoRA (B)"
EACH = "of which one, over one that is asked for alone (B)"
REFINED, DDIM = "expert_ensemble_refiner, the base to 0.8", "DDIM"
FIRST, LATER = "the first picture less a later one", "a later picture"
HANDOVER = 0.8


def picture_cell(engine: str) -> Cell:
    """A picture without a LoRA."""
    lines = [
        Line(PICTURE, "s", ratio=1.7, most=1.5),
        *(Line(name, "ms") for name in STAGE_LINES.values()),
        Line(OUTSIDE, "ms", most=80),
        Line(PER_STEP, "ms"),
        Line(RATE, "TFLOP/s"),
        Line(SHARE, "%", least=65),
        Line(SETUP, "s", most=9 if engine == "graph" else None),
    ]
    seconds = {"graph": 80, "compile": 120, "eager": 45}[engine]
    return Cell(f"a picture, engine {engine}", seconds, lines, partial(picture, engine))


def picture(engine: str, bench: Bench) -> Mapping[str, Found]:
    """With all that its time goes to. Its latents are kept for the comparison with float32."""
    both = bench.compare(engine, bench.scale.rounds, warmups=bench.scale.warmups)
    found = {PICTURE: _walls(both)} | _stages(both) | _rates(both, bench)
    bench.kept[f"{engine} per step"] = both.stage("b", "denoise")
    bench.kept[f"{engine} picture"] = median(both.b)
    keep_latents(bench, engine)
    return found | {SETUP: Found(None, bench.package(engine).setup_seconds)}


def _walls(both: Compared) -> Found:
    return Found(median(both.a), median(both.b), spread=spread(both.a))


def _stages(both: Compared) -> dict[str, Found]:
    found = {
        words: Found(both.stage("a", name) * 1000, both.stage("b", name) * 1000) for name, words in STAGE_LINES.items()
    }
    outside = [sum(both.stage(side, name) for name in STAGE_LINES if name != "denoise") * 1000 for side in ("a", "b")]
    return found | {OUTSIDE: Found(*outside)}


def _rates(both: Compared, bench: Bench) -> dict[str, Found]:
    a, b = (both.stage(side, "denoise") / bench.scale.steps for side in ("a", "b"))
    found = {PER_STEP: Found(a * 1000, b * 1000)}
    if bench.scale.teraflop is not None:
        rates = bench.scale.teraflop / a, bench.scale.teraflop / b
        found[RATE] = Found(*rates)
        if ceiling := bench.kept.get("ceiling"):
            found[SHARE] = Found(*(100 * rate / ceiling for rate in rates))
    return found


def lora_cell(engine: str) -> Cell:
    """A picture with a LoRA."""
    lines = [Line(PICTURE, "s", ratio=2.3), Line(PER_STEP, "ms"), Line(LORA_PER_STEP, "", most=1.01)]
    return Cell(f"a picture with a LoRA, engine {engine}", 22, lines, partial(with_lora, engine))


def with_lora(engine: str, bench: Bench) -> Mapping[str, Found]:
    """A does not fuse it, as its guide has it."""
    both = bench.compare(engine, bench.scale.few_rounds + 1, lora=bench.loras[0])
    found = {PICTURE: _walls(both), PER_STEP: _rates(both, bench)[PER_STEP]}
    if without := bench.kept.get(f"{engine} per step"):
        found[LORA_PER_STEP] = Found(None, both.stage("b", "denoise") / without)
    return found


def four_cell(engine: str, *, tuned: bool = False) -> Cell:
    """Four pictures of one request."""
    lines = [Line(FOUR, "s", ratio=1.4), *([] if tuned else [Line(EACH, "", most=0.85)])]
    name = f"4 pictures{' with a LoRA' if tuned else ''}, engine {engine}"
    return Cell(name, 38, lines, partial(four, engine, tuned))


def four(engine: str, tuned: bool, bench: Bench) -> Mapping[str, Found]:
    """A computes them at once, B as SDXL_BATCH has it."""
    both = bench.compare(engine, bench.scale.few_rounds, lora=bench.loras[0] if tuned else None, outputs=4)
    found = {FOUR: _walls(both)}
    if alone := bench.kept.get(f"{engine} picture"):
        found[EACH] = Found(None, median(both.b) / 4 / alone)
    return found


def sizes_cell(engine: str, scale: Scale) -> Cell:
    """Sizes that come after another."""
    lines = []
    for size in scale.sizes:
        lines += [Line(_sized(size, FIRST), "s", most=1), Line(_sized(size, LATER), "s", ratio=1.4)]
    return Cell(f"other sizes, engine {engine}", 28, lines, partial(sizes, engine))


def _sized(size: Size, what: str) -> str:
    return f"{size[0]}x{size[1]}, {what}"


def sizes(engine: str, bench: Bench) -> Mapping[str, Found]:
    """What the first picture of a size waits for."""
    found, b = {}, bench.package(engine)
    for size in bench.scale.sizes:
        first = [timed(lambda make=make, size=size: make(**bench.asked(size=size)))[1] for make in (bench.reference, b)]  # type: ignore[misc]
        both = bench.compare(engine, bench.scale.few_rounds, size=size)
        found[_sized(size, FIRST)] = Found(first[0] - median(both.a), first[1] - median(both.b))
        found[_sized(size, LATER)] = _walls(both)
    return found


def ways_cell(engine: str) -> Cell:
    """The refiner as the last expert, and another sampler."""
    lines = [Line(f"{REFINED}, {PICTURE}", "s", ratio=1.4), Line(f"{DDIM}, {PICTURE}", "s", ratio=1.4)]
    return Cell(f"other ways to a picture, engine {engine}", 28, lines, partial(ways, engine))


def ways(engine: str, bench: Bench) -> Mapping[str, Found]:
    """Both."""
    rounds, steps = bench.scale.few_rounds, bench.scale.refined_steps
    refined = bench.compare(engine, rounds, steps=steps, high_noise_frac=HANDOVER)
    ddim = bench.compare(engine, rounds, scheduler="DDIM")
    return {f"{REFINED}, {PICTURE}": _walls(refined), f"{DDIM}, {PICTURE}": _walls(ddim)}

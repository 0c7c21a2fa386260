"""How much is measured: SDXL's own size on a GPU, or the smallest that goes the same way on a CPU."""

from dataclasses import dataclass

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Scale:
    """Sizes and counts of a run."""

    name: str
    divisor: int  # of SDXL's width
    side: int  # pixels of most pictures
    sizes: tuple[Size, ...]  # others, each asked for after those before it
    steps: int
    refined_steps: int  # with the refiner as the last expert
    few: int  # steps where only the course of a request counts
    profiled_steps: int
    rounds: int  # timed calls of each side
    few_rounds: int  # of what takes long, or was measured in another way before
    warmups: int  # calls of each side before those of the first pictures, one more than these
    seeds: int  # of pictures that are compared with float32
    short_steps: int  # of the first ones of these
    rank: int  # of LoRAs
    product: int  # rows and columns of the matrices whose product is the ceiling
    copied: int  # bytes
    attentions: tuple[tuple[int, int, int, int], ...]  # batch, heads, places, channels
    training_side: int
    training_steps: int  # at a time
    training_rounds: int
    skipped: tuple[str, ...]  # words in the names of cells that take long or go no other way here
    teraflop: float | None = None  # of a base UNet's call on two of `side`
    training_teraflop: float | None = None  # of a step on a batch of 4, after the pivot


FULL = Scale(
    name="full",
    divisor=1,
    side=1024,
    sizes=((768, 768), (896, 1152)),
    steps=50,
    refined_steps=40,
    few=4,
    profiled_steps=20,
    rounds=5,
    few_rounds=2,
    warmups=1,
    seeds=3,
    short_steps=10,
    rank=32,
    product=8192,
    copied=2**32,
    attentions=((2, 10, 4096, 64), (2, 20, 1024, 64)),
    training_side=768,
    training_steps=5,
    training_rounds=10,
    skipped=(),
    teraflop=13.522,
    training_teraflop=30.08,
)
TINY = Scale(
    name="tiny",
    divisor=32,
    side=64,
    sizes=((64, 128),),
    steps=2,
    refined_steps=3,
    few=1,
    profiled_steps=1,
    rounds=1,
    few_rounds=1,
    warmups=0,
    seeds=1,
    short_steps=1,
    rank=4,
    product=128,
    copied=2**20,
    attentions=((2, 2, 256, 8), (2, 4, 64, 8)),
    training_side=64,
    training_steps=1,
    training_rounds=1,
    skipped=("engine compile", "engine eager", "4 pictures with", "third", "int8", "fp8"),
)
SCALES = {scale.name: scale for scale in (FULL, TINY)}
ENGINES = ("graph", "compile", "eager")  # of SDXL_ENGINE, that have lines

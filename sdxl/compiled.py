"""The transformer blocks compiled, behind the requests: 70 blocks of SDXL's UNet are two graphs, one per width.

What a compilation makes is kept as one file per card and versions. Where there is none, another process makes it, so
that no request waits for its work; then it is loaded here, tried on made-up numbers, and handed out. Whatever goes
wrong costs one line in the log, and the blocks stay as they are.

`python -m sdxl.compiled FILE DEVICE DTYPE WIDTH:HEADS:QUANTIZATION ...` is that process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdxl.eight_bit import Copies
from sdxl.layout import joined
from sdxl.linear import Layer
from sdxl.unet import Attention, Block, BlockFunction, Norm, UNet, attend, block

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("unet.py", "linear.py", "layout.py", "eight_bit.py", "compiled.py")
SHIPPED = ROOT / "compiled"  # files that came with the package; they are looked for first
MOST_GRAPHS = 32  # two UNets of up to three widths each, in three kinds of arithmetic
ROWS, TOKENS = 256, 77  # of the numbers that it is tried on
CLOSE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # relative error of a block at most
CLOSE_IN_8_BITS = 5e-2  # the last bit of an input decides on which side it is rounded


class Kind(NamedTuple):
    """What blocks of one graph have in common."""

    width: int
    heads: int
    quantization: str = "none"


def kinds(unet: UNet, quantization: str = "none") -> list[Kind]:
    """The kinds of block in a UNet, where those compute in 8 bits if `quantization` says so."""
    return sorted({Kind(len(w.norm1.weight), w.attn1.heads, quantization) for w in unet.blocks})


@torch.library.custom_op("sdxl::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, text: Tensor, heads: int) -> Tensor:
    """`attend`, opaque to the compiler: only here the number of pictures matters."""
    return attend(q, k, v, text, heads)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, text: Tensor, heads: int) -> Tensor:
    del k, v, text, heads
    return q.new_empty(q.shape)


def _opaque(x: Tensor, key: Tensor, value: Tensor, w: Block) -> Tensor:
    return block(x, key, value, w, _attend)


def compile_block() -> BlockFunction:
    """`block`, compiled for each width when it is first called, once for all sizes, numbers of pictures and lengths of
    text: two sizes that happen to be equal, or a size of 1, are no reason to compile again."""
    import torch._dynamo.config as versions
    import torch.fx.experimental._config as sizes

    sizes.use_duck_shape, sizes.backed_size_oblivious = False, True
    versions.recompile_limit = MOST_GRAPHS
    function: BlockFunction = torch.compile(_opaque, dynamic=True, fullgraph=True)
    return function


def example(kind: Kind, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Block]:
    """Made-up arguments of `block`, of the same types as real ones."""
    width, heads, quantization = kind
    generator = torch.Generator(device).manual_seed(width)

    def made(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=device) / shape[-1] ** 0.5
        return nn.Parameter(numbers.to(dtype), requires_grad=False)

    def layer(out: int, into: int, *, bias: bool) -> Layer:
        return Layer(made(out, into), made(out) if bias else None)

    def norm() -> Norm:
        return Norm(made(width), made(width), 1e-5)

    def attention() -> Attention:
        q, k, v = (layer(width, width, bias=False) for _ in range(3))
        return Attention(q, k, v, layer(width, width, bias=True), heads)

    feed = layer(8 * width, width, bias=True), layer(width, 4 * width, bias=True)
    w = joined(Block(norm(), attention(), norm(), attention(), norm(), *feed))
    if quantization != "none":
        (w,) = Copies(quantization).of([w])
    with torch.inference_mode():
        x, key, value = (made(*shape).data for shape in ((2 * ROWS, width), (2, TOKENS, width), (2, TOKENS, width)))
    return x, key, value, w


def check(function: BlockFunction, wanted: Iterable[Kind], device: torch.device, dtype: torch.dtype) -> None:
    """Compile it for these blocks. RuntimeError if it does not compute what `block` does."""
    for kind in wanted:
        arguments = example(kind, device, dtype)
        with torch.inference_mode():
            expected, found = block(*arguments).float(), function(*arguments).float()
        error = float((found - expected).norm() / expected.norm())
        if not error <= (CLOSE[dtype] if kind.quantization == "none" else CLOSE_IN_8_BITS):
            raise RuntimeError(f"a compiled block of width {kind.width} is off by {error:.3g}")


def file_name(wanted: Sequence[Kind], device: torch.device, dtype: torch.dtype) -> str:
    """The same for the same card, versions, source and kinds of block."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    told = [card, str(dtype), str(torch.__version__), str(torch.version.cuda), platform.python_version(), str(wanted)]
    told += [(Path(__file__).parent / name).read_text() for name in SOURCES]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:24] + ".bin"


def compiled(wanted: Sequence[Kind], device: torch.device, dtype: torch.dtype, folder: Path) -> BlockFunction | None:
    """The compiled block; None, and a line in the log, where that does not work. `folder` keeps what was made."""
    try:
        name = file_name(wanted, device, dtype)
        kept = [place / name for place in (SHIPPED, folder) if (place / name).is_file()]
        if not any(torch.compiler.load_cache_artifacts(path.read_bytes()) for path in kept):
            torch.compiler.load_cache_artifacts(_make(folder / name, wanted, device, dtype).read_bytes())
        function = compile_block()
        check(function, wanted, device, dtype)
        return OrPlain(function)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and a prediction can do without
        _warn(error)
        return None


@dataclass
class OrPlain:
    """A compiled block; for good the plain one once it meets what it was not compiled for, and cannot be."""

    function: BlockFunction
    failed: bool = False

    def __call__(self, x: Tensor, key: Tensor, value: Tensor, w: Block) -> Tensor:
        if not self.failed:
            try:
                return self.function(x, key, value, w)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                self.failed = True
                _warn(error)
        return block(x, key, value, w)


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    logging.getLogger(__name__).warning("The UNet is not compiled: %s: %s", type(error).__name__, reason)


def _make(path: Path, wanted: Sequence[Kind], device: torch.device, dtype: torch.dtype) -> Path:
    """Have it compiled by another process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdxl.compiled", str(path), str(device), str(dtype).removeprefix("torch.")]
    command += [":".join(map(str, each)) for each in wanted]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or ["no reason given"])[-1])
    return path


def main(words: Sequence[str]) -> None:
    """Compile at low priority, and keep what came of it."""
    os.nice(10)
    path, device, dtype = Path(words[0]), torch.device(words[1]), getattr(torch, words[2])
    wanted = []
    for word in words[3:]:
        width, heads, quantization = word.split(":")
        wanted.append(Kind(int(width), int(heads), quantization))
    check(compile_block(), wanted, device, dtype)
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        raise RuntimeError("nothing was compiled that could be kept")
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(saved[0])
    fresh.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])

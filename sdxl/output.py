"""Pictures to files: out-0.png, out-1.png, ... with the generation parameters inside, all of them or none.

PNG is written with zlib's run-length strategy: the same pixels and, for photographs, the same size in about
half the time of Pillow's default. JPEG from quality 90 on keeps the full colour resolution; WebP at quality
100 is lossless.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin

from sdxl.safety import Safety, require_safe
from sdxl.watermark import apply_watermark
from sdxl.workers import Job, Workers

Parameters = Mapping[str, object]

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
Z_RLE = 3
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
EXIF_LIMIT = 65_533  # one JPEG segment
OURS = b"sdxl\0"

# Ours -> what AUTOMATIC1111's web UI and the sites that read its files call it.
A1111_NAMES = {
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "prompt_strength": "Denoising strength",
}
A1111_SAMPLERS = {
    "DDIM": "DDIM",
    "DPMSolverMultistep": "DPM++ 2M",
    "HeunDiscrete": "Heun",
    "KarrasDPM": "DPM++ 2M Karras",
    "K_EULER_ANCESTRAL": "Euler a",
    "K_EULER": "Euler",
    "PNDM": "PLMS",
}


class OutputFolders:
    """A fresh folder for each prediction, all under `root`. Cog deletes no outputs, so the one before the last goes;
    the last one stays, for its upload may still be running. A worker removes it: a cancel in the middle of that would
    come out as another error, and might close a file twice.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.root = Path(tempfile.mkdtemp(prefix="sdxl-outputs-"))
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self._kept: list[Path] = []

    def fresh(self) -> Path:
        """A new empty folder."""
        for old in self._kept[:-1]:
            self._workers.submit(partial(shutil.rmtree, old, ignore_errors=True))
        self._kept = [*self._kept[-1:], Path(tempfile.mkdtemp(dir=self.root))]
        return self._kept[-1]


def finish_images(
    pictures: Iterable[tuple[Image.Image, Parameters]],
    folder: Path,
    writers: Workers,
    *,
    safety: Safety | None,
    watermark: bool,
    output_format: str,
    quality: int,
    embed_parameters: bool,
    watermark_only: Image.Image | None = None,
) -> list[Path]:
    """Check, mark and write every picture, each on a thread as soon as it comes, i while i + 1 is computed.

    Each comes with its generation parameters; without `embed_parameters` they stay out of the file. What `safety`
    withholds is neither written nor counted; if that is all, UnsafeContentError. Where the mask `watermark_only` is
    black nothing is marked; inpainting gives `Canvas.blend`. Whatever goes wrong, here or where the pictures come from,
    no file stays.
    """

    def finish(image: Image.Image, path: Path, parameters: Parameters | None) -> bool:
        if safety is not None and safety.unsafe([image]) != [False]:
            return False
        image = apply_watermark(image, watermark_only) if watermark else image.convert("RGB")
        _write(image, path, quality, parameters)
        return True

    paths: list[Path] = []
    jobs: list[Job[bool]] = []
    try:
        for number, (image, parameters) in enumerate(pictures):
            paths.append(folder / f"out-{number}.{output_format}")
            work = partial(finish, image, paths[-1], parameters if embed_parameters else None)
            jobs.append(writers.submit(work))
        safe = [path for path, job in zip(paths, jobs, strict=True) if job.result()]
        require_safe(len(safe), of=len(paths))
        return [path.rename(folder / f"out-{number}.{output_format}") for number, path in enumerate(safe)]
    except BaseException:
        for job in jobs:
            job.wait()
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def read_parameters(path: Path) -> dict[str, object]:
    """The parameters that a file of ours carries; an empty dict if it carries none."""
    with Image.open(path) as image:
        text = image.info.get("sdxl")
        note = image.getexif().get_ifd(EXIF_IFD).get(MAKER_NOTE)
    if text is None and isinstance(note, bytes) and note.startswith(OURS):
        text = note.removeprefix(OURS).decode("ascii")
    values: dict[str, object] = json.loads(text) if text else {}
    return values


def a1111_text(parameters: Parameters, size: tuple[int, int]) -> str:
    """Prompt, negative prompt, and a last line of "Name: value" pairs, as AUTOMATIC1111 has it."""
    values = {"size": f"{size[0]}x{size[1]}", **parameters}
    values["scheduler"] = A1111_SAMPLERS.get(str(values.get("scheduler")), values.get("scheduler"))
    lines = [str(values.pop("prompt", ""))]
    if negative := values.pop("negative_prompt", None):
        lines.append(f"Negative prompt: {negative}")
    order = [*A1111_NAMES, *(name for name in values if name not in {*A1111_NAMES, "width", "height"})]
    pairs = ((A1111_NAMES.get(name, name), values.get(name)) for name in order)
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs if value is not None))
    return "\n".join(lines).encode("utf-8", "replace").decode()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _write(image: Image.Image, path: Path, quality: int, parameters: Parameters | None) -> None:
    text = "" if parameters is None else a1111_text(parameters, image.size)
    values = "" if parameters is None else json.dumps(dict(parameters), default=str)
    if path.suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        if parameters is not None:
            chunks.add_text("parameters", text)
            chunks.add_text("sdxl", values)
        image.save(path, "PNG", compress_type=Z_RLE, pnginfo=chunks)
        return
    exif = _exif(text, values) if parameters is not None else b""
    if path.suffix == ".jpg":
        image.save(path, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, exif=exif)
    elif quality == 100:
        image.save(path, "WEBP", lossless=True, quality=20, method=1, exif=exif)  # here quality is the effort
    else:
        image.save(path, "WEBP", quality=quality, method=2, exif=exif)


def _exif(text: str, values: str) -> bytes:
    """The text as UserComment, where AUTOMATIC1111 puts it, and our JSON as MakerNote, both if they fit."""
    for comment in (text, ""):
        exif = Image.Exif()
        exif.endian = ">"
        tags = exif.get_ifd(EXIF_IFD)
        tags[USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be")
        tags[MAKER_NOTE] = OURS + values.encode("ascii")
        data = exif.tobytes()
        if len(data) <= EXIF_LIMIT:
            return data
    logging.getLogger(__name__).warning(
        "The generation parameters are too long for this file format and were left out; PNG can hold them"
    )
    return b""

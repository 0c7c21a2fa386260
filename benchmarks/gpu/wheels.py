"""What a machine without a network lacks, as wheels: `download FOLDER` at home, `install FOLDER TARGET` there.

Standard library only. What is there in the right version stays; libraries that are large and usually there (torch,
transformers, NumPy, Pillow, OpenCV) are used as they are.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LISTS = ("requirements.txt", "requirements-local.txt", "requirements-dev.txt")
NAMES = (
    "diffusers", "importlib_metadata", "zipp", "pillow_heif", "prodigyopt", "cog", "coglet", "peft", "einops",
    "PyWavelets",
)  # fmt: skip
OTHERS = ("invisible-watermark==0.2.0", "structlog==26.1.0")  # in no list: the first for A, the second for Cog
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PYTHON = "3.12"


def wanted() -> list[str]:
    """name==version of each, in the versions that the project's lists pin."""
    lines = [
        line for name in LISTS for line in (ROOT / name).read_text().splitlines() if "==" in line and line[0] != "#"
    ]
    pinned = {line.split("==")[0].lower(): line for line in lines}
    return [*(pinned[name.lower()] for name in NAMES), *OTHERS]


def missing() -> list[str]:
    """Those that this Python has not, or in another version."""
    return [line for line in wanted() if _installed(line.split("==")[0]) != line.split("==")[1]]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def download(folder: Path) -> None:
    """All of them, whatever is here."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    _pip("download", *options, *platforms, "--dest", str(folder), *wanted())


def install(folder: Path, target: Path) -> None:
    """What is missing, beside this Python's own libraries."""
    if lines := missing():
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--find-links", str(folder)]
        _pip("install", *options, "--target", str(target), *lines)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)


def main(what: str, *folders: str) -> None:
    """`download FOLDER` or `install FOLDER TARGET`."""
    if what == "download":
        download(Path(folders[0]))
    else:
        install(Path(folders[0]), Path(folders[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Make .venv with everything the scripts need; does nothing when nothing changed. Standard library only."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SIDE = "requirements-side.txt"  # into .venv/side; it says why
RUNTIME = ("requirements.txt", "requirements-local.txt")
DEVELOPMENT = (*RUNTIME, "requirements-dev.txt")
# Its dependencies include a second OpenCV and the CUDA build of torch; the tests need neither.
WITHOUT_DEPENDENCIES = "invisible-watermark==0.2.0"


class SetupError(Exception):
    """Setting up failed; the message is for the user."""


def fingerprint(files: tuple[str, ...]) -> str:
    """Changes when a requirement file, this program, or the Python does."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), *(ROOT / name for name in (*files, SIDE))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def done(files: tuple[str, ...]) -> bool:
    """Whether .venv is what these files ask for."""
    return PYTHON.exists() and stamp(files).exists() and stamp(files).read_text() == fingerprint(files)


def stamp(files: tuple[str, ...]) -> Path:
    """The file that says what was installed."""
    return VENV / ("setup-dev" if files == DEVELOPMENT else "setup")


def run(*command: str) -> str:
    """Run command quietly; its output is shown only when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-20:])
        raise SetupError(f"{' '.join(command)}\n{tail}\nscript/setup failed; run it again when that is mended")
    return result.stdout


def pip(*arguments: str) -> str:
    """Run pip in .venv."""
    return run(str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments)


def install(files: tuple[str, ...]) -> None:
    """Install everything that files ask for."""
    if not (VENV / "bin" / "pip").exists():
        run(sys.executable, "-m", "venv", str(VENV))
    pip("install", "--quiet", *(argument for name in files for argument in ("-r", str(ROOT / name))))
    pip("install", "--quiet", "--no-deps", "--upgrade", "--target", str(VENV / "side"), "-r", str(ROOT / SIDE))
    if files == DEVELOPMENT:
        pip("install", "--quiet", "--no-deps", WITHOUT_DEPENDENCIES)
        stamp(DEVELOPMENT).write_text(fingerprint(DEVELOPMENT))
    stamp(RUNTIME).write_text(fingerprint(RUNTIME))


def main() -> int:
    """script/setup [--dev]."""
    files = DEVELOPMENT if "--dev" in sys.argv[1:] else RUNTIME
    if done(files):
        return 0
    VENV.mkdir(exist_ok=True)
    with (VENV / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done(files):  # by whoever held the lock
            return 0
        print("Setting up .venv; the first time takes some minutes ...", file=sys.stderr, flush=True)  # noqa: T201
        try:
            install(files)
        except (SetupError, OSError) as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

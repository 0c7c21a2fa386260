"""Make .venv with everything the scripts need; does nothing when nothing changed. Standard library only."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Its dependencies include a second OpenCV and the CUDA build of torch; the tests need neither.
WITHOUT_DEPENDENCIES = "invisible-watermark==0.2.0"


@dataclass(frozen=True)
class Needs:
    """What somebody needs in .venv: requirement files, what lies beside the environment in a folder of .venv, npm's."""

    files: tuple[str, ...]
    beside: tuple[tuple[str, str], ...] = (("side", "requirements-side.txt"),)  # each file says why
    bare: tuple[str, ...] = ()  # installed without what they need
    npm: tuple[str, ...] = ()  # folders with package.json and package-lock.json, installed into .venv/NAME

    def read(self) -> list[Path]:
        """All files that say what is needed."""
        locks = [f"{folder}/package-lock.json" for folder in self.npm]
        return [ROOT / name for name in (*self.files, *(name for _, name in self.beside), *locks)]


RUNTIME = Needs(("requirements.txt", "requirements-local.txt"))
GATEWAY = Needs((*RUNTIME.files, "gateway/requirements.txt"))
DEVELOPMENT = Needs(
    (*GATEWAY.files, "requirements-dev.txt"),
    (*RUNTIME.beside, ("replicate2", "tests/gateway/requirements-replicate2.txt")),
    (WITHOUT_DEPENDENCIES,),
    ("tests/gateway/js",),
)
# Each is part of the next; the key is the file in .venv that says what was installed.
LEVELS = {"setup": RUNTIME, "setup-gateway": GATEWAY, "setup-dev": DEVELOPMENT}


class SetupError(Exception):
    """Setting up failed; the message is for the user."""


def fingerprint(needs: Needs) -> str:
    """Changes when a requirement file, this program, or the Python does."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), *needs.read()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def done(level: str) -> bool:
    """Whether .venv is what this level asks for."""
    stamp = VENV / level
    return PYTHON.exists() and stamp.exists() and stamp.read_text() == fingerprint(LEVELS[level])


def run(*command: str, folder: Path = ROOT) -> str:
    """Run command quietly; its output is shown only when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-20:])
        raise SetupError(f"{' '.join(command)}\n{tail}\nscript/setup failed; run it again when that is mended")
    return result.stdout


def pip(*arguments: str) -> str:
    """Run pip in .venv."""
    return run(str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments)


def npm(folder: Path) -> None:
    """Install what the lock file in folder names into .venv, so that nothing lies among the sources."""
    target = VENV / folder.name
    target.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(folder / name, target / name)
    try:
        run("npm", "ci", "--silent", "--no-audit", "--no-fund", folder=target)
    except FileNotFoundError as error:
        raise SetupError("npm was not found; the gateway's tests need Node.js 18 or newer") from error


def install(level: str) -> None:
    """Install everything that a level needs, and with it those before it."""
    needs = LEVELS[level]
    if not (VENV / "bin" / "pip").exists():
        run(sys.executable, "-m", "venv", str(VENV))
    pip("install", "--quiet", *(argument for name in needs.files for argument in ("-r", str(ROOT / name))))
    for folder, name in needs.beside:
        pip("install", "--quiet", "--no-deps", "--upgrade", "--target", str(VENV / folder), "-r", str(ROOT / name))
    if needs.bare:
        pip("install", "--quiet", "--no-deps", *needs.bare)
    for name in needs.npm:
        npm(ROOT / name)
    for reached in list(LEVELS)[: list(LEVELS).index(level) + 1]:
        (VENV / reached).write_text(fingerprint(LEVELS[reached]))


def main() -> int:
    """script/setup [--gateway | --dev]."""
    level = next((f"setup-{name[2:]}" for name in sys.argv[1:] if f"setup-{name[2:]}" in LEVELS), "setup")
    if done(level):
        return 0
    VENV.mkdir(exist_ok=True)
    with (VENV / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done(level):  # by whoever held the lock
            return 0
        print("Setting up .venv; the first time takes some minutes ...", file=sys.stderr, flush=True)  # noqa: T201
        try:
            install(level)
        except (SetupError, OSError) as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

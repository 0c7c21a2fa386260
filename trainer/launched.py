"""One process of several: `torchrun -m trainer.launched FOLDER`, by trainer.launch."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from errors import SDXLError
from trainer.job import Job
from trainer.launch import FAILURE
from trainer.run import run


def main() -> None:
    """Train what the folder says; the first process speaks."""
    folder = Path(sys.argv[1])
    stopped = list[int]()

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    def check() -> None:
        if stopped:
            raise SystemExit(128 + stopped[0])

    def say(line: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{line}\n")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        run(Job.read(folder), say, check)
    except SDXLError as error:
        (folder / FAILURE).write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        raise


if __name__ == "__main__":
    main()

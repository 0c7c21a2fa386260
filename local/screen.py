"""The terminal: lines that stay, and below them one line that changes."""

import re
import shutil
import sys
import threading
import time

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BAR = re.compile(
    r"(?:(?P<label>.*?):? *)?(?P<percent>\d{1,3})%\|.*\| *(?P<done>\d+)/(?P<total>\d+) \[(?P<rest>[^\]]*)\]?"
)


class Screen:
    """Writes to stderr; only a terminal sees the changing line, a file gets the lines that stay."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._live = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._status, self._since = "", time.monotonic()
        self._bar, self._complete = "", False
        self._closed = threading.Event()
        if self._live:
            threading.Thread(target=self._spin, daemon=True).start()

    def line(self, text: str) -> None:
        """A line that stays; a tqdm line becomes the bar, and stays when it is complete."""
        if match := BAR.fullmatch(text.strip()):
            self._bar = self._drawn(match)
            if match["done"] != match["total"]:
                self._draw()
                return
            text, self._bar = self._bar, ""
            if self._complete:
                return  # tqdm writes its last line twice
        self._complete = match is not None
        with self._lock:
            clear = "\r\x1b[K" if self._live else ""
            sys.stderr.write(f"{clear}{text}\n")
            sys.stderr.flush()
        self._draw()

    def status(self, text: str) -> None:
        """What is going on now, with a spinner and the seconds since."""
        self._status, self._since, self._bar = text, time.monotonic(), ""
        if not self._live and text:
            self.line(f"{text} ...")
        self._draw()

    def close(self) -> None:
        """Remove the changing line."""
        self._closed.set()
        self._status = self._bar = ""
        self._draw()

    def _drawn(self, match: "re.Match[str]") -> str:
        label = f"{match['label']} " if match["label"] else ""
        before, after = f"{label}{match['percent']:>3}% ", f" {match['done']}/{match['total']} {match['rest']}"
        width = min(40, max(10, shutil.get_terminal_size().columns - len(before + after) - 1))
        full = round(width * int(match["done"]) / max(1, int(match["total"])))
        return before + "█" * full + "░" * (width - full) + after

    def _draw(self) -> None:
        if not self._live:
            return
        seconds = time.monotonic() - self._since
        spinner = SPINNER[int(seconds * 10) % len(SPINNER)]
        text = self._bar or (f"{spinner} {self._status} {seconds:.0f} s" if self._status else "")
        with self._lock:
            sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def _spin(self) -> None:
        while not self._closed.wait(0.1):
            if not self._bar:
                self._draw()

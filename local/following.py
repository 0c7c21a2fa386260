"""The logs of a request to a server that is not ours, on the screen while they come."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import requests

from local.screen import Screen

OFTEN = 1.0  # seconds between two looks
SHARE = 0.05  # of the time that looking may take: what comes back holds the request's inputs


class Logs:
    """Shows the lines of a text that grows, each once."""

    def __init__(self, screen: Screen) -> None:
        """Nothing is shown yet."""
        self._screen, self._shown = screen, 0

    def show(self, text: str, *, whole: bool) -> None:
        """Show what is new; whole: nothing will follow, and the last line needs no end."""
        end = len(text) if whole else max(text.rfind("\n"), text.rfind("\r")) + 1
        if end > self._shown:
            for line in re.split(r"[\r\n]+", text[self._shown : end].strip("\r\n")):
                self._screen.line(line)
            self._shown = end

    @contextmanager
    def following(self, url: str) -> Iterator[None]:
        """While this lasts, look at the request at url now and then."""
        ended = threading.Event()

        def look() -> None:
            pause = OFTEN
            while not ended.wait(pause):
                began = monotonic()
                # coglet answers for an id that it works on before it looks at the inputs; these it would refuse.
                try:
                    answer = requests.put(url, json={"input": []}, timeout=60)
                    text = str(answer.json().get("logs") or "") if answer.status_code == 202 else ""
                except (requests.RequestException, ValueError):
                    text = ""
                if not ended.is_set():
                    self.show(text, whole=False)
                pause = max(OFTEN, (monotonic() - began) / SHARE)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(OFTEN)

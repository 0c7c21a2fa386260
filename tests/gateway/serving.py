"""An application on a real port of loopback, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gateway.protocol import configured


@contextmanager
def served(make: Callable[[str], Any]) -> Iterator[str]:
    """The URL of what is made for it. What the application does when it starts and ends is done."""
    # A socket that is made anew from its number knows that it is TCP's, and asyncio has answers sent at once on those
    # only: otherwise each takes 40 ms.
    bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
    with socket.socket(fileno=bound.detach()) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(configured(make(url), grace=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()

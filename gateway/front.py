"""`python -m gateway.front HANDLE`: the gateway on a socket that its parent listens on.

The parent keeps the socket: while this is started anew, clients wait in its queue and are not refused.
"""

import os
import resource
import socket
import sys

import uvicorn

from gateway import logs
from gateway.app import create_app
from gateway.protocol import configured
from gateway.settings import Settings

FILES = 65_536  # open at once, where the system allows it
GRACE = 5  # seconds for answers under way when it ends: long polls are asked again


def open_more_files() -> None:
    """Each connection is an open file, and of those most systems begin with 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(most, FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def main() -> int:
    """Serve until SIGTERM."""
    open_more_files()
    logs.setup(as_json=os.environ.get("LOG_FORMAT") == "json")
    app = create_app(Settings.read())
    uvicorn.Server(configured(app, GRACE)).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    return 0


if __name__ == "__main__":
    sys.exit(main())

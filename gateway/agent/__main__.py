"""`python -m gateway.agent`: does the gateway's jobs with a Cog package on this machine until SIGTERM.

GATEWAY_URL, GATEWAY_WORKER_TOKEN  where jobs come from, and the token for workers (needed)
GATEWAY_PACKAGE         folder with cog.yaml; default: this package
GATEWAY_MODEL           owner/name under which it is offered
GATEWAY_POOLS           predict,train or one of them; default: what the package has
GATEWAY_WARM            pools that are started at once and stay; default: predict
GATEWAY_IDLE            seconds after which the others are stopped; default: 60
GATEWAY_TOGETHER        yes, no, or the bytes that both pools need in memory; default: yes without a GPU
GATEWAY_DRAIN           seconds for a job under way after SIGTERM, before it is handed back; default: 20
GATEWAY_PATIENCE        seconds for a job to honour a cancel before its process is killed; default: 30
GATEWAY_WORKER          this agent's name
GATEWAY_AGENT_STATE     folder for what is owed to the gateway; one for each agent
GATEWAY_PRIVATE_INPUTS  1: inputs may be fetched from the private network
"""

import fcntl
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import IO

from fetch.answers import Stop
from gateway.agent.lane import BEAT, lanes_of
from gateway.agent.link import AwayError, GoneError, RefusedError
from gateway.agent.settings import Settings
from gateway.agent.station import Station
from gateway.settings import SettingsError
from local.annotations import SchemaError
from local.package import PackageError


def run(station: Station) -> None:
    """Work until asked to end."""
    station.spool.settle(station.link, station.asked.wait)
    station.register()
    threads = [Thread(target=lane.work, name="lane") for lane in lanes_of(station)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(AwayError, GoneError, RefusedError):  # the lanes say so
            station.link.heartbeat(station.settings.worker, [], 0, station.details(), Stop())
        station.asked.wait(BEAT)
        for thread in threads:
            thread.join(timeout=0.05)


def main() -> int:
    """0 when asked to end; 1 after a fault of its own, and for what the user can mend, said in one line."""
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)  # noqa: T201
        return 0
    try:
        settings = Settings.read()
        with _alone(settings.state):
            station = Station(settings)
            try:
                told = _end_on_signals(station)
                run(station)
            finally:
                station.close()
    except (SettingsError, PackageError, SchemaError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0 if told.is_set() else 1


def _alone(state: Path) -> IO[str]:
    """The lock of a state folder; SettingsError while another agent works there."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (state / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SettingsError(f"another agent works in {state}; set GATEWAY_AGENT_STATE to another folder") from None
    return lock


def _end_on_signals(station: Station) -> Event:
    """Set once a signal has asked to end."""
    told = Event()

    def end() -> None:
        told.set()
        station.asked.set()

    def receive(_number: int, _frame: FrameType | None) -> None:
        # Not here: the events' locks may be held by the very code that this interrupts
        Thread(target=end, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, receive)
    return told


if __name__ == "__main__":
    sys.exit(main())

"""One job after the other: claim, do, deliver. Pools that share memory share a lane."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread

from fetch.answers import Stop
from gateway.agent.coglets import Pool, StartError
from gateway.agent.link import AwayError, GoneError, RefusedError, Task
from gateway.agent.reporter import Reporter
from gateway.agent.run import Run, Wishes
from gateway.agent.station import Station
from gateway.jobs import POOLS

WAIT = 20.0  # seconds that a claim waits for a job
BEAT = 5.0  # seconds that a heartbeat waits for news: leases are of 30
TURN = 60.0  # seconds for which the pool that is up may go first, before both are asked for
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds after so many troubles in a row
STOPPING = 5.0  # seconds for a coglet to end


@dataclass
class Lane:
    """Does the jobs of some pools."""

    station: Station
    pools: dict[str, Pool]
    _troubles: int = 0
    _all_asked: float = field(default_factory=time.monotonic)

    def work(self) -> None:
        """Until the agent is asked to end; a fault of its own ends the agent."""
        try:
            self._work()
        finally:
            self.station.asked.set()

    def _work(self) -> None:
        self._warm_up()
        while not self.station.asked.is_set():
            try:
                task = self._claimed()
            except (AwayError, GoneError) as error:
                self._away(error)
            except RefusedError as error:  # a gateway that knows this version no more
                self._away(error)
                self.station.register()
            else:
                self._troubles = 0
                if task:
                    self._do(task)
                self._rest()
        for pool in self.pools.values():
            pool.close(STOPPING)

    def _warm_up(self) -> None:
        """Start the first pool that is to be kept warm, so that the first job finds it so."""
        for pool in [pool for name, pool in self.pools.items() if name in self.station.settings.warm][:1]:
            try:
                pool.start(self.station.asked)
                self.station.log.say(f"ready for {pool.mode.noun}s")
            except StartError as error:
                self.station.log.say(f"{pool.mode.verb}: {error}", "ERROR")

    def _claimed(self) -> Task | None:
        """The next job. The pool that is up goes first, for a while: to change takes as long as many jobs."""
        warm = [pool.warm for pool in self.pools.values() if pool.up]
        up = [name for name, pool in self.pools.items() if pool.up]
        first = up and len(up) < len(self.pools) and time.monotonic() - self._all_asked < TURN
        if first and (task := self._claim(up, warm, 0)):
            return task
        self._all_asked = time.monotonic()
        return self._claim(list(self.pools), warm, min(WAIT, max(1.0, self.station.settings.idle)))

    def _claim(self, pools: list[str], warm: list[str], wait: float) -> Task | None:
        station = self.station
        return station.link.claim(station.settings.worker, station.base, pools, warm, wait, station.asked)

    def _rest(self) -> None:
        """Stop what has been idle for long."""
        for name, pool in self.pools.items():
            idle = time.monotonic() - pool.used
            if pool.up and name not in self.station.settings.warm and idle > self.station.settings.idle:
                self.station.log.say(f"{name}: idle, stopped")
                pool.stop(STOPPING)

    def _do(self, task: Task) -> None:
        """Do a job, and deliver how it ended."""
        station, wishes = self.station, Wishes()
        pool = next(pool for name, pool in self.pools.items() if name == POOLS[task.kind])
        station.spool.claim(task)
        for other in self.pools.values():
            if other is not pool:
                other.stop(STOPPING)
        with self._watched(task, wishes), Reporter(station.link, task, wishes) as reporter:
            entry = Run(
                task,
                pool,
                station.inputs(pool.mode, wishes.stop),
                station.properties(pool.mode),
                station.listener,
                wishes,
                reporter.tell,
                station.settings.patience,
            ).into(station.spool)
            if entry is None:
                station.spool.release(task)
                station.log.say(f"{task.id}: canceled")
                return
            ending = station.spool.deliver(entry, station.link, station.asked.wait)
        station.log.say(f"{task.id}: {ending['status'] or 'handed back'}")
        if pool.failures:
            self._trouble(f"{pool.mode.verb}: {ending['error']}", pool.failures)

    def _away(self, error: Exception) -> None:
        self._troubles += 1
        self._trouble(str(error), self._troubles)

    def _trouble(self, what: str, times: int) -> None:
        """Say it, and wait the longer the more often it came."""
        if self.station.asked.is_set():
            return
        pause = PAUSES[min(times, len(PAUSES)) - 1]
        self.station.log.say(f"{what}; again in {pause:.0f} s", "WARN")
        self.station.asked.wait(pause)

    @contextmanager
    def _watched(self, task: Task, wishes: Wishes) -> Iterator[None]:
        """Keep the lease and hear of a cancel while this lasts; let go of the job when the agent ends before it."""
        over, station = Stop(), self.station

        def beat() -> None:
            held = [(task.id, task.fence)]
            while not over.is_set() and not wishes.dropped.is_set():
                try:
                    if station.link.heartbeat(station.settings.worker, held, BEAT, station.details(), over):
                        wishes.drop()
                except (AwayError, GoneError, RefusedError):
                    over.wait(1.0)

        def end() -> None:
            while not over.wait(0.1):
                if station.asked.is_set() and not over.wait(station.settings.drain):
                    wishes.drain()
                    return

        for each in (beat, end):
            Thread(target=each, name=each.__name__, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def lanes_of(station: Station) -> list[Lane]:
    """One for all pools, or one for each where they fit into memory together."""
    if station.settings.together:
        return [Lane(station, {name: pool}) for name, pool in station.pools.items()]
    return [Lane(station, station.pools)]

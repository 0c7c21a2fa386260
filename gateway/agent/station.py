"""What all lanes of an agent share."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from fetch.answers import Stop
from fetch.inputs import MOST, Source
from gateway.agent.coglets import Pool
from gateway.agent.inputs import Inputs, properties_of
from gateway.agent.link import AwayError, GoneError, Link, RefusedError
from gateway.agent.listener import Listener
from gateway.agent.settings import Settings, hardware
from gateway.agent.spool import Spool
from gateway.jobs import Json
from local import schema
from local.logs import Log
from local.modes import Mode
from local.server import environment

LARGEST = {"predict": MOST, "train": 2 << 30}  # bytes of one input
AGAIN = 0.5  # seconds between two tries to register


@dataclass
class Station:
    """One agent. `asked` is set when it is to end: it cuts what waits for jobs."""

    settings: Settings
    log: Log = field(default_factory=Log)
    asked: Stop = field(default_factory=Stop)
    base: str = ""  # the version that the gateway knows the package as
    bases: tuple[str, ...] = ()  # how the gateway's own URLs begin
    pools: dict[str, Pool] = field(default_factory=dict)
    _registering: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Make everything; no coglet is started."""
        self.settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.link = Link(self.settings.url, self.settings.token)
        self.listener = Listener(self.link, self.settings.state)
        self.spool = Spool.at(self.settings.state / "spool")
        self.document: Json = json.loads(schema.generate(self.settings.package))
        schema.write(self.settings.package)
        found = environment(self.settings.package, self.log)
        variables = {name: value for name, value in found.items() if not name.startswith("GATEWAY_")}
        for mode in self.settings.pools:
            package = self.settings.package
            self.pools[mode.verb] = Pool(mode, package, variables, self.log, self.listener.origin)

    @cached_property
    def hardware(self) -> str:
        """What the model runs on."""
        return hardware()

    def register(self) -> None:
        """Make the package known to the gateway, which is waited for; returns without when asked to end."""
        trains = self.settings.package.train is not None
        about = {
            "worker": self.settings.worker,
            "model": self.settings.model,
            "schema": {"predict": self.document, "train": self.document if trains else None},
            "pools": list(self.pools),
            "hardware": self.hardware,
            "cog_version": schema.COG_VERSION,
        }
        with self._registering:
            said = ""
            while not self.asked.is_set():
                try:
                    answer = self.link.register(about)
                except (AwayError, GoneError, RefusedError) as error:
                    if str(error) != said:
                        self.log.say(str(error), "WARN")
                    said = str(error)
                    self.asked.wait(AGAIN)
                else:
                    self.base = str(answer["base"])
                    self.bases = tuple({self.settings.url, str(answer.get("url") or self.settings.url).rstrip("/")})
                    return

    def inputs(self, mode: Mode, cut: Stop) -> Inputs:
        """What makes a job's inputs ready, until `cut` is set."""
        fetch = Source.of(allow_private=self.settings.private_inputs, most=LARGEST[mode.verb], cut=cut)
        return Inputs(self.link, self.listener, self.bases, fetch)

    def properties(self, mode: Mode) -> Json:
        """The schemas of a pool's inputs."""
        return properties_of(self.document, mode)

    def details(self) -> Json:
        """What a heartbeat says about this agent."""
        return {
            "model": self.settings.model,
            "hardware": self.hardware,
            "pools": list(self.pools),
            "up": [name for name, pool in self.pools.items() if pool.up],
            "warm": [pool.warm for pool in self.pools.values() if pool.up],
            "starts": {name: pool.starts for name, pool in self.pools.items()},
        }

    def close(self) -> None:
        """Leave nothing on this machine but what is still owed."""
        for pool in self.pools.values():
            pool.close(0)
        self.listener.close()

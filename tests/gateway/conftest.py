"""What the gateway's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.databases import Postgres
from tests.gateway.running import TOY, Gateway, running


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Nobody kills this one."""
    server = Postgres(tmp_path_factory.mktemp("postgres") / "data")
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The one that `stack` and `toy` bring their workers to."""
    with running(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def stack(gateway: Gateway) -> Gateway:
    """With a worker for stability-ai/sdxl, which is the miniature."""
    gateway.agent("sdxl", "stability-ai/sdxl", SDXL_CACHE=str(gateway.folder / "cache"))
    return gateway


@pytest.fixture(scope="session")
def toy(gateway: Gateway) -> Gateway:
    """With a worker for local/toy, whose jobs take no time."""
    gateway.agent("toy", "local/toy", GATEWAY_PACKAGE=str(TOY))
    return gateway

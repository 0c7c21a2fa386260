"""What the gateway's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.databases import Postgres


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

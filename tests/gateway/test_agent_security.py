"""What an agent fetches for a job comes from the public internet, whatever its address looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from fetch.answers import Stop
from fetch.inputs import Source
from gateway.agent.inputs import InputProblemError, Inputs
from gateway.agent.link import Link
from gateway.agent.listener import Listener
from gateway.jobs import Json
from tests.gateway.receiving import receiver

PROPERTIES: Json = {
    "image": {"type": "string", "format": "uri"},
    "images": {"type": "array", "items": {"type": "string", "format": "uri"}},
}
HOSTS = ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"]
NO_FILES = ["/etc/hostname", "file:///etc/hostname", "../x", "", "gopher://example.com/x", "-O/tmp/x", "C:\\x"]
Ready = Callable[[Json], Json]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    """As the agent of a gateway at gateway.example makes them ready."""
    link = Link("https://gateway.example", "token")
    listener = Listener(link, tmp_path_factory.mktemp("agent"))
    yield Inputs(link, listener, ("https://gateway.example",), Source.of(allow_private=False))
    listener.close()


@pytest.fixture
def ready(inputs: Inputs, tmp_path: Path) -> Ready:
    """Makes inputs ready in a folder below tmp_path/job."""
    (tmp_path / "job").mkdir()
    return lambda given: inputs.ready(given, PROPERTIES, Path(mkdtemp(dir=tmp_path / "job")), Stop())


def taken(tmp_path: Path) -> list[bytes]:
    """What lies in the job's folder."""
    return [path.read_bytes() for path in (tmp_path / "job").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_private_is_asked(ready: Ready, host: str) -> None:
    with receiver() as inside:
        address = f"http://{host}:{inside.port}/x.png"
        for given in ({"image": address}, {"images": ["data:,a", address]}):
            with pytest.raises(InputProblemError, match="public"):
                ready(given)
    assert inside.calls == []


@pytest.mark.parametrize("value", NO_FILES)
def test_what_is_no_address_is_no_file(ready: Ready, tmp_path: Path, value: str) -> None:
    with pytest.raises(InputProblemError, match=r"image: .*http\(s\) URL"):
        ready({"image": value})
    assert taken(tmp_path) == []


def test_a_redirect_is_checked_like_the_first_address(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = iter([True])
    monkeypatch.setattr("fetch.network.is_public", lambda _: next(checks, False))
    with receiver() as inside, receiver(lambda _: (302, {"Location": inside.url})) as outside:
        with pytest.raises(InputProblemError, match="public"):
            ready({"image": outside.url})
        assert len(outside.calls) == 1
    assert inside.calls == []


def test_a_name_that_changes_its_answer_gains_nothing(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as inside:
        answers = iter(["93.184.216.34"])
        tried: list[str] = []

        def resolve(_: str, port: int, **__: object) -> list[object]:
            return [(2, 1, 6, "", (next(answers, "127.0.0.1"), port))]

        def no_route(address: tuple[str, int], *_: object, **__: object) -> None:
            tried.append(address[0])
            raise ConnectionRefusedError("refused")

        monkeypatch.setattr("socket.getaddrinfo", resolve)
        monkeypatch.setattr("fetch.network.create_connection", no_route)
        for _ in range(2):
            with pytest.raises(InputProblemError):
                ready({"image": f"http://rebind.test:{inside.port}/x.png"})
    assert tried == ["93.184.216.34"]
    assert inside.calls == []


def test_text_is_left_as_it_is(ready: Ready) -> None:
    given = {"prompt": "/etc/hostname", "number": 1, "nothing": None}
    assert ready(given) == given


@pytest.mark.parametrize("name", ["../../x", "..%2f..%2fx", "a%00b", "-rf", ".bashrc", "x" * 400])
def test_names_of_files_are_no_paths(ready: Ready, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetch.network.is_public", lambda _: True)
    with receiver(lambda _: (200, {})) as outside:
        ready({"image": f"http://127.0.0.1:{outside.port}/{name}"})
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file() and (tmp_path / "job") in path.parents]
    assert path.resolve().is_relative_to(tmp_path / "job")
    assert path.name[0] not in "-."
    assert len(path.name) <= 100

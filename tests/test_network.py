"""The address guard: no spelling, redirect or changing name reaches a private address."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from errors import WeightsError
from fetch.answers import Stop, Stopped
from fetch.network import _next_hop, getter, is_public
from tests.file_server import FileServer, file_server, redirect


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files["/f"] = b"secret"
        yield server


PRIVATE = """
127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.254
169.254.169.254 192.0.0.1 192.0.2.1 198.18.0.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2
"""
PUBLIC = "8.8.8.8 1.1.1.1 2606:4700:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 100.128.0.1 172.32.0.1"
LOOPBACK = """
127.0.0.1 127.1 2130706433 0x7f000001 0x7f.0.0.1 017700000001 0177.0.0.1 0 [::1] [::ffff:127.0.0.1]
[::ffff:7f00:1] localhost LOCALHOST user:password@127.0.0.1 example.com@127.0.0.1 ①②⑦.⓪.⓪.①
127.0.0.1%23@example.invalid
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", LOOPBACK.split())
def test_no_spelling_of_loopback_gets_through(server: FileServer, host: str) -> None:
    port = server.server_address[1]
    with pytest.raises((WeightsError, OSError)):
        getter(allow_private=False)(f"http://{host}:{port}/f", {})
    assert server.log == []


def test_the_refusal_says_what_to_do_and_keeps_the_address(server: FileServer) -> None:
    with pytest.raises(WeightsError, match="'localhost' is not on the public internet; use a public") as caught:
        getter(allow_private=False)(f"{server.url.replace('127.0.0.1', 'localhost')}/f", {})
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/f",
        "gopher://127.0.0.1/",
        "//x/f",
        "http:///f",
        "http://[::1",
        "f",
    ],
)
def test_only_http(url: str) -> None:
    with pytest.raises(WeightsError, match=r"http\(s\)://host/file"):
        getter(allow_private=False)(url, {})


def pretend(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]], asked: list[str]) -> None:
    """A resolver whose answer for a name changes with every question; the last stays."""
    genuine = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in answers:
            return genuine(host, port, *args, **kwargs)
        asked.append(host)
        known = answers[host]
        address = known.pop(0) if len(known) > 1 else known[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split()]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_one_private_address_among_public_ones_is_enough(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"mixed.test": ["93.184.216.34 127.0.0.1"]}, [])
    with pytest.raises(WeightsError, match="public internet"):
        getter(allow_private=False)(f"http://mixed.test:{server.server_address[1]}/f", {})
    assert server.log == []


def test_a_name_that_changes_is_asked_once_and_the_checked_address_is_used(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tried: list[Any] = []

    def no_route(address: Any, *_: Any, **__: Any) -> Any:
        tried.append(address)
        raise ConnectionRefusedError("refused")

    pretend(monkeypatch, {"rebind.test": ["93.184.216.34", "127.0.0.1"]}, asked)
    monkeypatch.setattr("fetch.network.create_connection", no_route)
    port = server.server_address[1]
    with pytest.raises(OSError, match="refused"):
        getter(allow_private=False)(f"http://rebind.test:{port}/f", {})
    assert asked == ["rebind.test"]
    assert tried == [("93.184.216.34", port)]
    with pytest.raises(WeightsError, match="public internet"):
        getter(allow_private=False)(f"http://rebind.test:{port}/f", {})


def public(count: int) -> str:
    return " ".join(f"93.184.216.{n}" for n in range(1, count + 1))


def test_of_many_addresses_four_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def no_route(address: Any, *_: Any, **__: Any) -> Any:
        tried.append(address[0])
        raise TimeoutError("timed out")

    pretend(monkeypatch, {"many.test": [public(50)], "mixed.test": [f"{public(50)} 127.0.0.1"]}, [])
    monkeypatch.setattr("fetch.network.create_connection", no_route)
    with pytest.raises(OSError, match="timed out"):
        getter(allow_private=False)("http://many.test/f", {})
    assert tried == public(4).split()
    with pytest.raises(WeightsError, match="public internet"):  # all are checked
        getter(allow_private=False)("http://mixed.test/f", {})
    assert len(tried) == 4


def test_a_stop_between_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()

    def no_route(*_: Any, **__: Any) -> Any:
        assert not stop.is_set()
        stop.set()
        raise TimeoutError("timed out")

    pretend(monkeypatch, {"many.test": [public(3)]}, [])
    monkeypatch.setattr("fetch.network.create_connection", no_route)
    with pytest.raises(Stopped):
        getter(allow_private=False, stop=stop)("http://many.test/f", {})


ODD = [
    "https://me:hunter2@host:99999/x",
    "https://[h/x?token=hunter2",
    "ftp://me:hunter2@host/x?sig=hunter2",
    "https://me:hunter2",
    "https://me:p/hunter2@host:99999/x",
    "https://me:hunter2\u2100@host/x",
    "//[h?sig=hunter2",
]


@pytest.mark.parametrize("url", ODD)
def test_an_odd_url_tells_no_password(url: str) -> None:
    with pytest.raises(WeightsError, match=r"http\(s\)://host/file") as caught:
        getter(allow_private=True)(url, {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ODD)
def test_nor_does_an_odd_redirect(server: FileServer, url: str) -> None:
    server.always["/start"] = redirect(url.encode().decode("latin1"))
    with pytest.raises(WeightsError, match=r"http\(s\)://host/file|redirects to what is no valid URL; give") as caught:
        getter(allow_private=True)(f"{server.url}/start?token=hunter2", {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("to", ["http://127.0.0.1:{port}/f", "http://inside.test:{port}/f", "/f"])
def test_a_redirect_is_checked_like_the_first_address(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """The first hop is let through as if it were public; the second is the attack."""
    port = server.server_address[1]
    server.always["/start"] = redirect(to.format(port=port))
    pretend(monkeypatch, {"outside.test": ["127.0.0.1"], "inside.test": ["127.0.0.1"]}, [])
    checks = iter([True])
    monkeypatch.setattr("fetch.network.is_public", lambda _: next(checks, False))
    get = getter(allow_private=False)
    url = f"http://outside.test:{port}/start"
    if to == "/f":
        assert get(url, {}).content == b"secret"  # the connection that was checked serves on
    else:
        with pytest.raises(WeightsError, match="public internet"):
            get(url, {})
        assert [path for path, *_ in server.log] == ["/start"]


def test_the_environment_s_proxy_is_no_way_round(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    with pytest.raises((WeightsError, OSError)):
        getter(allow_private=False)("http://127.0.0.2/f", {})
    assert server.log == []


def test_a_token_goes_to_the_first_origin_only(server: FileServer) -> None:
    with file_server() as other:
        other.files["/f"] = b"found"
        server.always["/start"] = redirect("/next")
        server.always["/next"] = redirect(f"{other.url}/f")
        get = getter(allow_private=True, headers={"Authorization": "Bearer token"})
        assert get(f"{server.url}/start", {}).content == b"found"
        assert [token for *_, token in server.log] == ["Bearer token"] * 2
        assert [token for *_, token in other.log] == [None]


def test_https_does_not_fall_back_to_http() -> None:
    with pytest.raises(WeightsError, match="from https to http"):
        _next_hop("https://example.com/a", "http://example.com/b")
    assert _next_hop("https://example.com/a", "//cdn.example.com/b") == "https://cdn.example.com/b"

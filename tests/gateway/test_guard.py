"""Webhooks cannot be led inside: not by spelling, name, redirect or port, nor by a name that changes its answer."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fetch.answers import Stop
from gateway.guard import Rules, check, poster
from gateway.webhooks import Courier
from tests.gateway.receiving import delivering, finished, new_job, new_store, receiver, settle

NOTHING_ALLOWED = Rules(plain=True)
REFUSED = {
    "http://example.com/": "is not an https URL",
    "ftp://example.com/": "is not an https URL",
    "file:///etc/passwd": "is not an https URL",
    "/etc/passwd": "is not an https URL",
    "example.com": "is not an https URL",
    "https://": "is not an https URL",
    "": "is no valid URL",
    "https://user:pa55word@example.com/": "holds a user name or password",
    "https://example.com:22/": "names port 22",
    "https://example.com:0/": "names port 0",
    "https://example.com:99999/": "is no valid URL",
    "https://example.com\\@127.0.0.1/": "is no valid URL",
    "https://example.com/\r\nHost: inside": "is no valid URL",
    "https://example.com/ a": "is no valid URL",
    "https://exämple.com/": "is no valid URL",
    "https://example.com/" + "a" * 2048: "is no valid URL",
    "https://127.0.0.1/": "not on the public internet",
    "https://[::1]/": "not on the public internet",
    "https://[::ffff:10.0.0.1]/": "not on the public internet",
    "https://169.254.169.254/latest/meta-data": "not on the public internet",
}


@pytest.mark.parametrize("url", list(REFUSED))
def test_what_is_refused_before_a_job_is_made(url: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[url]) as refusal:
        check(url, Rules())
    assert "pa55word" not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["https://example.com/hook?id=1", "https://example.com:443/", "https://[2606:4700::1]/a%20b"]
)
def test_what_is_allowed(url: str) -> None:
    check(url, Rules())


def test_what_an_operator_may_allow() -> None:
    check("http://example.com:8080/", Rules(plain=True, ports=frozenset({8080})))
    check("http://localhost:5000/", Rules(loopback=True))
    check("http://127.0.0.1:5000/", Rules(loopback=True))
    for url in ("http://10.0.0.1/", "http://example.com/"):
        with pytest.raises(ValueError, match=r"internet|https"):
            check(url, Rules(loopback=True))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_no_spelling_of_loopback_is_called(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as inside:
        rules = Rules(plain=True, ports=frozenset({inside.port}))
        monkeypatch.setattr("gateway.guard.check", lambda *_: None)  # the connection alone must hold
        with pytest.raises(ValueError, match="not on the public internet"):
            poster(rules, Stop())(f"http://{host}:{inside.port}/", b"{}", {})
    assert inside.calls == []


def pretend(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[tuple[str, int]]:
    """Names resolve to these, one after the other; where connections were tried."""
    tried: list[tuple[str, int]] = []

    def resolve(_: str, port: int, **__: Any) -> list[Any]:
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split()]

    def no_route(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        tried.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("fetch.network.create_connection", no_route)
    return tried


def test_a_name_that_changes_its_answer_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretend(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    post = poster(NOTHING_ALLOWED, Stop())
    with pytest.raises(OSError, match="refused"):
        post("http://rebind.test/", b"{}", {})
    with pytest.raises(ValueError, match="public internet"):
        post("http://rebind.test/", b"{}", {})
    assert tried == [("93.184.216.34", 80)]


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretend(monkeypatch, ["93.184.216.34 10.0.0.1"])
    with pytest.raises(ValueError, match="public internet"):
        poster(NOTHING_ALLOWED, Stop())("https://mixed.test/", b"{}", {})
    assert tried == []


def test_the_environment_s_proxy_is_no_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ValueError, match="public internet"):
            poster(NOTHING_ALLOWED, Stop())("http://10.0.0.1/", b"{}", {})
    assert proxy.calls == []


def test_a_refused_address_is_not_tried_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with receiver() as inside, delivering(store, NOTHING_ALLOWED):
        new_job(store, f"http://127.0.0.1:{inside.port}/")
        finished(store)
        settle(store)
    assert inside.calls == []


def test_a_receiver_that_says_nothing_is_left_when_the_gateway_ends(tmp_path: Path) -> None:
    store, stop = new_store(tmp_path), Stop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        new_job(store, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        finished(store)
        courier = Courier(store, lambda _: {}, "whsec_", poster(Rules(loopback=True), stop))
        (delivery,) = store.due(time.time())
        calling = threading.Thread(target=courier.call, args=(delivery,))
        calling.start()
        with silent.accept()[0] as called:
            called.recv(1)
            stop.set()
            calling.join(timeout=5)
        assert not calling.is_alive()
    (again,) = store.due(time.time() + 100)
    assert again.id == delivery.id

"""HTTP as this package speaks it: one guarded GET, for addresses that a user or an operator names.

`requests` rather than huggingface_hub, whose file transport can neither be given an address guard nor resume
a file in parallel pieces; one transport serves the hub, CivitAI and plain URLs alike.

The guard sits where it cannot be talked around: in the connection itself. Whatever spelling the URL used
(decimal, octal, hexadecimal, IPv6, a name, a redirect), its host is resolved once, every address is checked,
and the socket goes to a checked address. A name that changes its answer between check and connection gains
nothing.
"""

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Timer
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.response import HTTPResponse
from urllib3.util.connection import create_connection

from errors import WeightsError
from fetch.answers import Stop, shown

Get = Callable[[str, Mapping[str, str]], requests.Response]
Allowed = Callable[[str], bool]  # of an IP address

REDIRECTS = 10
ADDRESSES = 4  # of a host that are tried: each may take the whole time to connect
NAT64 = ipaddress.ip_network("64:ff9b::/96")
TUNNELS = [ipaddress.ip_network(network) for network in ("2002::/16", "2001::/32", "64:ff9b:1::/48", "::/96")]


def is_public(address: str) -> bool:
    """Whether an IP address lies on the public internet, also when it is an IPv4 address in IPv6 clothes."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.is_site_local or any(ip in network for network in TUNNELS):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def connect_checked(connection: HTTPConnection, stop: Stop, allowed: Allowed | None = None) -> socket.socket:
    """A socket to the connection's host, resolved once and only to allowed addresses (public ones), until `stop`."""
    try:
        found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label too long for DNS
        raise WeightsError(f"{connection.host!r} is no host name; check the URL") from error
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not addresses or not all(map(allowed or is_public, addresses)):
        # The address itself stays unsaid: an error must not map the private network.
        raise WeightsError(f"host {connection.host!r} is not on the public internet; use a public http(s) URL")
    failure: OSError = OSError("no address")
    for address in addresses[:ADDRESSES]:
        stop.check()
        try:
            return create_connection(
                (address, connection.port),
                connection.timeout,
                source_address=connection.source_address,
                socket_options=connection.socket_options,
            )
        except OSError as error:
            failure = error
    raise NewConnectionError(connection, f"no connection: {failure}") from failure


def is_own(url: str) -> bool:
    """Whether a URL is one of SDXL_OWN_FILES: the address, such as http://127.0.0.1:4711/, at which the server that
    stands in front of this one keeps the files of requests. It lies in the private network, and nothing else there is
    meant by it."""
    own = os.environ.get("SDXL_OWN_FILES", "")
    return own.endswith("/") and url.startswith(own)


@contextmanager
def at_most(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """TimeoutError for what takes longer. `cut` ends its waiting: one byte a second never meets a socket's timeout."""
    late = Event()

    def end() -> None:
        late.set()
        with suppress(OSError, ValueError, RuntimeError):  # it is closed already
            cut()

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError(f"it took longer than {seconds:.0f} s") from error
        raise
    finally:
        timer.cancel()
    if late.is_set():  # what was cut short may look like its end
        raise TimeoutError(f"it took longer than {seconds:.0f} s")


class LimitedHTTP(HTTPConnection):
    """Whole headers within the time that is meant for the next byte, or until `stop`."""

    stop = Stop()  # never set; an Adapter puts its own here

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as in urllib3 itself
        limit = self.timeout
        if not isinstance(limit, int | float) or self.sock is None:
            return super().getresponse()
        cut = partial(self.sock.shutdown, socket.SHUT_RDWR)
        with self.stop.cutting(cut), at_most(limit, cut):
            return super().getresponse()


class LimitedHTTPS(LimitedHTTP, HTTPSConnection):
    pass


class CheckedHTTP(LimitedHTTP):
    allowed: Allowed | None = None  # an Adapter puts its own here

    def _new_conn(self) -> socket.socket:
        return connect_checked(self, self.stop, self.allowed)


class CheckedHTTPS(LimitedHTTPS):
    allowed: Allowed | None = None

    def _new_conn(self) -> socket.socket:
        return connect_checked(self, self.stop, self.allowed)


class Adapter(HTTPAdapter):
    """`requests` with our connections; the checked ones reach public addresses only, or those that are `allowed`."""

    def __init__(self, *, checked: bool, stop: Stop, allowed: Allowed | None = None) -> None:
        self.checked, self.stop, self.allowed = checked, stop, allowed
        super().__init__(pool_connections=8, pool_maxsize=16)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        own = {"stop": self.stop, "allowed": staticmethod(self.allowed) if self.allowed else None}

        class Plain(HTTPConnectionPool):
            ConnectionCls = type("HTTP", (CheckedHTTP if self.checked else LimitedHTTP,), own)

        class Secure(HTTPSConnectionPool):
            ConnectionCls = type("HTTPS", (CheckedHTTPS if self.checked else LimitedHTTPS,), own)

        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": Plain, "https": Secure}


def getter(
    *,
    allow_private: bool,
    headers: Mapping[str, str] | None = None,
    timeout: tuple[float, float] = (10, 30),
    patience: float = float("inf"),
    stop: Stop | None = None,
) -> Get:
    """A GET of (url, headers) that streams and follows redirects by hand; `.history` holds the hops.

    allow_private  for addresses that the operator configured: private ones are reached too, and the
                   environment's proxies apply. Never for a URL out of a request.
    headers        sent to the first origin only, as is right for a token.
    timeout        seconds to connect, and for the headers, and without any byte of the body arriving.
    patience       seconds after which no further redirect is followed.
    stop           ends the waiting for headers as soon as it is set.
    """
    session = requests.Session()
    session.trust_env = False  # no ~/.netrc password for a host that a user named, no proxy past the guard
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
    adapter = Adapter(checked=not allow_private, stop=stop or Stop())
    session.mount("http://", adapter)
    session.mount("https://", adapter)

    def get(url: str, extra: Mapping[str, str]) -> requests.Response:
        origin, until = _origin(url), time.monotonic() + patience
        history: list[requests.Response] = []
        for _ in range(REDIRECTS + 1):
            own = (headers or {}) if _origin(url) == origin else {}
            with _no_odd_redirect(origin[1]):
                response = session.get(
                    url,
                    headers={"Accept-Encoding": "identity", "User-Agent": "sdxl-cog", **own, **extra},
                    proxies=get_environ_proxies(url) if allow_private else {},
                    timeout=timeout,
                    stream=True,
                    allow_redirects=False,
                )
            if not response.is_redirect:
                response.history = history
                return response
            response.close()
            if time.monotonic() > until:
                raise requests.Timeout(f"{origin[1]} redirects for longer than {patience:.0f} s")
            history.append(response)
            url = _next_hop(url, response.headers["Location"])
        raise WeightsError(f"{origin[1]} redirects more than {REDIRECTS} times; give the file's direct URL")

    return get


@contextmanager
def _no_odd_redirect(host: str) -> Iterator[None]:
    """`requests` looks where a redirect leads even if it is not to follow it, and passes on what `urlsplit` raises."""
    try:
        yield
    except requests.RequestException:
        raise
    except ValueError as error:
        raise WeightsError(f"{host} redirects to what is no valid URL; give the file's direct URL") from error


def _next_hop(url: str, location: str) -> str:
    target = urljoin(url, location)
    if urlsplit(url).scheme == "https" and _origin(target)[0] != "https":
        raise WeightsError(f"{_origin(url)[1]} redirects from https to http; give a URL that stays on https")
    return target


def _origin(url: str) -> tuple[str, str]:
    """(scheme, host:port) of an http(s) URL; anything else is refused."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise WeightsError(f"{_named(url)} is no valid URL; use http(s)://host/file") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WeightsError(f"{_named(url)} is not an http(s) URL; use http(s)://host/file")
    return parts.scheme, f"{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"


def _named(url: str) -> str:
    """A URL that is none, in quotes: where its password ends is anyone's guess, so all before the last @ goes, and what
    is in the place of a port but no number.
    """
    plain = re.sub("//.*@", "//", shown(url), flags=re.DOTALL)
    return repr(re.sub(r"(//[^/:[]*):(?!\d*(?:/|$))[^/]*", r"\1", plain)[:100])

"""What the gateway itself may call: webhooks, at addresses that a user named.

The check of the address sits in the connection (fetch.network): a host is resolved once, every answer is checked, and
the socket goes to a checked address, so neither an odd spelling nor a name that changes its answer leads inside.
Redirects are not followed and proxies of the environment do not apply.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.cookiejar import DefaultCookiePolicy

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from errors import WeightsError
from fetch.answers import Stop
from fetch.network import Adapter, is_public

Post = Callable[[str, bytes, Mapping[str, str]], int]

PORTS = {"http": 80, "https": 443}
LONGEST_URL = 2048  # characters
PATIENCE = (5.0, 10.0)  # seconds to connect and to send, and until the receiver's headers are there
# What RFC 3986 allows in a URL: the parsers of this world agree on these characters, unlike on a backslash.
PLAIN = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")


@dataclass(frozen=True)
class Rules:
    """Where calls may go.

    plain     also over http, not only https
    loopback  also to this machine, for a receiver under development; at any port
    ports     besides 80 and 443
    """

    plain: bool = False
    loopback: bool = False
    ports: frozenset[int] = frozenset()

    def allowed(self, address: str) -> bool:
        """Whether a connection to this IP address may be made."""
        return is_public(address) or (self.loopback and ipaddress.ip_address(address.partition("%")[0]).is_loopback)


def check(url: str, rules: Rules) -> None:
    """ValueError, in a sentence that says what to do, for a URL not to be called; names are not resolved here."""
    if len(url) > LONGEST_URL or not PLAIN.fullmatch(url):
        raise ValueError(f"{_named(url)} is no valid URL; percent-encode it, in at most {LONGEST_URL} characters")
    try:
        parts = parse_url(url)
    except LocationParseError as error:
        raise ValueError(f"{_named(url)} is no valid URL; use https://host/path") from error
    scheme, host = parts.scheme or "", parts.host or ""
    own = rules.loopback and (host == "localhost" or (_is_address(host) and rules.allowed(host.strip("[]"))))
    schemes = ("https", "http") if rules.plain or own else ("https",)
    if scheme not in schemes or not host:
        raise ValueError(f"{_named(url)} is not an {' or '.join(schemes)} URL; use {schemes[0]}://host/path")
    if parts.auth is not None:
        raise ValueError(f"{_named(url)} holds a user name or password; leave it out and check the signature instead")
    port = PORTS[scheme] if parts.port is None else parts.port
    if not own and port not in rules.ports | set(PORTS.values()):
        raise ValueError(f"{_named(url)} names port {port}; use 80 or 443, or have the operator allow it")
    if _is_address(host) and not rules.allowed(host.strip("[]")):
        raise ValueError(f"host {host!r} is not on the public internet; use a public address")


def poster(rules: Rules, stop: Stop) -> Post:
    """A POST of (url, body, headers) that returns the status; OSError without one, ValueError for what is not allowed.

    Whatever the receiver does, it ends within about half a minute, or when `stop` is set. Of the answer only the status
    counts: its body is not read and its cookies are not kept.
    """
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
    adapter = Adapter(checked=True, stop=stop, allowed=rules.allowed)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return partial(_post, session, rules)


def _post(session: requests.Session, rules: Rules, url: str, body: bytes, headers: Mapping[str, str]) -> int:
    check(url, rules)
    sent = {"Connection": "close", "User-Agent": "sdxl-cog-gateway", **headers}
    try:
        with session.post(url, data=body, headers=sent, timeout=PATIENCE, stream=True, allow_redirects=False) as answer:
            return answer.status_code
    except WeightsError as error:  # how fetch says that an address is not allowed
        raise ValueError(str(error)) from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _named(url: str) -> str:
    """The URL as an error may show it: no query, where tokens travel, and no password."""
    return repr(re.sub("//.*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])[:100])

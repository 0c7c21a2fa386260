"""What the operator decides, read from the environment once."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self
from urllib.parse import urlsplit

from gateway.blobs import S3, Blobs, Directory
from gateway.guard import Rules

PREFIX = "GATEWAY_"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")  # of accounts, models and deployments
OUTPUTS = ("auto", "url", "data")
TOKEN_LENGTH = 16  # characters at least


class SettingsError(Exception):
    """The environment cannot be used; the message names the variable and what to set it to."""


@dataclass(frozen=True)
class Settings:
    """Each is the variable GATEWAY_<NAME IN CAPITALS>. Durations are in seconds, sizes in bytes.

    host, port           where it listens
    public_url           how clients reach it, without /v1; default: http://host:port
    database             sqlite:///path or postgresql://user:password@host/name
    files                a folder, or s3://bucket/prefix
    files_endpoint       of an S3 that is not Amazon's
    token                what lets clients in; without one, everybody on this machine is let in
    account              whose that token is: models and trainings of this owner are theirs
    worker_token         what lets workers in; without one, none is let in
    output_mode          auto: files of outputs go to the official clients as data: URLs while public_url is plain http,
                         since they make a FileOutput of https: and data: only; url: never; data: always
    inline               the most that is sent so, of all files of a job; larger ones go as URLs
    keep                 after which input, output and logs of an ended job are removed, and files expire
    attempts             how often a job is tried on workers that are lost
    lease                for which a worker may be silent
    queued               jobs of one account that have not ended, at most
    creates, calls       of one account in a minute: predictions and trainings, and other calls
    create_destinations  a training into a model that does not exist makes it, if it is the account's own
    private_inputs       inputs may be fetched from the private network (set the same for the agents)
    webhook_plain        webhooks may go over http
    webhook_loopback     webhooks may go to this machine, at any port; "auto": when listening on loopback only
    webhook_ports        ports besides 80 and 443 to which they may go
    origins              web pages of these origins may call the API from browsers; "*": all
    """

    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = ""
    database: str = "sqlite:///gateway-data/gateway.db"
    files: str = "gateway-data/files"
    files_endpoint: str = ""
    token: str = ""
    account: str = "my-name"
    worker_token: str = ""
    output_mode: str = "auto"
    inline: int = 32 * 2**20
    keep: float = 86_400.0
    attempts: int = 3
    lease: float = 30.0
    queued: int = 10_000
    creates: int = 6_000
    calls: int = 60_000
    create_destinations: bool = True
    private_inputs: bool = False
    webhook_plain: bool = False
    webhook_loopback: str = "auto"
    webhook_ports: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Self:
        """SettingsError for what makes no sense."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            name = PREFIX + field.name.upper()
            if text := variables.get(name, "").strip():
                given[field.name] = _parsed(name, text, type(field.default))
        return cls(**given).checked()

    def checked(self) -> Self:
        """With all that follows from the rest filled in; SettingsError."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        whole = replace(self, public_url=(self.public_url or f"http://{shown}:{self.port}").rstrip("/"))
        for name, (right, remedy) in RULES.items():
            if not right(whole):
                value = "" if "token" in name else f"={getattr(whole, name)!r}"
                raise SettingsError(f"{PREFIX}{name.upper()}{value}: {remedy}")
        return whole

    @property
    def only_here(self) -> bool:
        """Whether nobody but this machine can connect, through a proxy before the gateway either."""
        return is_loopback(self.host) and is_loopback(urlsplit(self.public_url).hostname or "")

    @property
    def webhooks(self) -> Rules:
        """Where webhooks may go."""
        loopback = self.webhook_loopback == "yes" or (self.webhook_loopback == "auto" and self.only_here)
        return Rules(self.webhook_plain, loopback, frozenset(int(port) for port in self.webhook_ports))

    def blobs(self) -> Blobs:
        """Where the bytes of files are."""
        if not self.files.startswith("s3://"):
            return Directory(self.files)
        bucket, _, prefix = self.files.removeprefix("s3://").partition("/")
        return S3(bucket, prefix, self.files_endpoint or None)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _parsed(name: str, text: str, kind: type) -> Any:
    try:
        return PARSERS[kind](text)
    except (ValueError, KeyError) as error:
        raise SettingsError(f"{name}={text!r} is not {KINDS[kind]}; set it to one") from error


def _is_origin(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not (parts.query or parts.fragment)


PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: {"1": True, "yes": True, "0": False, "no": False}[text.lower()],
    tuple: lambda text: tuple(re.split(r"[\s,]+", text)),
}
KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "yes or no", str: "text", tuple: "a list"}
RULES: dict[str, tuple[Callable[[Settings], bool], str]] = {
    "port": (lambda s: 0 <= s.port < 65_536, "a port lies between 0 and 65535"),
    "public_url": (lambda s: _is_origin(s.public_url), "give http(s)://host[:port], without /v1"),
    "account": (lambda s: bool(NAME.fullmatch(s.account)), "give small letters, digits, '.', '_' and '-'"),
    "output_mode": (lambda s: s.output_mode in OUTPUTS, f"give one of {', '.join(OUTPUTS)}"),
    "webhook_loopback": (lambda s: s.webhook_loopback in ("auto", "yes", "no"), "give auto, yes or no"),
    "webhook_ports": (lambda s: all(port.isdecimal() for port in s.webhook_ports), "give port numbers"),
    "attempts": (lambda s: s.attempts >= 1, "give 1 or more"),
    "lease": (lambda s: s.lease > 0, "give more than 0"),
    "keep": (lambda s: s.keep > 0, "give more than 0"),
    "creates": (lambda s: s.creates >= 1, "give 1 or more"),
    "calls": (lambda s: s.calls >= 1, "give 1 or more"),
    "token": (
        lambda s: len(s.token) >= TOKEN_LENGTH or (s.only_here and not s.token),
        f"listening beyond this machine takes a token, and one has {TOKEN_LENGTH} characters or more; "
        "set a random one (openssl rand -hex 20), or listen on 127.0.0.1",
    ),
    "worker_token": (
        lambda s: not s.worker_token or (len(s.worker_token) >= TOKEN_LENGTH and s.worker_token != s.token),
        f"give {TOKEN_LENGTH} random characters or more, other ones than in {PREFIX}TOKEN",
    ),
}

"""What a user may name as a fine-tune, and where that is: a table of forms, each leading to files to ask for.

    owner/model, owner/model:VERSION, replicate.com/…     a trained model's weights on Replicate
    owner/repo, owner/repo/FILE, huggingface.co/…         a file in a repository on Hugging Face, or what it is about
    civitai.com/models/…, /model-versions/…, /api/download/models/…
    http(s)://…                                           a tar, a zip or a .safetensors file anywhere
    data:…                                                the same, inline
    a path                                                where the caller allows it

SDXL_REPLICATE_ENDPOINT, HF_ENDPOINT and SDXL_CIVITAI_ENDPOINT name other servers for the three services; what the
operator names so may lie in a private network, as may SDXL_OWN_FILES (network.py). All else must be public, unless
SDXL_PRIVATE_INPUTS is 1.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote

from errors import WeightsError
from fetch.answers import Item, shown
from fetch.network import is_own
from fetch.repository import ADAPTER, choose, goal_of, with_config

ACCEPTED = (
    "send an http(s) URL of a .safetensors file or a tar, owner/model (Replicate), owner/repo or owner/repo/FILE "
    "(Hugging Face), or a civitai.com model page"
)
PAYLOADS = (".safetensors", ".tar", ".tar.gz", ".tgz", ".zip", ".pti")
Known = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """Who asks, at each service; the names are those of the inputs without `_api_token`, hf for huggingface."""

    huggingface: str | None = field(default=None, repr=False)
    civitai: str | None = field(default=None, repr=False)
    replicate: str | None = field(default=None, repr=False)

    def digest(self) -> str:
        """What tells one asker from another without keeping a token."""
        return sha256(repr((self.huggingface, self.civitai, self.replicate)).encode()).hexdigest()


@dataclass(frozen=True)
class Remote:
    """One file of a fine-tune on another machine.

    shown     how errors, logs and picture metadata name it: a form that is accepted again, without any secret
    token     the input that lets a reader in, or None where there is none
    private   the operator chose the server: private addresses are reached, and the environment's proxies apply
    believed  a digest that the server states is taken as the content's name; elsewhere it could name a file
              that the asker may not read
    name      the file's name without its ending, or "": the server may state one
    goal      what it is called in the entry, for what belongs to another file
    learned   its address was learned with a token, which is not sent to it
    """

    url: str
    shown: str
    token: str | None = None
    headers: Known = field(default_factory=dict, repr=False)
    private: bool = False
    believed: bool = False
    sha256: str | None = None
    name: str = ""
    goal: str = ""
    learned: bool = False

    def item(self, path: Path) -> Item:
        """To be fetched to a path."""
        return Item(self.url, path, sha256=self.sha256, token=self.token, label=self.shown)


Ask = Callable[[Remote], Any]  # the JSON that a server answers


@dataclass(frozen=True)
class Plan:
    """One way to understand a source. `absent` are the answers by which a server says that it does not know it."""

    find: Callable[[Ask], tuple[Remote, ...]]
    absent: frozenset[int] = frozenset({404})


@dataclass(frozen=True)
class Local:
    path: Path


@dataclass(frozen=True)
class Inline:
    url: str = field(repr=False)


@dataclass(frozen=True)
class Service:
    """A site with an API of its own."""

    host: str
    variable: str  # the environment's way to name another server
    token: str  # the input that takes a token for it
    user: str  # the field of Tokens

    def remote(self, path: str, tokens: Tokens, *, shown: str, **known: Any) -> Remote:
        return Remote(
            f"{self.endpoint}{path}",
            shown=f"{self.host}/{shown}",
            token=self.token,
            headers=_bearer(getattr(tokens, self.user), self.token),
            private=bool(os.environ.get(self.variable)) or _private_inputs(),
            believed=True,
            **known,
        )

    @property
    def endpoint(self) -> str:
        return (os.environ.get(self.variable) or f"https://{self.host}").rstrip("/")


REPLICATE = Service("replicate.com", "SDXL_REPLICATE_ENDPOINT", "replicate_api_token", "replicate")
HUB = Service("huggingface.co", "HF_ENDPOINT", "hf_api_token", "huggingface")
CIVITAI = Service("civitai.com", "SDXL_CIVITAI_ENDPOINT", "civitai_api_token", "civitai")


def understood(
    source: str, *, tokens: Tokens, first: Literal["replicate", "huggingface"], local: bool | Collection[Path]
) -> Local | Inline | tuple[Plan, ...]:
    """Where a source is, or the ways to find out, in the order to try them. WeightsError: it is no source at all."""
    source = source.strip()
    if source[:5].lower() == "data:":
        return Inline(source)
    if local and (path := _allowed_path(source, local)):
        return Local(path)
    for form, find in FORMS:
        if match := re.fullmatch(form, source, re.ASCII):
            return (Plan(partial(find, match.groupdict(), tokens)),)
    if re.fullmatch(f"{OWNER}/{NAME}", source, re.ASCII) and not source.lower().endswith(PAYLOADS):
        return _either(source, tokens, first)
    if re.match(r"[/~.\\]|[A-Za-z]:\\|file:", source) or source.lower().endswith(PAYLOADS):
        raise WeightsError(f"{_cut(source)} is a path, and paths are read on the command line only; send a URL")
    raise WeightsError(f"{_cut(source)} names no fine-tune; {ACCEPTED}")


def described(source: str) -> str:
    """A source for an error that has nothing better: no query, no password, not a megabyte of it."""
    source = source.strip()
    return f"data:... ({len(source)} characters)" if source[:5].lower() == "data:" else _cut(source)


def _cut(source: str) -> str:
    plain = shown(source)
    return repr(plain if len(plain) <= 80 else f"{plain[:77]}...")


def _allowed_path(source: str, local: bool | Collection[Path]) -> Path | None:
    """The path that a source names if the caller lets it be read; what is not there may still be owner/model."""
    try:
        path = Path(source).expanduser().resolve()
        there = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return None
    if isinstance(local, bool):
        if not there and re.match(r"[/~.]", source):
            raise WeightsError(f"{_cut(source)} does not exist; check the path")
        return path if there else None
    return path if there and path in {each.resolve() for each in local} else None


def _private_inputs() -> bool:
    return os.environ.get("SDXL_PRIVATE_INPUTS") == "1"


def _bearer(token: str | None, name: str) -> dict[str, str]:
    token = (token or "").strip()
    if not token:
        return {}
    if not re.fullmatch(r"[!-~]+", token):  # `requests` would show it in its error
        raise WeightsError(f"{name} has characters that no token has; copy it again")
    return {"Authorization": f"Bearer {token}"}


def stem(name: str) -> str:
    """ "TOK" for TOK.safetensors; "" for what has no ending of a weights file."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".safetensors", ".pti") else ""


def _plain(match: Known, _: Tokens, __: Ask) -> tuple[Remote, ...]:
    url = match["url"]
    name = stem(unquote(url.partition("?")[0].partition("#")[0]))
    return (Remote(url, shown=shown(url)[:200], private=_private_inputs() or is_own(url), name=name),)


def _replicate(match: Known, tokens: Tokens, _: Ask) -> tuple[Remote, ...]:
    path = f"{match['owner']}/{match['name']}"
    if match.get("version"):
        path += f"/versions/{match['version']}"
    return (REPLICATE.remote(f"/{path}/_weights", tokens, shown=path),)


def _hub(match: Known, tokens: Tokens, ask: Ask) -> tuple[Remote, ...]:
    """The file that is named, or the one that a fine-tune's repository is about and its embeddings."""
    repo = f"{match['owner']}/{match['name']}"
    revision, file = unquote(match.get("revision") or ""), unquote(match.get("file") or "").strip("/")
    if ".." in (*file.split("/"), revision):
        raise WeightsError(f"{_cut(f'{repo}/{file}')} names no file of a repository; send owner/repo/FILE")
    named = (file and match.get("way") != "tree") or file.lower().endswith(PAYLOADS)
    if named and PurePosixPath(file).name != ADAPTER:
        return (_hub_file(repo, revision or "main", file, tokens),)
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    about = ask(HUB.remote(f"/api/models/{repo}{at}", tokens, shown=repo))
    commit = about.get("sha") if isinstance(about, dict) else None
    siblings = about.get("siblings") if isinstance(about, dict) else None
    names = [str(each.get("rfilename")) for each in siblings or [] if isinstance(each, dict)]
    if named:
        chosen = with_config(file, names)
    else:
        chosen = choose(f"huggingface.co/{repo}", [name for name in names if not file or name.startswith(f"{file}/")])
    main, *more = (partial(_hub_file, repo, str(commit or revision or "main"), name, tokens) for name in chosen)
    return (main(), *(each(goal=goal_of(name)) for each, name in zip(more, chosen[1:], strict=True)))


def _hub_file(repo: str, revision: str, file: str, tokens: Tokens, *, goal: str = "") -> Remote:
    path = f"{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"
    return HUB.remote(f"/{path}", tokens, shown=path, name=stem(file), goal=goal)


def _civitai(match: Known, tokens: Tokens, ask: Ask) -> tuple[Remote, ...]:
    """The primary file of the version that is named, or of a model's newest."""
    query = parse_qs(match.get("query") or "")
    if not tokens.civitai and "token" in query:  # as CivitAI's own download links carry it
        tokens = Tokens(civitai=query["token"][0])
    version = match.get("version") or next(iter(query.get("modelVersionId", [])), "")
    if version and not version.isdecimal():
        raise WeightsError(f"modelVersionId={_cut(version)} is no number; copy the address of the model's page again")
    page = f"model-versions/{version}" if version else f"models/{match['model']}"
    about = ask(CIVITAI.remote(f"/api/v1/{page}", tokens, shown=page))
    try:
        if not version:
            about = about["modelVersions"][0]
            page = f"model-versions/{int(about['id'])}"
        files = [each for each in about["files"] if each.get("primary")] or [
            each for each in about["files"] if each.get("type") == "Model"
        ]
        file = files[0]
        url, name = str(file["downloadUrl"]), str(file.get("name") or "")
        digest = str((file.get("hashes") or {}).get("SHA256") or "").lower()
        pickle = (file.get("metadata") or {}).get("format") == "PickleTensor"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"civitai.com/{page} states no file to download; name another version") from error
    if pickle:
        raise WeightsError(f"civitai.com/{page} is a pickle, which can run code; name another version")
    known: Known = {"sha256": digest if re.fullmatch("[0-9a-f]{64}", digest) else None, "name": stem(name)}
    if url.startswith(f"{CIVITAI.endpoint}/"):  # else the token is not for it
        return (CIVITAI.remote(url.removeprefix(CIVITAI.endpoint), tokens, shown=page, **known),)
    known = {**known, "shown": f"civitai.com/{page}", "token": CIVITAI.token, "learned": bool(tokens.civitai)}
    return (Remote(url, private=_private_inputs(), **known),)


def _either(source: str, tokens: Tokens, first: str) -> tuple[Plan, ...]:
    """owner/name is both services' form; each is asked only once the other does not know it."""
    match = dict(zip(("owner", "name"), source.split("/"), strict=True))
    # Hugging Face answers 401 for what does not exist, as long as nobody has signed in
    absent = frozenset({404} if tokens.huggingface else {401, 404})
    plans = (Plan(partial(_replicate, match, tokens)), Plan(partial(_hub, match, tokens), absent))
    return plans if first == "replicate" else plans[::-1]


OWNER, NAME = r"(?P<owner>\w[\w.-]*)", r"(?P<name>\w[\w.-]*)"
ON, REST = r"(?i:(?:https?://)?(?:www\.)?{})".format, r"/?(?:[?#].*)?"
FILE = r"(?P<file>[^?#]+\.(?i:safetensors|tar|tar\.gz|tgz|zip))"
QUERY = r"(?:\?(?P<query>[^#]*))?(?:#.*)?"
VERSION = r"(?:(?::|/versions/|/)(?P<version>[0-9a-f]{64}))"
# The first form that fits a whole source decides; `_either` comes after them, for owner/name alone
FORMS: tuple[tuple[str, Callable[[Known, Tokens, Ask], tuple[Remote, ...]]], ...] = (
    (rf"{ON('replicate.com')}/{OWNER}/{NAME}{VERSION}?(?:/_weights)?{REST}", _replicate),
    (rf"{OWNER}/{NAME}{VERSION}", _replicate),
    (
        rf"{ON('(?:huggingface|hf).co')}/{OWNER}/{NAME}"
        rf"(?:/(?P<way>resolve|blob|raw|tree)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+?))?)?{REST}",
        _hub,
    ),
    (rf"{ON('(?:huggingface|hf).co')}/{OWNER}/{NAME}/{FILE}{REST}", _hub),
    (rf"{ON('civitai.com')}/models/(?P<model>\d+)(?:/[^?#]*)?{QUERY}", _civitai),
    (rf"{ON('civitai.com')}/(?:api/download/models|model-versions)/(?P<version>\d+)/?{QUERY}", _civitai),
    (r"(?P<url>(?i:https?)://.+)", _plain),
    (rf"(?![\w.-]+\.com/){OWNER}/{NAME}/{FILE}", _hub),
)

"""From the name of a fine-tune to its files on this disk: ask where it is, ask whether it has changed, fetch it.

What a server says of a file (a digest; or its address, version mark and size) is remembered with the content that
came, so that the question costs one byte while the answer stays the same. Whoever asks with other tokens is asked
about at the server again; for TRUSTED seconds the same question by the same asker is not. Offline, an entry is given to
whom it was given before, and to everybody where no token was sent for it.
"""

import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from errors import WeightsError
from fetch.answers import Get, Item, Manner, Refused, Stated, Stop, ask, persistently, probe, shown
from fetch.archive import BARE, MEMBERS, Target, kind_of, unpack
from fetch.disk import digest_of
from fetch.download import fetch
from fetch.inline import decoded
from fetch.network import at_most, getter
from fetch.sources import Inline, Local, Plan, Remote, Tokens, described, stem, understood
from fetch.store import Entry, Found, Store
from fetch.zip import reading

TRUSTED = 60.0  # seconds
ANSWER = 8 << 20  # bytes of an API's answer
ANSWER_TIME = 30.0  # seconds for it

Obtained = tuple[Entry, Found]

# By the digest of store, source and asker: when, and what was found. It does not grow without end: each download drops
# what is older than TRUSTED.
_recent: dict[str, tuple[float, Found]] = {}


@dataclass(frozen=True)
class Obtaining:
    """One call: where to keep, how to fetch, when to stop, how many bytes at most."""

    store: Store
    manner: Manner
    stop: Stop
    limit: int
    held: ExitStack

    def target(self, folder: Path, shown: str, token: str | None = None) -> Target:
        return Target(folder / "entry" / "files", shown, self.limit, self.store.room, self.stop, token)

    def get(self, remote: Remote) -> Get:
        return getter(
            allow_private=remote.private,
            headers=remote.headers,
            timeout=(10, self.manner.patience.window),
            stop=self.stop,
        )


def obtain(
    source: str,
    *,
    store: Store,
    limit: int,
    tokens: Tokens,
    first: Literal["replicate", "huggingface"],
    stop: Stop,
    manner: Manner,
    local: bool | Collection[Path],
    offline: bool,
    held: ExitStack,
) -> Obtained:
    """A source's files, kept while `held` is open. Stopped once `stop` is set, WeightsError for all else."""
    own = Stop()
    call = Obtaining(store, manner, own, limit, held)
    try:
        with stop.cutting(own.set):
            where = understood(source, tokens=tokens, first=first, local=local)
            if isinstance(where, Local):
                return _from_disk(where.path, call)
            if isinstance(where, Inline):
                return _from_inline(where.url, call)
            question = _digest("source", source.strip(), first if len(where) > 1 else "")
            if offline:
                return _remembered(question, source, tokens, call)
            return _from_afar(where, question, source, tokens, call)
    except TimeoutError as error:
        raise WeightsError(
            f"{described(source)} takes longer than {manner.deadline:g} s; try again, or use a faster server"
        ) from error


def _remembered(question: str, source: str, tokens: Tokens, call: Obtaining) -> Obtained:
    """What this very source was the last time, for everybody or for this asker; no request is made."""
    for asker in ("", tokens.digest()):
        found = call.store.known(_digest("asked", question, asker))
        if found and (entry := call.store.hold(found.key, call.held)):
            return entry, found
    raise WeightsError(f"{described(source)} is not complete in the cache and SDXL_OFFLINE is set; unset it once")


def _from_afar(plans: Sequence[Plan], question: str, source: str, tokens: Tokens, call: Obtaining) -> Obtained:
    asker = _digest(str(call.store.root), question, tokens.digest())
    when, found = _recent.get(asker, (-TRUSTED, None))
    if found and time.monotonic() - when < TRUSTED and (entry := call.store.hold(found.key, call.held)):
        return entry, found
    with at_most(call.manner.deadline, call.stop.set):
        remotes, told = _located(plans, source, call)
        if (size := sum(each.size for each in told)) > call.limit:
            raise WeightsError(
                f"{remotes[0].shown} has {size} bytes; at most {call.limit} are allowed (SDXL_FINETUNE_LIMIT_GB)"
            )
        entry = _kept(remotes, told, call)
    found = Found(entry.key, (stem(told[0].name) or remotes[0].name) if entry.bare else "", remotes[0].shown)
    let_in = tokens.digest() if any(each.headers or each.learned for each in remotes) else ""
    call.store.remember({_digest("asked", question, let_in): found})
    now = time.monotonic()
    for old in [each for each, (when, _) in _recent.copy().items() if now - when >= TRUSTED]:
        _recent.pop(old, None)
    _recent[asker] = (now, found)
    return entry, found


def _located(plans: Sequence[Plan], source: str, call: Obtaining) -> tuple[Sequence[Remote], list[Stated]]:
    """The files of the first plan whose server knows them, and what it says of them."""
    for plan in plans:
        try:
            remotes = plan.find(partial(_answer, call=call))
            items = [each.item(Path()) for each in remotes]  # nothing is written yet
            get = call.get(remotes[0])  # several files are of one service
            return remotes, [probe(get, item, call.manner.patience, call.stop) for item in items]
        except Refused as error:
            if len(plans) == 1 or error.status not in plan.absent:
                raise
    raise WeightsError(
        f"{source.strip()!r} is neither a model with weights on Replicate nor a repository on Hugging Face; check the "
        "name, and set replicate_api_token or hf_api_token if it is private"
    )


def _answer(remote: Remote, *, call: Obtaining) -> Any:
    """The JSON at an address, of bounded size and in bounded time."""
    get, item = call.get(remote), remote.item(Path())

    def once() -> bytes:
        with ask(get, item, {}) as response:
            cut = response.raw.shutdown
            with call.stop.cutting(cut), at_most(ANSWER_TIME, cut):
                return bytes(response.raw.read(ANSWER + 1))

    body = persistently(once, item.shown, call.manner.patience, call.stop)
    try:
        if len(body) <= ANSWER:
            return json.loads(body)
    except (ValueError, RecursionError):
        pass
    raise WeightsError(f"{item.shown} gives an answer that is no JSON or is too long; try again or send the file's URL")


def _kept(remotes: Sequence[Remote], told: Sequence[Stated], call: Obtaining) -> Entry:
    """The entry that holds these files: from the store, or fetched into it."""

    def present(mark: str | None) -> Entry | None:
        found = call.store.known(mark) if mark else None
        return call.store.hold(found.key, call.held) if found else None

    mark = _mark(remotes, told)
    if entry := present(mark):
        return entry
    with call.store.claim(mark or secrets.token_hex(32), call.stop) as folder:
        if entry := present(mark):  # another process was at it
            return entry
        items = [replace(each.item(folder / f"came-{n}"), told=told[n]) for n, each in enumerate(remotes)]
        told = fetch(
            items,
            call.get(remotes[0]),
            label="fine-tune",
            manner=replace(call.manner, limit=call.limit),
            stop=call.stop,
            room=partial(call.store.room, counted=True),
        )
        entry = _unpacked(items, remotes, told, folder, call)
        if came := _mark(remotes, told):  # it may have changed since it was asked for
            call.store.remember({came: Found(entry.key, "", remotes[0].shown)})  # before the next one is let in
        return entry


def _unpacked(
    items: Sequence[Item], remotes: Sequence[Remote], told: Sequence[Stated], folder: Path, call: Obtaining
) -> Entry:
    verified, _, digest = told[0].digest.partition(":")
    key = digest if verified == "sha256" and len(items) == 1 else _content([each.path for each in items], call.stop)
    target = call.target(folder, remotes[0].shown, remotes[0].token)
    bare = unpack(items[0].path, target)
    for item, goal in zip(items[1:], [PurePosixPath(each.goal) for each in remotes[1:]], strict=True):
        beside = call.target(folder, item.shown, remotes[0].token)
        if goal.suffix == ".safetensors" and kind_of(item.path, beside) != "safetensors":
            raise WeightsError(f"{item.shown} is no .safetensors file; name the one file that you want")
        with item.path.open("rb") as file:
            beside.write(goal, item.path.stat().st_size, reading(file))
    return call.store.add(folder, key, call.held, bare=bare)


def _content(paths: Sequence[Path], stop: Stop) -> str:
    if len(paths) == 1:
        return digest_of(paths[0], stop=stop).removeprefix("sha256:")
    return _digest(*(digest_of(path, stop=stop) for path in paths))


def _mark(remotes: Sequence[Remote], told: Sequence[Stated]) -> str | None:
    """What tells this content from all other, without having it: None where the server says too little.

    A digest alone will do from a server that is believed; from another it marks a version of its own file only.
    The query is left out, signed URLs have a new one each time; not where a date is all that marks a version, which
    another file of the same address may share.
    """
    marks = []
    for remote, each in zip(remotes, told, strict=True):
        digest = f"sha256:{remote.sha256}" if remote.sha256 else each.digest
        if not (digest or each.validator):
            return None
        believed = remote.believed and digest
        sure = digest or each.validator.startswith('"')
        address = shown(remote.url) if sure else remote.url
        marks.append(digest if believed else f"{address}\0{digest or each.validator}\0{each.size}")
    return _digest("content", *marks)


def _from_inline(url: str, call: Obtaining) -> Obtained:
    allowed = f"at most {call.limit} bytes are allowed (SDXL_FINETUNE_LIMIT_GB)"
    if len(url) > 2 * call.limit + 1000:  # base64 takes 4/3 of its content, line breaks a little more
        raise WeightsError(f"{described(url)} is too long: {allowed}")
    try:
        data = decoded(url)
    except ValueError as error:
        raise WeightsError(f"{described(url)} is no valid data: URL ({error}); send data:;base64,...") from error
    label, key = f"data:... ({len(data)} bytes)", sha256(data).hexdigest()
    entry = call.store.hold(key, call.held)
    if entry is None:
        if len(data) > call.limit:
            raise WeightsError(f"{label} is too long: {allowed}")
        with call.store.claim(key, call.stop) as folder:
            call.store.room(len(data))
            (folder / "came-0").write_bytes(data)
            bare = unpack(folder / "came-0", call.target(folder, label))
            entry = call.store.add(folder, key, call.held, bare=bare)
    return entry, Found(key, "", label)


def _from_disk(path: Path, call: Obtaining) -> Obtained:
    """A copy in the store of what is at a path, so that nothing changes under whoever uses it."""
    label = str(path)
    try:
        files = _files_below(path, call.target(Path(), label)) if path.is_dir() else {PurePosixPath(BARE): path}
        facts = [(goal, file.stat()) for goal, file in files.items()]
        mark = _digest("path", label, *(f"{goal} {fact.st_size} {fact.st_mtime_ns}" for goal, fact in facts))
        found = call.store.known(mark)
        if found and (entry := call.store.hold(found.key, call.held)):
            return entry, found
        with call.store.claim(mark, call.stop) as folder:
            target = call.target(folder, label)
            bare = not path.is_dir() and kind_of(path, target) == "safetensors"
            if path.is_dir() or bare:
                key = _copied(files, target, call.stop)
            else:
                unpack(path, target)
                key = _content([path], call.stop)
            entry = call.store.add(folder, key, call.held, bare=bare)
    except (OSError, EOFError) as error:
        raise WeightsError(f"{label} cannot be read: {error}; check its owner and that nobody writes it") from error
    found = Found(entry.key, stem(path.name) if bare else "", label)
    call.store.remember({mark: found})
    return entry, found


def _files_below(folder: Path, target: Target) -> dict[PurePosixPath, Path]:
    """The files of a fine-tune in a folder, by where they go."""
    files = dict[PurePosixPath, Path]()
    for count, each in enumerate(folder.rglob("*")):
        if count == MEMBERS:
            raise WeightsError(f"{folder} holds more than {MEMBERS} files; name the folder of the weights")
        if each.is_file() and (goal := target.wanted(each.relative_to(folder).as_posix())):
            if goal in files:
                raise WeightsError(f"{folder} holds two files {str(goal)!r} but for the case; remove one")
            files[goal] = each
    target.require_weights(files, "name the folder of the weights")
    return dict(sorted(files.items()))


def _copied(files: Mapping[PurePosixPath, Path], target: Target, stop: Stop) -> str:
    """Copies files and returns their key: that of its content for one alone, of names and contents for a folder."""
    for goal, path in files.items():
        with path.open("rb") as file:
            target.write(goal, path.stat().st_size, reading(file))
    copies = {goal: target.folder / goal for goal in files}
    if list(files) == [PurePosixPath(BARE)]:
        return _content(list(copies.values()), stop)
    return _digest(*(f"{goal} {digest_of(copy, stop=stop)}" for goal, copy in copies.items()))


def _digest(*words: str) -> str:
    return sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()

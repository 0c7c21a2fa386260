"""What a job's inputs become before coglet sees them: no address that anybody chose is left for it to fetch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from errors import SDXLError
from fetch.inputs import FETCHED, Source, Stop, file_name
from gateway.agent.link import AwayError, GoneError, Link, RefusedError
from gateway.agent.listener import Listener
from gateway.jobs import Json
from local.modes import Mode

OWN = r"{}/(?:v1/)?v1/files/(?P<id>[A-Za-z0-9_-]{{16,}})(?:/(?P<name>[^/?#]*))?(?:[?#].*)?"
PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class InputProblemError(Exception):
    """An input cannot be used; the message is for who asked."""


@dataclass(frozen=True)
class Inputs:
    """Makes the inputs of a task ready. base: the gateway's own URLs begin so; fetch: gets all other files."""

    link: Link
    listener: Listener
    bases: tuple[str, ...]
    fetch: Source

    def ready(self, given: Json, properties: Json, folder: Path, stop: Stop) -> Json:
        """The inputs for coglet; their files lie in folder. InputProblemError, or what stop raises."""
        count = iter(range(10**6))

        def one(name: str, value: str, is_file: bool) -> str:
            if is_file:
                return self._file(name, value, folder / str(next(count)), stop)
            if own := self._own(value):  # weights: the package fetches them, and knows them again the next time
                return self.listener.offer(own["id"], _safe(unquote(own["name"] or "")))
            return value

        return {name: _each(value, name, is_file_input(properties.get(name, {})), one) for name, value in given.items()}

    def _own(self, value: str) -> re.Match[str] | None:
        matches = (re.fullmatch(OWN.format(re.escape(base)), value.strip()) for base in self.bases)
        return next((match for match in matches if match), None)

    def _file(self, name: str, value: str, folder: Path, stop: Stop) -> str:
        """The URL for coglet of a file that was sent or named."""
        folder.mkdir()
        try:
            if own := self._own(value):
                path = self._stored(own["id"], unquote(own["name"] or ""), folder, stop)
            elif FETCHED.match(value):
                path = folder / (_safe(file_name(value.lstrip())) or "file")
                with path.open("wb") as file:
                    self.fetch.save(value.lstrip(), file, stop)
            else:
                raise InputProblemError(f"{name}: {value[:80]!r} is no file; send an http(s) URL or a data: URL.")
        except (SDXLError, RefusedError) as error:
            raise InputProblemError(f"{name}: {error}") from error
        return self.listener.offer(path, path.name)

    def _stored(self, file_id: str, name: str, folder: Path, stop: Stop) -> Path:
        """A copy of a file of the gateway."""
        with self.link.file(file_id) as answer:
            path = folder / (_safe(name or _stated_name(answer.headers.get("Content-Disposition", ""))) or "file")
            with path.open("wb") as file:
                try:
                    for part in answer.iter_content(2**20):
                        stop.check()
                        file.write(part)
                except (OSError, GoneError) as error:
                    raise AwayError("the gateway went away while a file came") from error
        return path


def is_file_input(schema: Json) -> bool:
    """Whether an input, or each of a list, is a `Path` of Cog's."""
    return "uri" in (schema.get("format"), (schema.get("items") or {}).get("format"))


def properties_of(document: Json, mode: Mode) -> Json:
    """The schemas of the inputs."""
    found: Json = document["components"]["schemas"][mode.component].get("properties", {})
    return found


def _each(value: Any, name: str, is_file: bool, one: Callable[[str, str, bool], str]) -> Any:
    if isinstance(value, str):
        return one(name, value, is_file)
    if isinstance(value, list):
        return [_each(item, f"{name}[{number}]", is_file, one) for number, item in enumerate(value)]
    return value


def _safe(name: str) -> str:
    """A file name with its ending, and nothing in it that means anything to a shell, a path or a URL."""
    return PLAIN.sub("_", urlsplit(name).path.rpartition("/")[2])[-100:].lstrip(".-")


def _stated_name(disposition: str) -> str:
    message = Message()
    message["Content-Disposition"] = disposition
    return message.get_filename() or ""

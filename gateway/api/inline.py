"""data: URLs among inputs become files, so that rows stay small; small ones stay as they are."""

from __future__ import annotations

import hashlib
import mimetypes
import re
import time
from dataclasses import dataclass
from typing import Any

from fetch.inline import decoded
from gateway import blobs, shapes
from gateway.checks import Checker
from gateway.ids import derived_id
from gateway.jobs import File, Json
from gateway.problems import invalid
from gateway.site import Site

SMALL = 8 * 1024  # characters
MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")
PLAIN_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class Inline:
    """For the inputs of one account's job."""

    site: Site
    account: str

    def stored(self, given: Json, checker: Checker) -> Json:
        """The inputs with URLs of files in place of large data: URLs. Problem for one that is damaged."""
        return {
            name: self._each(value, f"input.{name}") if checker.is_file(name) else value
            for name, value in given.items()
        }

    def _each(self, value: Any, place: str) -> Any:
        if isinstance(value, list):
            return [self._each(item, f"{place}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, str) or len(value) <= SMALL or value.lstrip()[:5].lower() != "data:":
            return value
        return self._file(value.lstrip(), place)

    def _file(self, url: str, place: str) -> str:
        """The same bytes are the same file: jobs with equal weights then follow each other without a change."""
        try:
            data = decoded(url)
        except ValueError as error:
            raise invalid(f"- {place}: Is no data: URL that can be read ({error})") from error
        site, now = self.site, time.time()
        stated = url[5:205].partition(",")[0].partition(";")[0].lower()
        kind = stated if MEDIA_TYPE.fullmatch(stated) else PLAIN_TYPE
        name = f"input{mimetypes.guess_extension(kind) or ''}"
        file_id = derived_id(site.key, "inline", self.account, kind, hashlib.sha256(data).hexdigest())
        kept = site.store.get_file(file_id)
        written = blobs.put(site.blobs, file_id, [data])
        file = File(
            file_id, self.account, name, kind, written.size, written.sha256, written.md5, now, now + site.settings.keep
        )
        if kept is None or kept.expires_at is not None:
            site.store.put_file(file)
        return shapes.file_url(site, file)

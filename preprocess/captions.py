"""The captions that came with pictures, matched by file name and never by order.

For each picture the first of: NAME.txt beside it; its row in a *caption*.csv; its line in a metadata.jsonl. What cannot
be matched for sure is reported and not used.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from preprocess.archive import Member
from preprocess.job import Job

# The columns of a table, as cog-sdxl and Hugging Face call them
FILES = ("image_file", "file_name", "filename", "image_path", "image", "file")
TEXTS = ("caption", "text")
DELIMITERS = ",;\t|"
METADATA = "metadata.jsonl"
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
LONGEST = 2000  # characters: several times what any text encoder reads
TOLD = 20  # lines about one file; the rest is counted


@dataclass(frozen=True)
class Row:
    """What a table says: the caption of a file, and where it says so."""

    file: str
    caption: str
    where: str


def written(texts: Sequence[Member], names: Sequence[str], used: Collection[str], job: Job) -> dict[str, str]:
    """The captions that came with pictures, as they were written, by the pictures' paths in the archive.

    names  whatever a caption may be meant for: a picture that cannot be used must not leave its own to another
    used   those that are trained on
    """
    index, found = Index.of(names), dict[str, str]()
    notes, tables, lines = sorted_out(texts, job)
    for member in notes:
        beside = [name for name in index.beside(member.inside) if name in used]
        if not beside:
            job.skip(member.name, "is a caption for no image that is used")
        for name in beside:
            _put(found, name, clean(_text(member, job)), member.name, job)
    for read, members in ((_csv_rows, tables), (_json_rows, lines)):
        given = dict[str, str]()  # of this kind: it comes after what was found before
        for member in members:
            _match(read(member, job), member, index, used, given, job)
        found = given | found
    return found


def sorted_out(texts: Sequence[Member], job: Job) -> tuple[list[Member], list[Member], list[Member]]:
    """The notes, the tables and the lines among the texts."""
    kinds: dict[str, list[Member]] = {".txt": [], ".csv": [], ".jsonl": []}
    for member in texts:
        name, ending = member.inside.name.lower(), member.inside.suffix.lower()
        if ending == ".csv" and "caption" not in name and name != "metadata.csv":
            job.skip(member.name, "is no table of captions; call it caption.csv")
        elif ending == ".jsonl" and name != METADATA:
            job.skip(member.name, f"is no table of captions; call it {METADATA}")
        else:
            kinds[ending].append(member)
    return kinds[".txt"], kinds[".csv"], kinds[".jsonl"]


def clean(text: str) -> str:
    """A caption as one line, without what cannot be seen."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:LONGEST].rstrip()


@dataclass(frozen=True)
class Index:
    """Pictures by what can name them: spelling of letters, in Unicode and in case, does not count."""

    by_path: dict[PurePosixPath, list[str]] = field(default_factory=dict)
    by_name: dict[str, list[str]] = field(default_factory=dict)
    by_stem: dict[str, list[str]] = field(default_factory=dict)
    by_place: dict[PurePosixPath, list[str]] = field(default_factory=dict)  # a path without its ending

    @classmethod
    def of(cls, names: Iterable[str]) -> Index:
        index = cls()
        for name in names:
            path = same(name)
            index.by_path.setdefault(path, []).append(name)
            index.by_name.setdefault(path.name, []).append(name)
            index.by_stem.setdefault(path.stem, []).append(name)
            index.by_place.setdefault(path.with_suffix(""), []).append(name)
        return index

    def beside(self, note: PurePosixPath) -> list[str]:
        """The pictures that NAME.txt or NAME.jpg.txt lies beside."""
        place = same(str(note)).with_suffix("")
        return self.by_place.get(place) or self.by_path.get(place, [])

    def called(self, file: str, folder: PurePosixPath) -> list[str]:
        """The pictures that a table in a folder may mean: one, where it is sure."""
        path = same(file)
        places = (same(str(folder / file)), path)
        exact = next((self.by_path[place] for place in places if place in self.by_path), None)
        return exact or self.by_name.get(path.name) or self.by_stem.get(path.stem) or self.by_stem.get(path.name, [])


def same(name: str) -> PurePosixPath:
    """A path in the one spelling in which names are compared."""
    plain = unicodedata.normalize("NFC", name.strip().replace("\\", "/")).casefold()
    return PurePosixPath(*(part for part in plain.split("/") if part not in ("", ".")))


def _match(
    rows: Iterable[Row], member: Member, index: Index, used: Collection[str], given: dict[str, str], job: Job
) -> None:
    """The rows of one table into what is known by tables; why each of the others is not used."""
    amiss = list[str]()
    for row in rows:
        names, line = index.called(row.file, member.inside.parent), f"{row.where} is for {row.file[:80]!r}"
        if len(names) > 1:
            amiss.append(f"{line}, which may be {' or '.join(map(repr, names[:3]))}; give its path")
        elif not names or names[0] not in used:
            amiss.append(f"{line}, which is {'no image that is used' if names else 'not in the archive'}")
        elif names[0] in given:
            amiss.append(f"{line}, which has a caption already; the first counts")
        elif text := clean(row.caption):
            given[names[0]] = text
    for line in amiss[:TOLD]:
        job.skip(member.name, line)
    if len(amiss) > TOLD:
        job.skip(member.name, f"has {len(amiss) - TOLD} more rows that are not used")


def _put(found: dict[str, str], name: str, caption: str, where: str, job: Job) -> None:
    if name in found:
        job.skip(where, f"is a second caption for {name!r}; the first counts")
    elif caption:
        found[name] = caption


def _text(member: Member, job: Job) -> str:
    """What a file says, in the encodings of spreadsheets too."""
    data = member.path.read_bytes()
    try:
        return data.decode(MARKS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        job.note(f"{member.name!r} is not UTF-8; it was read as Windows-1252")
        return data.decode("cp1252", "replace")


def _csv_rows(member: Member, job: Job) -> Iterator[Row]:
    """The rows of a table, by its header: any order of columns, whichever delimiter makes a header of the line."""
    text = _text(member, job).lstrip("\r\n")
    if text.lower().startswith("sep="):  # which Excel writes and reads
        text = text.partition("\n")[2]
    for delimiter in DELIMITERS:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        with suppress(csv.Error):
            header = [cell.strip().casefold() for cell in next(table, [])]
            file = next((header.index(name) for name in FILES if name in header), None)
            said = next((header.index(name) for name in TEXTS if name in header), None)
            if file is not None and said is not None:
                break
    else:
        job.skip(member.name, "has no header; begin it with the line caption,image_file")
        return
    try:
        for cells in table:
            if len(cells) > max(file, said) and cells[file].strip():
                yield Row(cells[file], cells[said], f"line {table.line_num}")
            elif any(cell.strip() for cell in cells):
                job.skip(member.name, f"line {table.line_num} has no file or no caption")
    except csv.Error as error:
        job.skip(member.name, f"cannot be read beyond line {table.line_num}: {error}")


def _json_rows(member: Member, job: Job) -> Iterator[Row]:
    for number, line in enumerate(_text(member, job).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file = next(entry[name] for name in FILES if name in entry)
            text = next(entry[name] for name in reversed(TEXTS) if name in entry)
        except (ValueError, TypeError, StopIteration, RecursionError):
            job.skip(member.name, f'line {number} is not like {{"file_name": "a.jpg", "text": "a caption"}}')
            continue
        yield Row(str(file), text if isinstance(text, str) else "", f"line {number}")

"""Whatever is sent as an archive of images: its images and captions and nothing else, or one sentence."""

import gzip
import io
import lzma
import resource
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import DatasetError, InputError
from preprocess import archive
from preprocess.archive import Unpacked, unpack
from tests.preparing import left, picture, tarred, zipped

RED, BLUE = picture("red"), picture("blue")
FILES = {
    "set/a/1.png": RED,
    "set/b/1.png": BLUE,
    "IMG_9609.JPG": RED,
    "set/a/1.txt": b"a red thing",
    "Captions.CSV": b"caption,image_file\n",
    "metadata.jsonl": b"",
}
CLUTTER = {
    "__MACOSX/set/._1.png": b"x",
    "set/__MACOSX/2.png": RED,
    "set/a/._1.png": b"x",
    ".DS_Store": b"x",
    "set/Thumbs.db": b"x",
}


def came(tmp_path: Path, body: bytes, filetype: str = "infer", check: Callable[[], None] = lambda: None) -> Unpacked:
    (tmp_path / "payload").write_bytes(body)
    return unpack(tmp_path / "payload", filetype, tmp_path / "out", check=check)


def files_of(unpacked: Unpacked) -> dict[str, bytes]:
    return {member.name: member.path.read_bytes() for member in (*unpacked.images, *unpacked.texts)}


def refused(tmp_path: Path, body: bytes, filetype: str = "infer", kind: type[Exception] = DatasetError) -> str:
    """What is said, in one line that names no path of ours; nothing is left."""
    with pytest.raises(kind) as caught:
        came(tmp_path, body, filetype)
    assert left(tmp_path) == ["payload"]
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize(
    ("pack", "filetype"),
    [
        (zipped, "zip"),
        (lambda files: zipped(files, compression=zipfile.ZIP_DEFLATED), "zip"),
        (tarred, "tar"),
        (lambda files: tarred(files, format=tarfile.PAX_FORMAT), "tar"),
        (lambda files: gzip.compress(tarred(files)), "tar"),
    ],
    ids=["zip", "deflated", "tar", "pax", "tgz"],
)
def test_every_kind(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes], filetype: str, stated: bool) -> None:
    unpacked = came(tmp_path, pack(FILES | CLUTTER), filetype if stated else "infer")
    assert files_of(unpacked) == FILES
    assert unpacked.skipped == ()
    assert [member.name for member in unpacked.images] == ["IMG_9609.JPG", "set/a/1.png", "set/b/1.png"]
    names = {path.name for path in (tmp_path / "out" / "archive").iterdir()}
    assert names == {f"{number:05}{Path(name).suffix.lower()}" for number, name in enumerate(FILES)}


@pytest.mark.parametrize("ending", archive.IMAGES)
def test_every_ending_in_any_case(tmp_path: Path, ending: str) -> None:
    files = {f"a{ending}": RED, f"b{ending.upper()}": BLUE}
    assert files_of(came(tmp_path, zipped(files))) == files


def test_what_else_lies_there_is_reported(tmp_path: Path) -> None:
    unpacked = came(tmp_path, zipped({"a.png": RED, "b.mov": b"x", "c": b"y", "in/d.zip": zipped({"e.png": RED})}))
    assert list(files_of(unpacked)) == ["a.png"]
    assert [name for name, _ in unpacked.skipped] == ["b.mov", "c", "in/d.zip"]
    assert {why for _, why in unpacked.skipped} == {"is no image and no captions, by its ending"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (RED, "is a single image; send a zip"),
        (b"\xff\xd8\xff\xe0", "is a single image"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\xef\xbb\xbf <html>", "is a web page"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; send a zip, or a tar (plain or gzip), of images"),
        (b"Rar!\x1a\x07", "is a RAR archive"),
        (lzma.compress(tarred(FILES)), "is packed with xz"),
        (b"hello", "is no archive"),
        (bytes(4000), "is no archive"),
        (zipped({}), "holds no image; pack .jpg"),
        (tarred({"readme.md": b"x", "a.txt": b"y"}), "holds no image among 2 files, 'a.txt' the first"),
        (zipped(CLUTTER), "holds no image"),
        (zipped(FILES)[:-30], "is a damaged zip archive"),
        (tarred(FILES)[:1500], "is a damaged tar archive"),
        (gzip.compress(tarred(FILES))[:-100], "is a damaged tar.gz archive"),
        (gzip.compress(RED), "is a damaged tar.gz archive"),
    ],
)
def test_what_is_refused_is_said(tmp_path: Path, body: bytes, words: str) -> None:
    assert words in refused(tmp_path, body)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="input_images is no file; send a zip"):
        unpack(tmp_path / "absent", "infer", tmp_path / "out", check=lambda: None)


@pytest.mark.parametrize(
    ("body", "filetype", "words"),
    [
        (zipped(FILES), "tar", "input_images_filetype says tar, and input_images is a zip"),
        (tarred(FILES), "zip", "input_images_filetype says zip, and input_images is a tar"),
        (gzip.compress(tarred(FILES)), "zip", "says zip, and input_images is a tar.gz"),
        (zipped(FILES), "rar", "input_images_filetype is 'rar'; give zip, tar or infer"),
    ],
)
def test_a_stated_type_that_is_not_so(tmp_path: Path, body: bytes, filetype: str, words: str) -> None:
    assert words in refused(tmp_path, body, filetype, InputError)


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "c:/a.png", "..\\a.txt"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_name_leads_outside(tmp_path: Path, name: str, pack: Any) -> None:
    assert "outside of its folder" in refused(tmp_path, pack({"ok.png": RED, name: RED}))


def test_names_that_are_only_odd(tmp_path: Path) -> None:
    files = {"12:30.png": RED, "ü/ß 1.png": BLUE, "x" * 90 + "/" + "y" * 180 + ".png": RED}
    assert files_of(came(tmp_path, tarred(files))) == files


def test_links_and_devices_are_left_alone(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"x{number}.png")
            info.type, info.linkname = kind, str(tmp_path / "victim.png")
            packed.addfile(info)
        info = tarfile.TarInfo("x0.png")  # written through the link by whoever extracts it
        info.size = len(RED)
        packed.addfile(info, io.BytesIO(RED))
    (tmp_path / "victim.png").write_bytes(b"whole")
    assert files_of(came(tmp_path, buffer.getvalue())) == {"x0.png": RED}
    assert (tmp_path / "victim.png").read_bytes() == b"whole"
    buffer = io.BytesIO(zipped({"a.png": RED}))
    with zipfile.ZipFile(buffer, "a") as packed_zip:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed_zip.writestr(link, "/etc/passwd")
    (tmp_path / "second").mkdir()
    assert files_of(came(tmp_path / "second", buffer.getvalue())) == {"a.png": RED}


def test_a_password_is_said(tmp_path: Path) -> None:
    body = bytearray(zipped({"a.png": RED}))
    body[6] |= 1
    body[body.rindex(b"PK\x01\x02") + 8] |= 1
    assert refused(tmp_path, bytes(body)) == "input_images is locked with a password; pack it again without one"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    assert "two members 'a.png'" in refused(tmp_path, tarred({"a.png": RED, "./a.png": BLUE}))
    files = {"a.png": RED, "A.png": BLUE, "a.PNG": BLUE}
    assert files_of(came(tmp_path, zipped(files))) == files


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SLACK", 1 << 20)
    zeros = bytes(8 << 20)
    for name in ("a.png", "a.bin"):
        for body in (
            gzip.compress(tarred({name: zeros})),
            zipped({name: zeros}, compression=zipfile.ZIP_DEFLATED),
            zipped({f"{number}{name}": zeros[: 1 << 19] for number in range(3)}, compression=zipfile.ZIP_DEFLATED),
        )[: 3 if name == "a.png" else 2]:
            assert "unpacks to far more than its own size" in refused(tmp_path, body)


def test_files_that_are_too_large(tmp_path: Path) -> None:
    body = tarred({"a.png": bytes(101 << 20), "b.png": RED, "c.txt": bytes(2 << 20)})
    unpacked = came(tmp_path, body)
    assert list(files_of(unpacked)) == ["b.png"]
    assert dict(unpacked.skipped) == {
        "a.png": "has 101 MiB; at most 100 are read",
        "c.txt": "has 2 MiB; at most 1 are read",
    }


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MEMBERS", 3, "more than 3 members"),
        ("MOST", 2, "more than 2 images"),
        ("DIRECTORY", 100, "too many members"),
        ("TOTAL", 0, "more than 0 GiB"),
        ("RESERVE", 1 << 60, "the disk is full: "),
    ],
)
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str) -> None:
    monkeypatch.setattr(archive, limit, value)
    assert words in refused(tmp_path, zipped(FILES))


def test_a_disk_that_fails(tmp_path: Path) -> None:
    body = zipped({"a.png": RED, "b.bmp": bytes(1 << 20)})
    (tmp_path / "payload").write_bytes(body)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # as a disk that takes no more
    try:
        with pytest.raises(DatasetError, match="cannot be unpacked: File too large; make room"):
            unpack(tmp_path / "payload", "infer", tmp_path / "out", check=lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path) == ["payload"]


def test_it_stops_in_the_middle(tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        came(tmp_path, tarred(FILES), check=check)
    assert left(tmp_path) == ["payload"]


def test_names_of_the_finder(tmp_path: Path) -> None:
    """It writes UTF-8 and does not say so."""
    body = zipped({"gr\u00fc\u00df.png": RED}).replace(b"\x00\x08", b"\x00\x00")
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        assert packed.namelist() != ["gr\u00fc\u00df.png"]
    assert list(files_of(came(tmp_path, body))) == ["gr\u00fc\u00df.png"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    body = gzip.compress(tarred({"a.png": bytes(60 << 20), "b.png": RED}))
    (tmp_path / "payload").write_bytes(body)
    tracemalloc.start()
    unpack(tmp_path / "payload", "infer", tmp_path / "out", check=lambda: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), max_size=5),
    zip_=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_whatever_the_names(tmp_path_factory: pytest.TempPathFactory, names: list[str], zip_: bool) -> None:
    folder = tmp_path_factory.mktemp("names")
    files = {f"{name}.png": RED for name in names if name[0] != "\0"}  # zipfile cannot write such a name
    try:
        unpacked = came(folder, zipped(files) if zip_ else tarred(files))
    except DatasetError as error:
        assert str(error)  # noqa: PT017 - no error is as good
    else:
        assert all(member.name.isprintable() for member in unpacked.images)
        assert {member.path.parent for member in unpacked.images} == {folder / "out" / "archive"}
    assert {path.name for path in folder.iterdir()} <= {"payload", "out"}


WHOLE = (
    tarred({"a.png": RED, "a.txt": b"x"}),
    gzip.compress(tarred({"a.png": RED, "a.txt": b"x"})),
    *(
        zipped({"a.png": RED, "a.txt": b"x" * 99}, compression=method)
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ),
)


@given(at=st.integers(0, 1 << 20), byte=st.binary(min_size=1, max_size=12), kind=st.integers(0, len(WHOLE) - 1))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_damage(tmp_path_factory: pytest.TempPathFactory, at: int, byte: bytes, kind: int) -> None:
    folder = tmp_path_factory.mktemp("damage")
    body = bytearray(WHOLE[kind])
    at %= len(body)
    body[at : at + len(byte)] = byte
    try:
        came(folder, bytes(body))
    except DatasetError as error:
        assert "\n" not in str(error)  # noqa: PT017 - no error is as good
        assert left(folder) == ["payload"]

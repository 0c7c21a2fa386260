"""Whatever comes as a fine-tune: weights below the folder and nothing else, or one sentence, in bounded memory."""

import gzip
import io
import json
import shutil
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import WeightsError
from fetch import archive
from fetch.answers import Stop, Stopped
from fetch.archive import Target, unpack
from fetch.disk import sizes_in
from tests.file_server import tarred, tensors

LORA, OTHER = tensors(), tensors(seed=1)
TAR = tarred({"lora.safetensors": LORA, "special_params.json": b"{}"})


def unpacked(tmp_path: Path, body: bytes, **more: Any) -> dict[str, bytes]:
    """The files that come of a body, by their paths."""
    payload, folder = tmp_path / "payload", tmp_path / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    payload.write_bytes(body)
    target = Target(folder, **{"shown": "that", "limit": 1 << 30, "room": lambda _: None, "stop": Stop(), **more})
    unpack(payload, target)
    return {name: (folder / name).read_bytes() for name in sizes_in(folder)}


def refused(tmp_path: Path, body: bytes, **more: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        unpacked(tmp_path, body, **more)
    assert str(tmp_path) not in str(caught.value)
    return str(caught.value)


def zipped(files: dict[str, bytes], **more: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **more) as packed:
        for name, body in files.items():
            packed.writestr(name, body)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, body: bytes = b"", size: int | None = None, **more: Any) -> bytes:
    """One member of a tar, header and padded body, which may lie about its size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(body) if size is None else size
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)


END = bytes(1024)
FILES = {"a/lora.safetensors": LORA, "b/lora.safetensors": OTHER, "a/x.pti": OTHER, "p.json": b"{}", "note.txt": b"n"}
KEPT = {name: body for name, body in FILES.items() if name != "note.txt"}


@pytest.mark.parametrize(
    "body",
    [tarred(FILES), gzip.compress(tarred(FILES)), zipped(FILES), zipped(FILES, compression=zipfile.ZIP_DEFLATED)],
    ids=["tar", "gzip", "zip", "deflated"],
)
def test_every_kind(tmp_path: Path, body: bytes) -> None:
    assert unpacked(tmp_path, body) == KEPT


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names(tmp_path: Path, format: int) -> None:
    name = f"{'d' * 80}/{'ü' * 40}/x.safetensors"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers={"comment": "global"}) as packed:
        info = tarfile.TarInfo(name)
        info.size = len(LORA)
        packed.addfile(info, io.BytesIO(LORA))
    assert unpacked(tmp_path, buffer.getvalue()) == {name: LORA}


def test_a_file_alone(tmp_path: Path) -> None:
    assert unpacked(tmp_path, LORA) == {"weights.safetensors": LORA}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"\x80\x05}q\x00.", "convert it to .safetensors"),
        (zipped({"archive/data.pkl": b"x", "archive/data/0": b"x"}), "is a pickle"),
        (b"<!DOCTYPE html><html>", "is a web page; give the address"),
        (b"\xef\xbb\xbf  \n<html>", "is a web page"),
        (b'{"error": "not found"}', "is text; give the address"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is text"),
        (b"\x89PNG\r\n\x1a\n", "is of no known kind; send a .safetensors file"),
        (bytes(2000), "no known kind"),
        (LORA[:-1], "is damaged"),
        (LORA + b"x", "is damaged"),
        (LORA[:50], "is damaged"),
        (tarred({"lora.safetensors": LORA[:-1]}), "'lora.safetensors' in that is damaged"),
        (tarred({"x.pti": b"\x80\x02}q\x00."}), "'x.pti' in that is damaged"),
        (tarred({"readme.md": b"x", "x.json": b"{}"}), "holds no .safetensors or .pti file"),
        (tarred({"._x.safetensors": LORA, "__MACOSX/x.safetensors": LORA}), "holds no"),
        (zipped({}), "holds no"),
        (TAR[:3000], "damaged tar"),
        (gzip.compress(TAR)[:-900], "damaged gzip"),
        (gzip.compress(LORA), "damaged gzip"),
        (gzip.compress(b""), "damaged gzip"),
        (b"\x1f\x8bnonsense", "damaged gzip"),
        (zipped({"x.safetensors": LORA})[:-30], "damaged zip"),
        (tarred({"x.json": b"{}"})[:512] + tarred({"x.json": b"{}"})[512:1024] + b"x" * 512, "damaged tar"),
    ],
)
def test_what_is_refused_is_said(tmp_path: Path, body: bytes, words: str) -> None:
    assert words in refused(tmp_path, body)


def test_a_header_that_lies(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    for header in (
        b'{"a": {"data_offsets": ["x", "y"]}}',
        b'{"a": {"data_offsets": [0, 1.5]}}',
        b'{"a": ' + deep,
        b"{}",
    ):
        assert "is damaged" in refused(tmp_path, len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    "name",
    [
        "/x.safetensors",
        "../x.safetensors",
        "a/../../x.json",
        "..\\x.json",
        "C:\\x.json",
        "C:x.json",
        "../x.SAFETENSORS",
    ],
)
@pytest.mark.parametrize(
    "pack", [lambda name, body: member(name, body=body) + END, lambda name, body: zipped({name: body})]
)
def test_no_name_leads_outside(tmp_path: Path, name: str, pack: Any) -> None:
    assert "outside of its folder" in refused(tmp_path, pack(name, LORA))
    assert {path.name for path in tmp_path.iterdir()} == {"payload", "files"}


@pytest.mark.parametrize(
    "name", ["/abs/README.md", "../x.txt", "C:\\notes.txt", "a/../../x", ".", "../__MACOSX/._x.json"]
)
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_what_nobody_wants_may_have_any_name(tmp_path: Path, name: str, pack: Any) -> None:
    assert unpacked(tmp_path, pack({name: b"x", "x.safetensors": LORA})) == {"x.safetensors": LORA}
    assert {path.name for path in tmp_path.iterdir()} == {"payload", "files"}


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_endings_are_kept_in_small_letters(tmp_path: Path, pack: Any) -> None:
    files = {"a/LORA.SafeTensors": LORA, "Emb.PTI": OTHER, "special_params.JSON": b"{}"}
    kept = {"a/LORA.safetensors": LORA, "Emb.pti": OTHER, "special_params.json": b"{}"}
    assert unpacked(tmp_path, pack(files)) == kept
    assert "two members 'x.safetensors'" in refused(tmp_path, pack({"x.safetensors": LORA, "x.SAFETENSORS": LORA}))


@pytest.mark.parametrize("name", ["learned_embeds.bin", "a/model.ckpt", "x.PT", "x.pth", "x.pkl"])
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_a_pickle_among_the_files_is_said(tmp_path: Path, capsys: Any, name: str, pack: Any) -> None:
    said = refused(tmp_path, pack({name: b"x", "x.json": b"{}"}))
    assert said.startswith(f"that holds no .safetensors file, and '{name}' is a pickle")
    assert said.endswith("convert it to .safetensors")
    assert capsys.readouterr().err == ""
    assert unpacked(tmp_path, pack({name: b"x", "x.safetensors": LORA})) == {"x.safetensors": LORA}
    assert capsys.readouterr().err == f"'{name}' in that is a pickle and was left out\n"
    unpacked(tmp_path, pack({name: b"x", "x.safetensors": LORA, "line\nbreak.bin": b""}))
    assert capsys.readouterr().err == f"'{name}' (and 1 more) in that is a pickle and was left out\n"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_may_end_with_its_last_member(tmp_path: Path, format: Literal[1, 2]) -> None:
    head = member("x.json", body=b"{}")
    whole = head + member("x.safetensors", body=LORA)
    assert len(LORA) % 512
    for pack in (bytes, gzip.compress):
        assert set(unpacked(tmp_path, pack(whole))) == {"x.json", "x.safetensors"}
        assert set(unpacked(tmp_path, pack(whole + bytes(512)))) == {"x.json", "x.safetensors"}
        for short in (
            whole[:-1],
            whole[: -(-len(LORA) % 512)],
            whole + b"x" * 100,
            whole + member("p", b"x", b"5 a=\n"),
        ):
            assert "damaged" in refused(tmp_path, pack(short))
    info = tarfile.TarInfo("ü" * 90)
    assert "damaged" in refused(tmp_path, whole + info.tobuf(format)[:-512])


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), max_size=5),
    zip_=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_names(tmp_path_factory: pytest.TempPathFactory, names: list[str], zip_: bool) -> None:
    tmp_path = tmp_path_factory.mktemp("names")
    files = {f"{name}.safetensors": LORA for name in names if name[0] != "\0"}  # zipfile cannot write such a name
    try:
        found = unpacked(tmp_path, zipped(files) if zip_ else tarred(files))
    except WeightsError:
        found = {}
    assert set(found.values()) <= {LORA}
    assert {path.name for path in tmp_path.iterdir()} == {"payload", "files"}


@given(at=st.integers(0, len(TAR) - 1), byte=st.binary(min_size=1, max_size=12), kind=st.integers(0, 2))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_damage(tmp_path_factory: pytest.TempPathFactory, at: int, byte: bytes, kind: int) -> None:
    tmp_path = tmp_path_factory.mktemp("damage")
    whole = bytearray((TAR, gzip.compress(TAR), zipped({"x.safetensors": LORA, "y.json": b"{}"}))[kind])
    at %= len(whole)
    whole[at : at + len(byte)] = byte
    try:
        unpacked(tmp_path, bytes(whole))
    except WeightsError as error:
        assert str(error)  # noqa: PT017 - no error is as good
    assert {path.name for path in tmp_path.iterdir()} <= {"payload", "files"}


def test_links_and_devices_leave_no_trace(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    odd = b"".join(member(f"x{n}.safetensors", kind, linkname="/etc/passwd") for n, kind in enumerate(kinds))
    sparse = member("s.safetensors", tarfile.GNUTYPE_SPARSE, LORA)
    assert unpacked(tmp_path, odd + sparse + member("x.pti", body=LORA) + END) == {"x.pti": LORA}
    buffer = io.BytesIO(zipped({"y.safetensors": LORA}))
    with zipfile.ZipFile(buffer, "a") as packed:
        link = zipfile.ZipInfo("link.safetensors")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    assert unpacked(tmp_path, buffer.getvalue()) == {"y.safetensors": LORA}


def test_a_symlink_is_no_way_out(tmp_path: Path) -> None:
    way_out = member("out", tarfile.SYMTYPE, linkname=str(tmp_path)) + member("out/x.safetensors", body=LORA) + END
    assert unpacked(tmp_path, way_out) == {"out/x.safetensors": LORA}
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("second", ["a.json", "./a.json", "a.json/b.json"])
def test_two_members_of_one_name(tmp_path: Path, second: str) -> None:
    said = refused(tmp_path, member("a.json", body=b"{}") + member(second, body=b"{}") + END)
    assert "two members" in said or "cannot be written" in said


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_in_a_zip(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("a.json", b"{}")
        packed.writestr("a.json", b"{}")
    assert "two members" in refused(tmp_path, buffer.getvalue())


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unpacks to more than the 5000 bytes" in refused(tmp_path, tarred(FILES), limit=5000)
    assert "at most 16777216 are allowed for JSON" in refused(tmp_path, member("x.json", size=1 << 40) + END)
    monkeypatch.setattr(archive, "MEMBERS", 3)
    assert "more than 3 members" in refused(tmp_path, tarred(FILES))
    assert "more than 3 members" in refused(tmp_path, zipped(FILES))
    monkeypatch.setattr(archive, "NOTE", 100)
    assert "members" in refused(tmp_path, zipped(FILES))


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SLACK", 1 << 20)
    zeros = bytes(8 << 20)
    for name in ("x.safetensors", "x.txt"):  # what nobody wants counts as well
        assert "far more than its own size" in refused(tmp_path, gzip.compress(tarred({name: zeros})))
    bomb = zipped({"x.safetensors": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert "far more than its own size" in refused(tmp_path, bomb)


def headed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


MANY = json.dumps({f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(400_000)}).encode()
LISTS = b'{"a": [' + b"[]," * (5 << 20) + b"0]}"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (MANY, f"{len(MANY)} bytes; at most 16777216 are allowed"),
        (MANY[: MANY.index(b', "t20001"')] + b"}", "20001 tensors; at most 20000 are allowed"),
        (LISTS, "more than 400000 times ','"),
        (json.dumps({"x" * 301: {"data_offsets": [0, 0]}}).encode(), "a name of 301 characters; at most 300"),
    ],
    ids=["bytes", "tensors", "lists", "name"],
)
def test_a_header_that_takes_too_long_to_read(tmp_path: Path, header: bytes, words: str) -> None:
    for body, named in (
        (headed(header), "that"),
        (tarred({"x.safetensors": headed(header)}), "'x.safetensors' in that"),
    ):
        (tmp_path / "payload").write_bytes(body)
        began = time.thread_time()
        said = refused(tmp_path, body)
        assert time.thread_time() - began < 0.8
        assert said.startswith(f"{named} has a header that no weights of SDXL have ({words}")


def test_a_header_as_large_as_they_come(tmp_path: Path) -> None:
    """Ten times the tensors of an SDXL checkpoint, and what trainers and galleries put into the metadata."""
    metadata = {"ss_tag_frequency": json.dumps({f"tag {n}": n for n in range(50_000)}), "thumbnail": "x" * (4 << 20)}
    one = {"dtype": "F16", "shape": [320, 320, 3, 3], "data_offsets": [0, 0]}
    body = headed(json.dumps({"__metadata__": metadata} | {f"{'x' * 200}{n}": one for n in range(20_000)}).encode())
    assert unpacked(tmp_path, body) == {"weights.safetensors": body}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.REGTYPE])
def test_memory_is_bounded(tmp_path: Path, kind: bytes) -> None:
    body = gzip.compress(member("x", kind, size=60 << 20) + bytes(60 << 20) + END)
    tracemalloc.start()
    assert "that" in refused(tmp_path, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("size", [-1, -512])
def test_a_negative_size(tmp_path: Path, size: int) -> None:
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE):
        block = bytearray(member("x.json", kind))
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        assert "damaged tar" in refused(tmp_path, bytes(block) + END)


@pytest.mark.parametrize(
    "note", [b"9999 path=x\n", b"0 path=x\n", b"x", b"-5 a=b\n", b"5 a=b", b"3 \n", b"17 size=minus\n\n\n\n"]
)
def test_an_extension_that_makes_no_sense(tmp_path: Path, note: bytes) -> None:
    body = member("h", tarfile.XHDTYPE, note) + member("x.json", body=b"{}") + END
    assert "that" in refused(tmp_path, body)


def test_a_password_is_said(tmp_path: Path) -> None:
    body = bytearray(zipped({"x.safetensors": LORA}))
    body[6] |= 1
    body[body.rindex(b"PK\x01\x02") + 8] |= 1
    assert "locked with a password" in refused(tmp_path, bytes(body))


def test_it_stops_in_the_middle(tmp_path: Path) -> None:
    stop = Stop()

    def room(_: int) -> None:
        stop.set()

    with pytest.raises(Stopped):
        unpacked(tmp_path, TAR, stop=stop, room=room)


def test_room_is_asked_for_before_each_file(tmp_path: Path) -> None:
    sizes: list[int] = []
    unpacked(tmp_path, TAR, room=sizes.append)
    assert sizes == [len(LORA), 2]

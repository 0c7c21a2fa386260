"""Captions by file name: whatever is not sure is said and not used."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.captions import written
from tests.preparing import job, members

Skipped = list[tuple[str, str]]


def captions(
    tmp_path: Path, texts: Mapping[str, str | bytes], *names: str, bad: tuple[str, ...] = ()
) -> tuple[dict[str, str], Skipped]:
    """The captions of pictures, and what was said of the others; `bad` are pictures that cannot be used."""
    files = {name: text.encode() if isinstance(text, str) else text for name, text in texts.items()}
    given = job(tmp_path)
    found = written(members(tmp_path / "texts", files), [*names, *bad], set(names), given)
    return found, given.skipped


def test_by_name_and_not_by_order(tmp_path: Path) -> None:
    table = "caption,image_file\nthird,c.png\nfirst,a.png\nsecond,b.png\n"
    found, skipped = captions(tmp_path, {"caption.csv": table}, "a.png", "b.png", "c.png")
    assert found == {"a.png": "first", "b.png": "second", "c.png": "third"}
    assert skipped == []


@pytest.mark.parametrize("name", ["caption.csv", "captions.csv", "Captions.CSV", "my_captions_2.csv", "x/caption.csv"])
def test_tables_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    assert captions(tmp_path, {name: "caption,image_file\nit,a.png\n"}, "a.png")[0] == {"a.png": "it"}


@pytest.mark.parametrize(
    "table",
    [
        "image_file,caption\na.png,it\n",
        "\ufeffcaption,image_file\nit,a.png\n",
        "Caption, Image_File \r\nit,a.png\r\n",
        "image_file;caption\na.png;it\n",
        "sep=;\nimage_file;caption\na.png;it\n",
        "image_file\tcaption\na.png\tit\n",
        "file_name,text\na.png,it\n",
        "number,file_name,text,more\n1,a.png,it,x\n",
        'image_file,caption\n"a.png","it"\n',
        'image_file,caption\na.png," it\n"\n',
        "\n\nimage_file,caption\n\na.png,it\n\n",
        "caption,image_file\rit,a.png\r",
        "image_file,caption\na.png,it\n".encode("utf-16"),
    ],
)
def test_tables_as_they_are_written(tmp_path: Path, table: str | bytes) -> None:
    assert captions(tmp_path, {"caption.csv": table}, "a.png") == ({"a.png": "it"}, [])


def test_commas_and_lines_within_a_caption(tmp_path: Path) -> None:
    table = 'image_file,caption\na.png,"red, blue;\nand ""green"""\nb.png,x\n'
    found, _ = captions(tmp_path, {"caption.csv": table}, "a.png", "b.png")
    assert found == {"a.png": 'red, blue; and "green"', "b.png": "x"}


def test_an_old_spreadsheet(tmp_path: Path) -> None:
    table = "caption,image_file\ncafé – größer,a.png\n".encode("cp1252")
    given = job(tmp_path)
    found = written(members(tmp_path / "texts", {"caption.csv": table}), ["a.png"], {"a.png"}, given)
    assert found == {"a.png": "café – größer"}
    assert given.notes == ["'caption.csv' is not UTF-8; it was read as Windows-1252"]


@pytest.mark.parametrize(
    ("row", "image"),
    [
        ("a.JPG", "A.jpg"),
        ("a", "a.jpg"),
        ("a.png", "a.webp"),
        ("a.b", "a.b.jpg"),
        ("deep/a.jpg", "deep/a.jpg"),
        ("deep\\a.jpg", "deep/a.jpg"),
        ("./deep/a.jpg", "deep/a.jpg"),
        ("/deep/a.jpg", "deep/a.jpg"),
        ("a.jpg", "deep/a.jpg"),
        ("elsewhere/a.jpg", "deep/a.jpg"),
        (" a.jpg ", "a.jpg"),
        ("u\u0308.jpg", "\u00fc.jpg"),
        ("Straße.jpg", "STRASSE.JPG"),
    ],
)
def test_what_names_an_image(tmp_path: Path, row: str, image: str) -> None:
    found, skipped = captions(tmp_path, {"caption.csv": f"image_file,caption\n{row},it\n"}, image, "other.png")
    assert found == {image: "it"}
    assert skipped == []


def test_the_same_name_in_two_folders(tmp_path: Path) -> None:
    table = "image_file,caption\na/1.jpg,first\nb/1.jpg,second\n"
    assert captions(tmp_path, {"caption.csv": table}, "a/1.jpg", "b/1.jpg")[0] == {
        "a/1.jpg": "first",
        "b/1.jpg": "second",
    }
    own = {"a/caption.csv": "image_file,caption\n1.jpg,first\n", "b/caption.csv": "image_file,caption\n1.jpg,second\n"}
    assert captions(tmp_path / "own", own, "a/1.jpg", "b/1.jpg")[0] == {"a/1.jpg": "first", "b/1.jpg": "second"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("1.jpg", "line 2 is for '1.jpg', which may be 'a/1.jpg' or 'b/1.jpg'; give its path"),
        ("1.png", "line 2 is for '1.png', which may be 'a/1.jpg' or 'b/1.jpg'; give its path"),
        ("2.jpg", "line 2 is for '2.jpg', which is not in the archive"),
        ("bad.jpg", "line 2 is for 'bad.jpg', which is no image that is used"),
    ],
)
def test_what_is_not_sure_is_said_and_not_used(tmp_path: Path, row: str, why: str) -> None:
    table = f"image_file,caption\n{row},it\n"
    found, skipped = captions(
        tmp_path, {"caption.csv": table}, "a/1.jpg", "b/1.jpg", "bad.png", bad=("bad.jpg", "clip.mov")
    )
    assert found == {}
    assert skipped == [("caption.csv", why)]


def test_rows_that_are_no_rows(tmp_path: Path) -> None:
    table = "image_file,caption\na.png\n,x\na.png,it\na.png,again\n,\n"
    found, skipped = captions(tmp_path, {"caption.csv": table}, "a.png")
    assert found == {"a.png": "it"}
    assert [why for _, why in skipped] == [
        "line 2 has no file or no caption",
        "line 3 has no file or no caption",
        "line 5 is for 'a.png', which has a caption already; the first counts",
    ]


def test_many_rows_for_nothing_are_counted(tmp_path: Path) -> None:
    table = "image_file,caption\n" + "".join(f"{number}.png,x\n" for number in range(500))
    _, skipped = captions(tmp_path, {"caption.csv": table}, "a.png")
    assert len(skipped) == 21
    assert skipped[-1] == ("caption.csv", "has 480 more rows that are not used")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("caption.csv", "a.png,it\n", "has no header; begin it with the line caption,image_file"),
        ("caption.csv", "", "has no header"),
        ("caption.csv", 'image_file,caption\na.png,"' + "x" * 200_000, "cannot be read beyond line"),
        ("table.csv", "image_file,caption\na.png,it\n", "is no table of captions; call it caption.csv"),
        ("data.jsonl", "{}", "is no table of captions; call it metadata.jsonl"),
        ("readme.txt", "hello", "is a caption for no image that is used"),
        ("bad.txt", "hello", "is a caption for no image that is used"),
        ("deep/a.txt", "hello", "is a caption for no image that is used"),
    ],
)
def test_texts_that_are_no_captions(tmp_path: Path, name: str, text: str, why: str) -> None:
    found, ((skipped, said),) = captions(tmp_path, {name: text}, "a.png", bad=("bad.png",))
    assert found == {}
    assert skipped == name
    assert said.startswith(why)


def test_notes_beside_their_images(tmp_path: Path) -> None:
    texts: dict[str, Any] = {"a/1.txt": "first\nline", "B/1.TXT": "\ufeffsecond", "c.jpg.txt": "third", "d.txt": " \n "}
    found, skipped = captions(tmp_path, texts, "a/1.jpg", "b/1.png", "c.jpg", "d.jpg")
    assert found == {"a/1.jpg": "first line", "b/1.png": "second", "c.jpg": "third"}
    assert skipped == []


def test_metadata_of_hugging_face(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.png", "text": "first"},
        {"text": "second", "file_name": "b.png", "more": 1},
        {"file_name": "c.png", "caption": "third"},
        {"file_name": "d.png", "text": None},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n\n{"file_name": \n[1]\n7\n"file_name text"\n{"text": "x"}\n'
    names = [f"train/{letter}.png" for letter in "abcd"]
    found, skipped = captions(tmp_path, {"train/metadata.jsonl": text + "[" * 100_000}, *names, "a.png")
    assert found == {"train/a.png": "first", "train/b.png": "second", "train/c.png": "third"}
    assert [why.split(" is")[0] for _, why in skipped] == [f"line {number}" for number in (6, 7, 8, 9, 10, 11)]


def test_which_of_several_counts(tmp_path: Path) -> None:
    texts: dict[str, Any] = {
        "a.txt": "note",
        "b.txt": "",
        "caption.csv": "image_file,caption\na.png,table\nb.png,table\nc.png,\n",
        "metadata.jsonl": "\n".join(json.dumps({"file_name": f"{name}.png", "text": "line"}) for name in "abcd"),
    }
    found, skipped = captions(tmp_path, texts, "a.png", "b.png", "c.png", "d.png", "e.png")
    assert found == {"a.png": "note", "b.png": "table", "c.png": "line", "d.png": "line"}
    assert skipped == []


def test_a_caption_is_one_line_of_what_can_be_seen(tmp_path: Path) -> None:
    found, _ = captions(tmp_path, {"a.txt": " a\tred\x00 \x1b[31mcar\u200b,\r\n BIG  " + "x" * 9999}, "a.png")
    assert found["a.png"].startswith("a red [31mcar , BIG xxx")
    assert len(found["a.png"]) == 2000


@given(st.binary(max_size=300), st.sampled_from(["caption.csv", "metadata.jsonl", "a.txt"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_it_says(tmp_path_factory: pytest.TempPathFactory, text: bytes, name: str) -> None:
    heads = {
        "caption.csv": b"image_file,caption\n",
        "metadata.jsonl": b'{"file_name": "a.png", "text": "',
        "a.txt": b"",
    }
    found, skipped = captions(tmp_path_factory.mktemp("texts"), {name: heads[name] + text}, "a.png")
    assert set(found) <= {"a.png"}
    assert all(text and text.isprintable() and text == text.strip() for text in found.values())
    assert all("\n" not in why for _, why in skipped)


PATHS = [f"{folder}/{number}.png" for folder in "xyz" for number in range(9)]


@given(st.dictionaries(st.sampled_from(PATHS), st.text("abc ,;\"'", max_size=9)))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_image_gets_its_own(tmp_path_factory: pytest.TempPathFactory, table: dict[str, str]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("caption", "image_file"), *((text, name) for name, text in table.items())])
    found, skipped = captions(tmp_path_factory.mktemp("texts"), {"caption.csv": buffer.getvalue()}, *PATHS)
    assert found == {name: " ".join(text.split()) for name, text in table.items() if text.strip()}
    assert skipped == []

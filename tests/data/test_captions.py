# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from verl_uae.data.captions import (
    caption_problem,
    find_sidecars,
    is_apple_double,
    match_captions,
    read_captions,
    read_sidecars,
)
from verl_uae.data.limits import MAX_TEXT_BYTES
from verl_uae.errors import DataError


def test_one_object_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"file": "a.png", "caption": "é"}\n{"file": "b/c.png", "caption": ""}\n')
    assert read_captions(tmp_path / "c.jsonl") == {"a.png": "é", "b/c.png": ""}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_as_editors_write_them(end: str, mark: str, tmp_path: Path) -> None:
    """Byte order mark, line ends of three systems, blank lines, separators within a text."""
    text = "one\u2028two\u0085three"
    lines = [f'{{"file": "{name}", "caption": "{text}"}}' for name in ("a.png", "b.png")]
    (tmp_path / "c.jsonl").write_bytes((mark + end.join(["", *lines, " ", ""])).encode())
    assert read_captions(tmp_path / "c.jsonl") == {"a.png": text, "b.png": text}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no caption"),
        ("\ufeff\r\n", "holds no caption"),
        ("{", "row 0: not JSON"),
        ('{"file": "a", "caption": "b"}\n{"file": "a"}', "row 1: expected"),
        ("[]", "row 0: expected"),
        ('{"file": "a", "caption": "b"}\n{"file": "a", "caption": "c"}', "row 1: file 'a' has a caption already"),
        ('\n{"file": "a", "caption": "cut \\ud83d"}', r"row 1: the caption of 'a' holds half of a surrogate pair"),
        ("[" * 200_000, "row 0: not JSON"),
        ('{"file": "a", "caption": ' + "9" * 5000 + "}", "row 0: not JSON"),
    ],
)
def test_caption_file_errors_name_the_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_captions(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="cannot read captions"):
        read_captions(tmp_path / "absent.jsonl")


def test_other_encodings_are_named(tmp_path: Path) -> None:
    line = '{"file": "a", "caption": "it\u2019s"}\n'
    for encoding in ("utf-16", "utf-16-le", "cp1252"):
        (tmp_path / "c.jsonl").write_bytes(line.encode(encoding))
        with pytest.raises(DataError, match=r"cannot read captions: .*save it as UTF-8"):
            read_captions(tmp_path / "c.jsonl")


def test_random_bytes_are_captions_or_a_named_error(tmp_path: Path) -> None:
    """Mutations of a good file, with bytes that mean something to JSON and to encodings."""
    whole = b"".join(b'{"file": "%d.png", "caption": "a picture \\ud83d\\ude42 %d"}\n' % (n, n) for n in range(5))
    rng = random.Random(0)
    pieces = [
        b"\\ud83d",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\0",
        b"\r",
        b"\n",
        b"{",
        b"[",
        b'"',
        b"\xc3",
        b"9" * 5000,
        b"NaN",
    ]
    read = 0
    for _ in range(500):
        at = rng.randrange(len(whole))
        (tmp_path / "c").write_bytes(whole[:at] + rng.choice(pieces) + whole[at + rng.randrange(3) :])
        try:
            found = read_captions(tmp_path / "c")
        except DataError as error:
            assert str(error).startswith(str(tmp_path / "c"))
            str(error).encode()
        else:
            read += 1
            "".join(found.values()).encode()
    assert 50 < read < 450


def test_what_counts_as_a_caption() -> None:
    assert caption_problem("a circle \U0001f642\0") is None
    assert caption_problem("\u200b\u0627\U0001f642") is None
    for caption in (None, "", " ", "\n\t\u2003", "\u200b", "\0", " \u2060\ufeff\n", 3, ["a"], "cut \ud83d", "\udc80"):
        problem = caption_problem(caption)
        assert problem is not None and problem.startswith("caption")


def test_a_sidecar_is_one_caption(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_bytes("\ufeffa circle \r\n".encode())
    for number, data in enumerate((b" \n", "it\u2019s".encode("cp1252"), "a".encode("utf-16")), 1):
        (tmp_path / f"{number}.txt").write_bytes(data)
    captions, unread = read_sidecars(tmp_path, {f"{number}.txt": f"{number}.png" for number in range(4)})
    assert captions == {"0.png": "a circle"}
    assert ["is missing" in reason or "save it as UTF-8" in reason for reason in unread.values()] == [True] * 3


def test_captions_find_pictures_under_the_names_of_other_systems() -> None:
    decomposed = unicodedata.normalize("NFD", "Müller.png")
    files = ["0.png", "1.png", "sub/a b.png", decomposed, "bad\udcff.png", "bad\\xff.png", "lone\udce9.png"]
    captions = {
        "./0.png": "zero",
        "1.png": "one",
        "sub\\a b.png": "two",
        "Müller.png": "three",
        "bad\\xff.png": "of the text",
        "lone\\xe9.png": "by its escape",
        "gone.png": "-",
        "./1.png": "-",
    }
    found, unused = match_captions(captions, files)
    assert found == {
        "0.png": "zero",
        "1.png": "one",
        "sub/a b.png": "two",
        decomposed: "three",
        "bad\\xff.png": "of the text",
        "lone\udce9.png": "by its escape",
    }
    assert unused == {"gone.png": "a caption for a picture that is not there", "./1.png": "a second caption for 1.png"}
    # The byte itself, as Python's json writes it.
    found, _ = match_captions({json.loads('"bad\\udcff.png"'): "of the byte"}, files)
    assert found == {"bad\udcff.png": "of the byte"}


def test_a_caption_that_fits_two_pictures_is_given_to_none() -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    found, unused = match_captions({"./é.png": "x"}, [composed, decomposed])
    assert not found and unused["./é.png"].startswith("a caption that fits 2 pictures")
    found, unused = match_captions({composed: "x", decomposed: "y"}, [composed, decomposed])
    assert found == {composed: "x", decomposed: "y"} and not unused


def test_a_key_that_is_there_twice_is_no_caption(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.png", "file": "b.png", "caption": "x"}\n')
    with pytest.raises(DataError, match="row 0: not JSON: the key 'file' is there twice"):
        read_captions(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_captions(tmp_path / "pipe")


def test_a_sidecar_lies_beside_its_picture() -> None:
    files = ["a.png", "a.txt", "b.JPG", "b.TXT", "c.txt", "d/a.txt", "e.jpg", "e.png", "e.txt", "f.v1.webp", "f.v1.txt"]
    files += ["._g.png", "._g.txt", "g.txt", "h.csv", "h.txt"]
    assert find_sidecars(files) == {"a.txt": "a.png", "b.TXT": "b.JPG", "e.txt": "e.jpg", "f.v1.txt": "f.v1.webp"}
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    assert find_sidecars([f"{composed}.png", f"{decomposed}.txt"]) == {f"{decomposed}.txt": f"{composed}.png"}
    both = [f"{form}.{kind}" for form in (composed, decomposed) for kind in ("png", "txt")]
    assert find_sidecars(both) == {f"{form}.txt": f"{form}.png" for form in (composed, decomposed)}
    assert is_apple_double("x/._a.png") and not is_apple_double("._x/a.png")


def test_sidecars_without_a_caption_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "b.txt").write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    (tmp_path / "c.txt").symlink_to("/etc/passwd")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfea\0")
    captions, unread = read_sidecars(tmp_path, {f"{name}.txt": f"{name}.png" for name in "abcd"})
    assert captions == {"a.png": "a cat"}
    assert list(unread) == ["b.txt", "c.txt", "d.txt"]
    for reason, word in zip(unread.values(), ("limit 1048576", "leaves its folder", "UTF-16"), strict=True):
        assert word in reason


def test_of_two_texts_of_a_picture_the_second_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("a cat")
    (tmp_path / "a.txt").write_text("a dog")
    captions, unread = read_sidecars(tmp_path, {"a.TXT": "a.png", "a.txt": "a.png"})
    assert captions == {"a.png": "a cat"}
    assert unread == {"a.txt": "a second caption for a.png"}

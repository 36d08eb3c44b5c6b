# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.files import write_bytes
from verl_uae.text import (
    MAX_NAME_BYTES,
    argument_text,
    decode_text,
    encodable,
    fitting_name,
    one_line,
    parse_json,
    printable,
    read_text,
    text_problem,
)


def test_half_characters_are_found_and_escaped() -> None:
    assert text_problem("red 🙂 \u2028 \0") is None
    assert text_problem("red \ud83d") == "half of a surrogate pair (\\ud83d) at character 4, which is no text"
    assert encodable("a\ud83d caf\udce9") == "a\\ud83d caf\\xe9"
    assert encodable("a \\xe9 🙂") == "a \\xe9 🙂"


def test_names_that_look_alike_stay_apart() -> None:
    """Over all short names of an alphabet of backslashes, bytes and what escapes are made of."""
    rng = random.Random(0)
    parts = ["\\", "x", "ff", "5c", "\udcff", "\udc5c", "\ud83d", "ud83d", "é", "/"]
    names = {"".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(5000)}
    printed = {printable(name) for name in names}
    assert len(printed) == len(names)
    assert all(text_problem(name) is None for name in printed)
    assert printable("bad\udcff.png") == "bad\\xff.png" != printable("bad\\xff.png")
    assert printable("sub\\a b.png") == "sub\\a b.png"


@pytest.mark.parametrize("stem", ["n" * 252, "é" * 126, "名" * 84, "\udcff" * 120, "n" * 4000])
def test_a_long_name_fits_and_says_which_it_was(stem: str, tmp_path: Path) -> None:
    name = fitting_name(f"0000_{stem}", ".png")
    assert len(name.encode()) <= MAX_NAME_BYTES and name.endswith(".png") and name.startswith("0000_")
    assert name == fitting_name(f"0000_{stem}", ".png") != fitting_name(f"0000_{stem}x", ".png")
    write_bytes(tmp_path / name, b"")


def test_a_short_name_is_kept() -> None:
    assert fitting_name("recon_a b.c", ".png") == "recon_a b.c.png"
    assert fitting_name("n" * (MAX_NAME_BYTES - 4), ".png") == "n" * (MAX_NAME_BYTES - 4) + ".png"


def test_an_argument_is_read_whatever_the_locale() -> None:
    assert argument_text("--prompt", "一个 circle") == "一个 circle"
    assert argument_text("--prompt", os.fsencode("一个").decode("ascii", "surrogateescape")) == "一个"
    for text in ("caf\udce9", "cut \ud83d"):
        with pytest.raises(ConfigError, match="--prompt: is not UTF-8: 'c"):
            argument_text("--prompt", text)


def test_an_argument_in_the_c_locale() -> None:
    script = "import sys; from verl_uae.text import argument_text; print(ascii(argument_text('-', sys.argv[1])))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script, "一个"], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == ascii("一个"), done.stderr


def test_text_files_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa circle\r\n".encode())
    assert read_text(tmp_path / "a.txt") == "a circle\r\n"
    for encoding, reason in (
        ("utf-16", "is UTF-16"),
        ("utf-16-le", "every other byte is zero"),
        ("utf-16-be", "every other byte is zero"),
        ("utf-32", "is UTF-32"),
        ("cp1252", "byte 0x92 in line 2 is not UTF-8 but of a code page such as Windows-1252"),
    ):
        with pytest.raises(ValueError, match=reason):
            decode_text("one\nit\u2019s two".encode(encoding))
    words = b"words " * 40
    for packed, reason in (
        (gzip.compress(words), "is compressed with gzip"),
        (bz2.compress(words), "is compressed with bzip2"),
        (lzma.compress(words), "is compressed with xz"),
        (b"PK\x03\x04" + bytes(30), "is compressed with zip"),
        (b"PAR1\x15\x04" + bytes(30), "is a parquet file"),
    ):
        with pytest.raises(ValueError, match=reason):
            decode_text(packed)
    for text in ("BZh is no word", "PAR1S street sign", "PAR1", "PAR1\nis a mark"):
        assert decode_text(text.encode()) == text
    with pytest.raises(ValueError, match="git lfs pull"):
        decode_text(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert decode_text(b"a" + bytes(100)) == "a" + "\0" * 100
    assert decode_text(b"") == "" and decode_text(b"a\0b c") == "a\0b c"


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    assert one_line("a\nb\r\x1b[31mc\u2028\x85 caf\udce9 é") == "a\\nb\\r\\x1b[31mc\\u2028\\x85 caf\\xe9 é"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('[{"b": {"\\ud83d": 1, "\\ud83d": 2}}]', r"the key '\\\\ud83d' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_readers_would_read_differently_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_is_what_it_says() -> None:
    assert parse_json('{"a": [1, {"b": null}], "c": NaN}')["a"] == [1, {"b": None}]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

from verl_uae.data.limits import DEFAULT_LIMITS, MAX_TEXT_BYTES
from verl_uae.data.pack_pictures import find_sidecars, inspect_all, is_apple_double, list_files, read_sidecars


def test_a_sidecar_lies_beside_its_picture() -> None:
    files = ["a.png", "a.txt", "b.JPG", "b.TXT", "c.txt", "d/a.txt", "e.jpg", "e.png", "e.txt", "f.v1.webp", "f.v1.txt"]
    files += ["._g.png", "._g.txt", "g.txt", "h.csv", "h.txt"]
    assert find_sidecars(files) == {"a.txt": "a.png", "b.TXT": "b.JPG", "e.txt": "e.jpg", "f.v1.txt": "f.v1.webp"}
    composed, decomposed = (normalize(form, "é") for form in ("NFC", "NFD"))
    assert find_sidecars([f"{composed}.png", f"{decomposed}.txt"]) == {f"{decomposed}.txt": f"{composed}.png"}
    both = [f"{form}.{kind}" for form in (composed, decomposed) for kind in ("png", "txt")]
    assert find_sidecars(both) == {f"{form}.txt": f"{form}.png" for form in (composed, decomposed)}
    assert is_apple_double("x/._a.png") and not is_apple_double("._x/a.png")


def test_sidecars_without_a_caption_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "b.txt").write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    (tmp_path / "c.txt").symlink_to("/etc/passwd")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfea\0")
    captions, bad = read_sidecars(tmp_path, {f"{name}.txt": f"{name}.png" for name in "abcd"})
    assert captions == {"a.png": "a cat"}
    assert [item.file for item in bad] == ["b.txt", "c.txt", "d.txt"]
    for item, reason in zip(bad, ("limit 1048576", "leaves its folder", "UTF-16"), strict=True):
        assert reason in item.reason


def test_of_two_texts_of_a_picture_the_second_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("a cat")
    (tmp_path / "a.txt").write_text("a dog")
    captions, bad = read_sidecars(tmp_path, {"a.TXT": "a.png", "a.txt": "a.png"})
    assert captions == {"a.png": "a cat"}
    assert [(item.file, item.reason) for item in bad] == [("a.txt", "a second caption for a.png")]


def test_files_are_pictures_or_have_a_reason(tmp_path: Path, make_picture: Callable) -> None:
    make_picture(32, 48).save(tmp_path / "a.png")
    make_picture().save(tmp_path / "._a.png")
    (tmp_path / "b.png").write_bytes(b"")
    files, linked = list_files(tmp_path)
    pictures, bad = inspect_all(tmp_path, files, DEFAULT_LIMITS, None, threads=2)
    assert files == ["._a.png", "a.png", "b.png"] and not linked
    assert [(picture.file, picture.size) for picture in pictures] == [("a.png", (32, 48))]
    assert {item.file: item.reason for item in bad} == {
        "._a.png": "attributes of a file, kept by macOS, and no picture",
        "b.png": "empty file",
    }

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.chain.conftest import picture
from verl_uae.bench.pairs import find_pairs, image_files, match, recon_name
from verl_uae.data.images import image_digest
from verl_uae.errors import ConfigError


def test_the_walk_takes_the_endings_of_the_scorer_at_any_depth(tmp_path: Path) -> None:
    names = ["b.JPG", "a.jpeg", "sub/deep/c.png", "d.bmp", "e.tiff", "f.webp", "g.tif", "h.gif", "i.txt", "noending"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a.jpeg", "b.JPG", "d.bmp", "e.tiff", "f.webp", "sub/deep/c.png"]
    with pytest.raises(ConfigError, match="not a folder"):
        image_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "references", "expected"),
    [
        ("a.png", ["a.jpg", "b.png", "a.png"], "a.png"),  # an equal name wins over an earlier equal stem
        ("a.png", ["b.png", "a.jpg"], "a.jpg"),
        ("recon_a.png", ["b.jpg", "a.jpg"], "a.jpg"),
        ("recon_a.png", ["a.jpg", "recon_a.jpg"], "a.jpg"),  # stem and prefix: whichever reference comes first
        ("recon_a.png", ["recon_a.jpg", "a.jpg"], "recon_a.jpg"),
        ("recon_recon_a.png", ["a.jpg", "recon_a.jpg"], "recon_a.jpg"),
        ("A.png", ["a.jpg"], None),
        ("a.png", ["recon_a.jpg"], None),  # the prefix belongs to the generated picture
        ("a_recon.png", ["a.jpg"], None),
        ("a.b.png", ["a.jpg", "a.b.jpg"], "a.b.jpg"),
        ("a.png", ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
    ],
)
def test_the_rule(name: str, references: list[str], expected: str | None) -> None:
    found = match(name, [Path(path) for path in references])
    assert found == (None if expected is None else Path(expected))


def test_pairs_and_everything_that_is_not_one(tmp_path: Path, save: Callable[..., Path]) -> None:
    generated, originals = tmp_path / "g", tmp_path / "o"
    first = save(generated / "sub" / "recon_1.png")
    original = save(originals / "deep" / "1.jpg", 1)
    save(generated / "stray.png")
    save(originals / "lonely.png")
    save(originals / "untold.png")
    save(generated / "2.bmp")
    save(originals / "2.png")
    save(generated / "3.png")
    save(originals / "3.tiff")
    (generated / "4.png").write_bytes(b"no picture")
    save(originals / "4.png")
    found = find_pairs(generated, originals, {"lonely.png": "it rained"})
    (pair,) = found.pairs
    assert (pair.name, pair.generated, pair.reference, pair.key) == ("recon_1.png", first, original, "deep/1.jpg")
    assert pair.digest == image_digest(Image.open(original))
    assert set(found.unpaired) == {"stray.png", "2.bmp", "3.png", "4.png"}
    reasons = {Path(failure.what).relative_to(tmp_path).as_posix(): failure.reason for failure in found.failures}
    assert reasons == {
        "g/stray.png": "no reference of that name",
        "g/2.bmp": "format BMP is not accepted, only PNG, JPEG, WEBP",
        "o/3.tiff": "format TIFF is not accepted, only PNG, JPEG, WEBP",
        "g/4.png": "not an image in PNG, JPEG, WEBP",
        "o/lonely.png": "it rained",
        "o/untold.png": "nothing was generated for it",
    }


def test_names_and_references_that_occur_twice_are_failures(tmp_path: Path, save: Callable[..., Path]) -> None:
    generated, originals = tmp_path / "g", tmp_path / "o"
    for path in ("x/1.png", "y/1.png", "2.png", "recon_2.png"):
        save(generated / path)
    for path in ("1.png", "2.png"):
        save(originals / path)
    found = find_pairs(generated, originals)
    assert [pair.generated.relative_to(generated).as_posix() for pair in found.pairs] == [
        "2.png",
        "recon_2.png",
        "y/1.png",
    ]
    reasons = {Path(failure.what).relative_to(generated).as_posix(): failure.reason for failure in found.failures}
    assert set(reasons) == {"x/1.png", "recon_2.png"}
    assert "same name" in reasons["x/1.png"] and "is paired with 2.png too" in reasons["recon_2.png"]


def test_folders_that_cannot_be_compared(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(tmp_path / "o" / "1.png")
    save(tmp_path / "o" / "sub" / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures in"):
        find_pairs(tmp_path / "empty", tmp_path / "o")
    for one, other in (("o/sub", "o"), ("o", "o/sub")):
        with pytest.raises(ConfigError, match="lies in"):
            find_pairs(tmp_path / one, tmp_path / other)
    same = find_pairs(tmp_path / "o" / "sub", tmp_path / "o" / "sub")
    assert len(same.pairs) == 1 and not same.failures
    assert image_digest(picture(0)) == same.pairs[0].digest


def test_reconstructions_of_long_and_foreign_names_find_their_originals(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    """Names of which the file system takes no longer one, or that are not UTF-8; and a file of macOS beside them."""
    generated, originals = tmp_path / "g", tmp_path / "o"
    stems = ["n" * 248, "n" * 247 + "m", "caf\udce9", "caf\\xe9", "~"]
    for seed, stem in enumerate(stems):
        save(originals / f"{stem}.png", seed)
        save(generated / recon_name(stem), seed)
    (originals / f"._{stems[-1]}.png").write_bytes(b"\0\5\x16\7")
    found = find_pairs(generated, originals)
    assert not found.failures and {pair.reference.stem: pair.generated.name for pair in found.pairs} == {
        stem: recon_name(stem) for stem in stems
    }

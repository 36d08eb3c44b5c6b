# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe as it would stand in verl-recipe."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "recipes" / "upstream.py"))
REPOSITORY, COMMIT = "https://github.com/someone/verl_uae", "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SCRIPT["write"](tmp_path_factory.mktemp("verl-recipe"), REPOSITORY, "v0.1.0", COMMIT)


def test_the_recipe_keeps_the_rules_and_its_links(recipe: Path) -> None:
    assert list(SCRIPT["missing"](recipe)) == []
    page = (recipe / "g4u" / "README.md").read_text()
    assert f"]({REPOSITORY}/blob/v0.1.0/docs/formats.md)" in page and "](../README.md)" in page
    assert f"\nTAG=v0.9.1\nCOMMIT={COMMIT}\n" in (recipe / "REQUIRED_VERL.txt").read_text()
    assert f"({REPOSITORY})" in SCRIPT["row"](REPOSITORY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "REQUIRED_VERL.txt").unlink(), "REQUIRED_VERL.txt: there is none"),
        (lambda folder: _replace(folder / "REQUIRED_VERL.txt", "pinned_tag", "release"), "MODE=release, must be"),
        (lambda folder: _replace(folder / "REQUIRED_VERL.txt", COMMIT, "v0.9.1"), "COMMIT must be 40"),
        (lambda folder: _replace(folder / "REQUIRED_VERL.txt", "PIP_INSTALL=", "PIP="), "no PIP_INSTALL"),
        (lambda folder: _replace(folder / "README.md", "## Required `verl` version", "## verl"), "no section"),
        (lambda folder: _replace(folder / "README.md", "](REQUIRED_VERL.txt)", "](x.txt)"), "has no link to"),
        (lambda folder: _replace(folder / "u4g/README.md", "](../README.md)", "](../../README.md)"), "leads out of"),
        (lambda folder: (folder / "run_fsdp.sh").rename(folder / "run_it.sh"), "run_it.sh: its name has no backend"),
    ],
)
def test_what_breaks_a_rule_is_named(recipe: Path, tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    folder = tmp_path / "uae"
    shutil.copytree(recipe, folder)
    change(folder)
    assert any(said in line for line in SCRIPT["missing"](folder))


def test_what_is_no_copy_of_the_recipe_is_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "uae" / "thesis.txt"
    own.parent.mkdir()
    own.touch()
    for out, said in ((tmp_path, "is no recipe"), (SCRIPT["RECIPE"].parent, "is the recipe itself")):
        with pytest.raises(SystemExit, match=said):
            SCRIPT["write"](out, REPOSITORY, "v0.1.0", COMMIT)
    assert own.is_file() and (SCRIPT["RECIPE"] / "README.md").is_file()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "uae").symlink_to(shutil.copytree(SCRIPT["RECIPE"], tmp_path / "copy"))
    for out, said in ((tmp_path / "linked", "or a link to one"), (Path("/proc/x"), "cannot be written")):
        with pytest.raises(SystemExit, match=said):
            SCRIPT["write"](out, REPOSITORY, "v0.1.0", COMMIT)
    folder = SCRIPT["write"](tmp_path / "other", REPOSITORY, "v0.1.0", COMMIT)
    (folder / "old.md").touch()
    SCRIPT["write"](tmp_path / "other", REPOSITORY, "v0.1.0", r"zz\1")
    assert not (folder / "old.md").exists() and "\nCOMMIT=zz\\1\n" in (folder / "REQUIRED_VERL.txt").read_text()


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

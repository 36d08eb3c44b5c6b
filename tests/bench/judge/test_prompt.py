# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, Item, Picture
from verl_uae.bench.judge.prompt import PACKAGED, ask, load_prompt
from verl_uae.errors import ConfigError

SOURCE = Picture(Path("/images/secret-name.png"), "source digest")
CAPTIONS = Item("secret-name.png", SOURCE, "a red circle", "a blue square\non grass")
PICTURES = Item("secret-name.png", SOURCE, Picture(Path("/a/1.png"), "one"), Picture(Path("/b/1.png"), "two"))


def text(parts: tuple[str | Picture, ...]) -> str:
    return "".join(part if isinstance(part, str) else f"<{part.digest}>" for part in parts)


@pytest.mark.parametrize("name", PACKAGED[CAPTION])
def test_captions_stand_between_lines_that_only_the_question_knows(name: str) -> None:
    prompt = load_prompt(name, CAPTION)
    plain, swapped = ask(prompt, CAPTIONS, False), ask(prompt, CAPTIONS, True)
    assert re.fullmatch("[0-9a-f]{12}", plain.nonce or "") and plain.nonce != swapped.nonce
    nonce = plain.nonce
    assert f"\n{nonce} A\na red circle\n{nonce} A\n\n{nonce} B\na blue square\non grass\n{nonce} B\n" in text(
        plain.parts
    )
    nonce = swapped.nonce
    assert f"\n{nonce} A\na blue square\non grass\n{nonce} A\n\n{nonce} B\na red circle\n" in text(swapped.parts)
    pictures = [part for part in plain.parts if isinstance(part, Picture)]
    assert pictures == ([SOURCE] if name == "caption" else [])
    assert "secret-name" not in text(plain.parts) and "$" not in text(plain.parts)
    assert not [part for part in plain.parts if part == ""]


def test_pictures_stand_in_their_places() -> None:
    prompt = load_prompt(None, RECONSTRUCTION)
    plain, swapped = text(ask(prompt, PICTURES, False).parts), text(ask(prompt, PICTURES, True).parts)
    assert "original picture:\n<source digest>\n\nReconstruction A:\n<one>\n\nReconstruction B:\n<two>\n" in plain
    assert "Reconstruction A:\n<two>\n\nReconstruction B:\n<one>\n" in swapped


def test_nothing_is_looked_for_in_what_is_filled_in() -> None:
    item = replace(CAPTIONS, first="$nonce $source $caption_b $$ {id} \\1")
    parts = ask(load_prompt(None, CAPTION), item, False).parts
    assert "$nonce $source $caption_b $$ {id} \\1" in text(parts) and len(parts) == 3


def test_the_nonce_belongs_to_all_that_is_judged() -> None:
    prompt = load_prompt(None, CAPTION)
    items = [
        CAPTIONS,
        replace(CAPTIONS, first="a red circle."),
        replace(CAPTIONS, second="x"),
        replace(CAPTIONS, source=Picture(SOURCE.path, "other")),
        replace(CAPTIONS, first="a red circle a", second="blue square\non grass"),
    ]
    nonces = {
        ask(asked, item, False).nonce for item in items for asked in (prompt, load_prompt("caption_blind", CAPTION))
    }
    assert len(nonces) == 10
    # The same question has the same one on every run, or no answer could be kept.
    assert ask(prompt, replace(CAPTIONS, key="renamed"), False).nonce == ask(prompt, CAPTIONS, False).nonce
    assert ask(prompt, replace(CAPTIONS, first="\ud800"), False).nonce


def test_a_prompt_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("Costs $$5: $caption_a or $caption_b?", encoding="utf-8")
    question = ask(load_prompt(str(path), CAPTION), CAPTIONS, False)
    assert question.parts == ("Costs $5: a red circle or a blue square\non grass?",) and question.nonce is None
    assert load_prompt(str(path), CAPTION).digest != load_prompt(None, CAPTION).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("$caption_a", r"lacks \$caption_b"),
        ("$caption_a $caption_b $captions", r"unknown placeholder \$captions"),
        ("$caption_a $caption_b $picture_a", r"unknown placeholder \$picture_a"),
        (None, "nor a readable text file"),
    ],
)
def test_prompts_that_cannot_work_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "own.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_prompt(str(tmp_path / "own.txt"), CAPTION)


def test_prompts_of_the_package_ask_for_every_candidate_and_show_no_answer() -> None:
    """A judge that copies the last line has not answered."""
    from tests.bench.judge.server import completion
    from verl_uae.bench.judge.verdict import VerdictError, parse

    for mode, names in PACKAGED.items():
        for name in names:
            question = ask(load_prompt(name, mode), CAPTIONS if mode == CAPTION else PICTURES, False)
            last = text(question.parts).rstrip().rpartition("\n")[2]
            with pytest.raises(VerdictError):
                parse(completion(last), question.nonce)
            assert parse(completion(last.replace("N", "4").replace("A, B or tie", "B")), question.nonce).scores
    with pytest.raises(ConfigError):
        load_prompt("caption", RECONSTRUCTION)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.judge.server import completion
from verl_uae.bench.judge.contest import CAPTION, PACKAGED, RECONSTRUCTION, Comparison, Picture, ask, load_prompt
from verl_uae.bench.judge.protocol import Verdict, VerdictError, answer_text, parse_verdict
from verl_uae.errors import ConfigError

SOURCE = Picture(Path("/images/secret-name.png"), "source digest")
CAPTIONS = Comparison("secret-name.png", SOURCE, "a red circle", "a blue square\non grass")
PICTURES = Comparison("secret-name.png", SOURCE, Picture(Path("/a/1.png"), "one"), Picture(Path("/b/1.png"), "two"))


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
    for mode, names in PACKAGED.items():
        for name in names:
            question = ask(load_prompt(name, mode), CAPTIONS if mode == CAPTION else PICTURES, False)
            last = text(question.parts).rstrip().rpartition("\n")[2]
            with pytest.raises(VerdictError):
                parse_verdict(completion(last), question.nonce)
            assert parse_verdict(completion(last.replace("N", "4").replace("A, B or tie", "B")), question.nonce).scores
    with pytest.raises(ConfigError):
        load_prompt("caption", RECONSTRUCTION)


NONCE = "0123456789ab"
GOOD = json.dumps({"id": NONCE, "verdict": "A"})


def scored(a: Any, b: Any) -> str:
    return json.dumps({"id": NONCE, "scores": {"A": a, "B": b}, "verdict": "B"})


@pytest.mark.parametrize(
    ("content", "choice"),
    [
        (GOOD, "A"),
        (f"A is {{better}}.\n\n{GOOD}\n", "A"),
        (f"```json\n{GOOD}\n```", "A"),
        (f"Here:\n```\n{json.dumps(json.loads(GOOD), indent=2)}\n```\n", "A"),
        (f'First {{"id": "{NONCE}", "verdict": "B"}}, but no: {GOOD}', "A"),
        (f"<think>B wins. {json.dumps({'id': NONCE, 'verdict': 'B'})}</think>\n{GOOD}", "A"),
        ([{"type": "text", "text": "so\n"}, {"type": "text", "text": GOOD}], "A"),
        (GOOD.replace('"A"', '"tie"'), "tie"),
        ("{ " * 500 + GOOD, "A"),
        ('{"a":' * 100_000 + GOOD, "A"),
    ],
    ids=range(10),
)
def test_verdicts(content: Any, choice: str) -> None:
    assert parse_verdict(completion(content), NONCE).choice == choice


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        (None, "empty"),
        ("  \n", "empty"),
        (7, "empty"),
        ([], "empty"),
        ("A", "does not end with"),
        ("A is better. Verdict: A", "does not end with"),
        (f"{GOOD}\nI hope that helps.", "does not end with"),
        (f"{GOOD}.", "does not end with"),
        (GOOD[:-1], "does not end with"),
        ('{"verdict": "A"}', "does not name its question"),
        (GOOD.replace("ab", "ac"), "does not name its question"),
        (GOOD.replace('"A"', '"a"'), "none of A, B, tie"),
        (GOOD.replace('"A"', '"C"'), "none of A, B, tie"),
        (GOOD.replace('"A"', "true"), "none of A, B, tie"),
        (GOOD.replace('"A"', '["A"]'), "none of A, B, tie"),
        (GOOD.replace('"A"', '"A, B or tie"'), "none of A, B, tie"),
        (f'{GOOD[:-1]}, "verdict": "B"}}', "does not end with"),
        (f"[{GOOD}]", "does not end with"),
        (f"<think>{GOOD}", "ends within its reasoning"),
        (f"<think>yes</think><think>{GOOD}", "ends within its reasoning"),
        (f"<think>{GOOD}</think>", "does not end with"),
        ("{" * 100_000 + "}" * 100_000, "does not end with"),
    ],
    ids=range(23),
)
def test_what_is_no_verdict(content: Any, reason: str) -> None:
    with pytest.raises(VerdictError, match=reason):
        parse_verdict(completion(content), NONCE)


def test_a_last_line_of_one_letter_is_for_prompts_without_nonce() -> None:
    for text, choice in (("so\n\nB", "B"), ("A", "A"), ("x\n tie ", "tie"), ('ok {"verdict": "B"}', "B")):
        assert parse_verdict(completion(text), None) == Verdict(choice)
    for text in ("Verdict: B", "b", "A or B", "B\nthat is it", "C", "B."):
        with pytest.raises(VerdictError):
            parse_verdict(completion(text), None)
    with pytest.raises(VerdictError):
        parse_verdict(completion("B"), NONCE)


def test_answers_as_servers_give_them() -> None:
    """The shapes of vLLM and of OpenAI: reasoning apart, a refusal, a cut."""
    other = json.dumps({"id": NONCE, "verdict": "B"})
    for key in ("reasoning", "reasoning_content"):
        assert parse_verdict(completion(GOOD, **{key: other}), NONCE).choice == "A"
        # The tokens ran out while it was thinking.
        with pytest.raises(VerdictError, match="cut off"):
            parse_verdict(completion(None, "length", **{key: other}), NONCE)
        with pytest.raises(VerdictError, match="empty"):
            parse_verdict(completion(None, **{key: other}), NONCE)
    with pytest.raises(VerdictError, match="cut off"):
        parse_verdict(completion(GOOD, "length"), NONCE)
    with pytest.raises(VerdictError, match="filter"):
        parse_verdict(completion(GOOD, "content_filter"), NONCE)
    with pytest.raises(VerdictError, match="refused"):
        parse_verdict(completion(None, refusal="I cannot compare these."), NONCE)
    assert parse_verdict(completion(GOOD, refusal=None, tool_calls=[], annotations=[]), NONCE).choice == "A"
    vllm = completion("x" + GOOD)
    vllm["choices"][0] |= {"logprobs": None, "stop_reason": None, "token_ids": None}
    assert parse_verdict(vllm, NONCE).choice == "A" and answer_text(vllm) == "x" + GOOD
    for broken in (
        {},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"message": "A"}]},
        {"choices": [{"text": "A"}]},
    ):
        with pytest.raises(VerdictError, match="no message"):
            parse_verdict(broken, NONCE)


def test_scores_are_kept_if_both_candidates_have_the_same_valid_ones() -> None:
    good = parse_verdict(completion(scored({"content": 7, "fluency": 9.5}, {"content": 1, "fluency": 10})), NONCE)
    assert good.scores == {"A": {"content": 7.0, "fluency": 9.5}, "B": {"content": 1.0, "fluency": 10.0}}
    for a, b in (
        ({"content": 11}, {"content": 5}),
        ({"content": 0.5}, {"content": 5}),
        ({"content": "7"}, {"content": 5}),
        ({"content": True}, {"content": 5}),
        ({"content": float("nan")}, {"content": 5}),
        ({"content": 7}, {"fluency": 5}),
        ({"content": 7}, 5),
        (None, None),
    ):
        verdict = parse_verdict(completion(scored(a, b)), NONCE)
        assert (verdict.choice, verdict.scores) == ("B", {})

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench.judge.server import completion
from verl_uae.bench.judge.verdict import Verdict, VerdictError, answer_text, parse

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
    assert parse(completion(content), NONCE).choice == choice


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
        parse(completion(content), NONCE)


def test_a_last_line_of_one_letter_is_for_prompts_without_nonce() -> None:
    for text, choice in (("so\n\nB", "B"), ("A", "A"), ("x\n tie ", "tie"), ('ok {"verdict": "B"}', "B")):
        assert parse(completion(text), None) == Verdict(choice)
    for text in ("Verdict: B", "b", "A or B", "B\nthat is it", "C", "B."):
        with pytest.raises(VerdictError):
            parse(completion(text), None)
    with pytest.raises(VerdictError):
        parse(completion("B"), NONCE)


def test_answers_as_servers_give_them() -> None:
    """The shapes of vLLM and of OpenAI: reasoning apart, a refusal, a cut."""
    other = json.dumps({"id": NONCE, "verdict": "B"})
    for key in ("reasoning", "reasoning_content"):
        assert parse(completion(GOOD, **{key: other}), NONCE).choice == "A"
        # The tokens ran out while it was thinking.
        with pytest.raises(VerdictError, match="cut off"):
            parse(completion(None, "length", **{key: other}), NONCE)
        with pytest.raises(VerdictError, match="empty"):
            parse(completion(None, **{key: other}), NONCE)
    with pytest.raises(VerdictError, match="cut off"):
        parse(completion(GOOD, "length"), NONCE)
    with pytest.raises(VerdictError, match="filter"):
        parse(completion(GOOD, "content_filter"), NONCE)
    with pytest.raises(VerdictError, match="refused"):
        parse(completion(None, refusal="I cannot compare these."), NONCE)
    assert parse(completion(GOOD, refusal=None, tool_calls=[], annotations=[]), NONCE).choice == "A"
    vllm = completion("x" + GOOD)
    vllm["choices"][0] |= {"logprobs": None, "stop_reason": None, "token_ids": None}
    assert parse(vllm, NONCE).choice == "A" and answer_text(vllm) == "x" + GOOD
    for broken in (
        {},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"message": "A"}]},
        {"choices": [{"text": "A"}]},
    ):
        with pytest.raises(VerdictError, match="no message"):
            parse(broken, NONCE)


def test_scores_are_kept_if_both_candidates_have_the_same_valid_ones() -> None:
    good = parse(completion(scored({"content": 7, "fluency": 9.5}, {"content": 1, "fluency": 10})), NONCE)
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
        verdict = parse(completion(scored(a, b)), NONCE)
        assert (verdict.choice, verdict.scores) == ("B", {})

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The verdict in an answer of an OpenAI-compatible server, parsed strictly: what is in doubt is no verdict.

The answer has to end with one JSON object, whose ``verdict`` is "A", "B" or "tie" and whose ``id`` is the nonce of the
question, if that had one. Nothing before it is looked at, so a caption that a judge quotes decides nothing; nor is
reasoning that a server returns apart (vLLM's ``reasoning`` and, earlier, ``reasoning_content``,
https://docs.vllm.ai/en/stable/features/reasoning_outputs/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

A, B, TIE = "A", "B", "tie"
CHOICES = (A, B, TIE)

LOW, HIGH = 1.0, 10.0
"""Of scores."""

#: Characters at the end of an answer that the verdict has to be in.
_TAIL = 4096
_DECODER = json.JSONDecoder


class VerdictError(ValueError):
    """An answer without a valid verdict; the text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge decided, by the letters that it saw."""

    choice: str
    """One of `CHOICES`."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By letter and criterion, in [1, 10]; empty unless the same criteria are there for both."""


def answer_text(answer: Mapping[str, Any]) -> str:
    """The text of the first choice of a chat completion, without inline reasoning.

    Raises:
        VerdictError: it was cut off, filtered, refused, or is not there.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        finish, content, refusal = choice.get("finish_reason"), message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise VerdictError("the answer has no message") from error
    if refusal:
        raise VerdictError("refused")
    if finish == "length":
        raise VerdictError("cut off at the limit of tokens")
    if finish == "content_filter":
        raise VerdictError("stopped by a content filter")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        raise VerdictError("the answer is empty")
    # A server without a reasoning parser leaves the reasoning in the text.
    start, end = content.rfind("<think>"), content.rfind("</think>")
    if start > end:
        raise VerdictError("the answer ends within its reasoning")
    return content[end + len("</think>") :] if end >= 0 else content


def parse(answer: Mapping[str, Any], nonce: str | None) -> Verdict:
    """The verdict of a chat completion.

    Args:
        answer: body of the response.
        nonce: what ``id`` has to be. None: no ``id`` is needed, and a last line A, B or tie will do.

    Raises:
        VerdictError: there is none.
    """
    text = answer_text(answer).strip()
    if nonce is None:
        last = text.rpartition("\n")[2].strip()
        if last in CHOICES:
            return Verdict(last)
    found = _last_object(text)
    if nonce is not None and found.get("id") != nonce:
        raise VerdictError("the verdict does not name its question")
    choice = found.get("verdict")
    if choice not in CHOICES:
        raise VerdictError("the verdict is none of A, B, tie")
    return Verdict(choice, _scores(found.get("scores")))


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object that the text ends with; a code fence may close after it."""
    if text.endswith("```"):
        text = text[:-3].rstrip()
    text = text[-_TAIL:]
    decoder = _DECODER(object_pairs_hook=_unique)
    start = text.find("{")
    while text.endswith("}") and start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = -1
        if end == len(text):
            assert isinstance(value, dict)
            return value
        start = text.find("{", start + 1)
    raise VerdictError("the answer does not end with a verdict")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _scores(value: Any) -> dict[str, dict[str, float]]:
    """Valid scores of both candidates on the same criteria; else none, which costs the scores and not the verdict."""
    if not isinstance(value, dict) or not all(isinstance(value.get(letter), dict) for letter in (A, B)):
        return {}
    if value[A].keys() != value[B].keys():
        return {}
    scores: dict[str, dict[str, float]] = {A: {}, B: {}}
    for letter, given in scores.items():
        for name, score in value[letter].items():
            if isinstance(score, bool) or not isinstance(score, int | float) or not LOW <= score <= HIGH:
                return {}
            given[name] = float(score)
    return scores

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a judge is asked, and the verdict in its answer.

A prompt is a template in a file, filled in for one pair of candidates.
Placeholders are ``$source``, ``$picture_a``, ``$picture_b`` for pictures, ``$caption_a``, ``$caption_b`` for texts and
``$nonce`` for a word that belongs to the question; ``$$`` is a dollar sign. What is filled in is not searched for
placeholders again. The nonce is a hash of all that is judged, so no caption can hold it: it marks where captions begin
and end, and a verdict counts only with it.

The verdict in an answer of an OpenAI-compatible server is parsed strictly: what is in doubt is no verdict. The answer
has to end with one JSON object, whose ``verdict`` is "A", "B" or "tie" and whose ``id`` is the nonce of the question,
if that had one. Nothing before it is looked at, so a caption that a judge quotes decides nothing; nor is reasoning that
a server returns apart (vLLM's ``reasoning`` and, earlier, ``reasoning_content``,
https://docs.vllm.ai/en/stable/features/reasoning_outputs/).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, Comparison, Picture
from verl_uae.errors import ConfigError
from verl_uae.paths import expand
from verl_uae.text import unique_keys

VERSION = 1
"""Of the prompts in the package; part of their file names."""

#: Prompts of the package by the mode that they are for; the first is the default.
PACKAGED = {CAPTION: ("caption", "caption_blind"), RECONSTRUCTION: ("reconstruction",)}

REQUIRED = {CAPTION: {"caption_a", "caption_b"}, RECONSTRUCTION: {"source", "picture_a", "picture_b"}}
_ALLOWED = {name: names | {"source", "nonce"} for name, names in REQUIRED.items()}

NONCE_LENGTH = 12
"""Hexadecimal digits."""

A, B, NO_PREFERENCE = "A", "B", "tie"
CHOICES = (A, B, NO_PREFERENCE)

LOW, HIGH = 1.0, 10.0
"""Of scores."""

#: Characters at the end of an answer that the verdict has to be in.
_TAIL = 4096

_PLACEHOLDER = re.compile(r"\$(?:(\$)|([a-z_]+))")


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A template for one mode."""

    name: str
    """Name and version in the package, or the file."""
    mode: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def placeholders(self) -> set[str]:
        return {name for _, name in _PLACEHOLDER.findall(self.text) if name}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt filled in for one picture and one order of its candidates."""

    comparison: Comparison
    swapped: bool
    """Whether A is the second candidate."""
    parts: tuple[str | Picture, ...]
    nonce: str | None
    """What the verdict has to name; None where the prompt does not ask for it."""


def load_prompt(source: str | None, mode: str) -> JudgePrompt:
    """A prompt of the package by name, or of a file.

    Args:
        source: name or path; None is the default of the mode.
        mode: ``caption`` or ``reconstruction``.

    Raises:
        ConfigError: it cannot be read, lacks a candidate or has an unknown placeholder.
    """
    name = PACKAGED[mode][0] if source is None else source
    try:
        if name in PACKAGED[mode]:
            name = f"{name}.v{VERSION}"
            text = resources.files(__package__).joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
        else:
            text = expand(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(PACKAGED[mode])
        raise ConfigError("--prompt", f"neither one of {known} nor a readable text file: {error}") from error
    prompt = JudgePrompt(name, mode, text)
    missing, unknown = REQUIRED[mode] - prompt.placeholders, prompt.placeholders - _ALLOWED[mode]
    if missing or unknown:
        what = f"lacks ${min(missing)}" if missing else f"has an unknown placeholder ${min(unknown)}"
        raise ConfigError("--prompt", f"{name} {what}, for mode {mode}")
    return prompt


def ask(prompt: JudgePrompt, comparison: Comparison, swapped: bool) -> Question:
    """The question for one order of the candidates of a picture."""
    a, b = (comparison.second, comparison.first) if swapped else (comparison.first, comparison.second)
    nonce = _nonce(prompt, comparison.source, a, b)
    kind = "caption" if prompt.mode == CAPTION else "picture"
    filling = {"source": comparison.source, f"{kind}_a": a, f"{kind}_b": b, "nonce": nonce}
    wanted = nonce if "nonce" in prompt.placeholders else None
    return Question(comparison, swapped, _fill(prompt.text, filling), wanted)


def _fill(text: str, filling: Mapping[str, str | Picture]) -> tuple[str | Picture, ...]:
    parts: list[str | Picture] = []
    position = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(text[position : found.start()])
        parts.append("$" if found[1] else filling[found[2]])
        position = found.end()
    parts.append(text[position:])
    joined: list[str | Picture] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def _nonce(prompt: JudgePrompt, source: Picture, a: str | Picture, b: str | Picture) -> str:
    digests = [content if isinstance(content, str) else content.digest for content in (source, a, b)]
    parts = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in (prompt.text, *digests)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:NONCE_LENGTH]


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


def parse_verdict(answer: Mapping[str, Any], nonce: str | None) -> Verdict:
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
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
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

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a judge is asked: a template in a file, filled in for one pair of candidates.

Placeholders are ``$source``, ``$picture_a``, ``$picture_b`` for pictures, ``$caption_a``, ``$caption_b`` for texts and
``$nonce`` for a word that belongs to the question; ``$$`` is a dollar sign. What is filled in is not searched for
placeholders again. The nonce is a hash of all that is judged, so no caption can hold it: it marks where captions begin
and end, and a verdict counts only with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, Item, Picture
from verl_uae.errors import ConfigError
from verl_uae.paths import expand

VERSION = 1
"""Of the prompts in the package; part of their file names."""

#: Prompts of the package by the mode that they are for; the first is the default.
PACKAGED = {CAPTION: ("caption", "caption_blind"), RECONSTRUCTION: ("reconstruction",)}

REQUIRED = {CAPTION: {"caption_a", "caption_b"}, RECONSTRUCTION: {"source", "picture_a", "picture_b"}}
_ALLOWED = {name: names | {"source", "nonce"} for name, names in REQUIRED.items()}

NONCE_LENGTH = 12
"""Hexadecimal digits."""

_PLACEHOLDER = re.compile(r"\$(?:(\$)|([a-z_]+))")


@dataclass(frozen=True, slots=True)
class Prompt:
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

    item: Item
    swapped: bool
    """Whether A is the second candidate."""
    parts: tuple[str | Picture, ...]
    nonce: str | None
    """What the verdict has to name; None where the prompt does not ask for it."""


def load_prompt(source: str | None, mode: str) -> Prompt:
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
    prompt = Prompt(name, mode, text)
    missing, unknown = REQUIRED[mode] - prompt.placeholders, prompt.placeholders - _ALLOWED[mode]
    if missing or unknown:
        what = f"lacks ${min(missing)}" if missing else f"has an unknown placeholder ${min(unknown)}"
        raise ConfigError("--prompt", f"{name} {what}, for mode {mode}")
    return prompt


def ask(prompt: Prompt, item: Item, swapped: bool) -> Question:
    """The question for one order of the candidates of a picture."""
    a, b = (item.second, item.first) if swapped else (item.first, item.second)
    nonce = _nonce(prompt, item.source, a, b)
    kind = "caption" if prompt.mode == CAPTION else "picture"
    filling = {"source": item.source, f"{kind}_a": a, f"{kind}_b": b, "nonce": nonce}
    wanted = nonce if "nonce" in prompt.placeholders else None
    return Question(item, swapped, _fill(prompt.text, filling), wanted)


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


def _nonce(prompt: Prompt, source: Picture, a: str | Picture, b: str | Picture) -> str:
    digests = [content if isinstance(content, str) else content.digest for content in (source, a, b)]
    parts = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in (prompt.text, *digests)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:NONCE_LENGTH]

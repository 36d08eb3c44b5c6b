# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a scorer should have scored: the prompts and samples of a drawn folder, or of a benchmark's own file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae.bench.external.draw import PROMPTS, read_manifest
from verl_uae.bench.external.layout import LAYOUTS
from verl_uae.bench.external.prompts import ORIGINAL, REWRITTEN, Bench, read_prompts
from verl_uae.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class ExpectedPrompt:
    """A prompt as its scorer knows it."""

    text: str
    drawn: str
    tag: str | None


@dataclass(frozen=True, slots=True)
class Expected:
    """Everything that belongs to a result."""

    bench: Bench
    prompt_set: str
    """``original`` or ``rewritten``."""
    prompts: dict[str, ExpectedPrompt]
    """By key, in the benchmark's order."""
    samples: int
    """Per prompt."""
    source: dict[str, Any]
    """Digest of the prompts; settings of the drawing where it is ours."""


def expected_of_drawn(bench: Bench, out: str | os.PathLike[str]) -> Expected:
    """What `draw_prompts` set out to draw, drawn or not.

    Raises:
        ConfigError: ``out`` is no such folder, or of another benchmark.
        DataError: its list of prompts is damaged.
    """
    manifest = read_manifest(out)
    if manifest.get("bench") != bench:
        raise ConfigError("--drawn", f"{out} has the pictures of {manifest.get('bench')}, not of {bench}")
    prompts: dict[str, ExpectedPrompt] = {}
    path = Path(out) / PROMPTS
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        prompts = {line["key"]: ExpectedPrompt(line["prompt"], line["drawn_prompt"], line["tag"]) for line in lines}
        samples, name = int(manifest["samples_per_prompt"]), str(manifest["prompt_set"])
        source = {key: manifest[key] for key in ("source", "rewritten", "drawing")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, None, f"is not what was written: {error}") from error
    if len(prompts) != manifest["prompts"]:
        raise DataError(path, None, f"has {len(prompts)} prompts, the manifest {manifest['prompts']}")
    return Expected(bench, name, prompts, samples, source)


def expected_of_source(
    bench: Bench,
    source: str | os.PathLike[str],
    *,
    samples: int | None = None,
    rewritten: str | os.PathLike[str] | None = None,
    prompt_set: str | None = None,
) -> Expected:
    """What pictures of another program should be.

    Args:
        bench: ``geneval``, ``genevalpp`` or ``dpg``.
        source: the benchmark's own prompts, see `read_prompts`.
        samples: per prompt; default: what the benchmark asks for.
        rewritten: the texts that were drawn, where they are others.
        prompt_set: ``original`` or ``rewritten``, where the rewritten texts are not at hand.

    Raises:
        ConfigError: an argument is impossible.
        DataError: see `read_prompts`.
    """
    found = read_prompts(bench, source, rewritten)
    if prompt_set not in (None, ORIGINAL, REWRITTEN):
        raise ConfigError("--prompt-set", f"must be {ORIGINAL} or {REWRITTEN}, got {prompt_set!r}")
    if rewritten is not None and prompt_set == ORIGINAL:
        raise ConfigError("--prompt-set", f"is {ORIGINAL}, but rewritten prompts are given")
    layout = LAYOUTS[bench]
    count = layout.check_samples(layout.samples if samples is None else samples)
    prompts = {prompt.key: ExpectedPrompt(prompt.text, prompt.drawn, prompt.tag) for prompt in found.prompts}
    described = {"source": found.source, "rewritten": found.rewritten, "drawing": None}
    return Expected(bench, prompt_set or found.name, prompts, count, described)

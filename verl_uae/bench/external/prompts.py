# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Prompt files of GenEval, GenEval++ and DPG-Bench, and rewritten prompts beside them.

Formats: GenEval ``prompts/evaluation_metadata.jsonl`` (https://github.com/djghosh13/geneval, commit af4902f);
GenEval++ ``test_scripts/Geneval++.jsonl`` (https://github.com/yejy53/Echo-4o, commit 28f36d7); DPG-Bench
``dpg_bench/prompts/*.txt`` (https://github.com/TencentQQGYLab/ELLA, commit 3c228f1).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl_uae.errors import ConfigError, DataError

Bench = Literal["geneval", "genevalpp", "dpg"]
BENCHES: tuple[Bench, ...] = ("geneval", "genevalpp", "dpg")

#: Sets of prompts whose scores do not compare.
ORIGINAL, REWRITTEN = "original", "rewritten"

#: What a rewriter must leave as it was, where its file has it.
_REQUIREMENTS = ("tag", "include", "exclude")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a benchmark."""

    key: str
    """Name within the benchmark: ``00000`` of GenEval, ``1`` of GenEval++, the stem of the file of DPG-Bench."""
    text: str
    """The benchmark's own text, which the scorer knows."""
    drawn: str
    """The text that is drawn: ``text``, or its rewritten form."""
    occurrence: int
    """How many prompts before it have the same text."""
    metadata: dict[str, Any]
    """The line of the benchmark's file; empty for DPG-Bench."""

    @property
    def tag(self) -> str | None:
        """The category; None for DPG-Bench, whose categories belong to questions."""
        return self.metadata.get("tag")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of a benchmark, in its order."""

    bench: Bench
    prompts: tuple[Prompt, ...]
    source: dict[str, str]
    """``path`` and ``sha256`` of the benchmark's file or folder."""
    rewritten: dict[str, str] | None = None
    """The same of the rewritten prompts."""

    @property
    def name(self) -> str:
        """``original`` or ``rewritten``."""
        return ORIGINAL if self.rewritten is None else REWRITTEN


def read_prompts(
    bench: Bench, source: str | os.PathLike[str], rewritten: str | os.PathLike[str] | None = None
) -> PromptSet:
    """Read the prompts of a benchmark.

    Args:
        bench: ``geneval``, ``genevalpp`` or ``dpg``.
        source: the benchmark's own file (JSON lines with ``tag`` and ``prompt``), or its folder of text files.
        rewritten: texts to draw instead: JSON lines with ``prompt``, or one text per line, in the order of ``source``;
            for DPG-Bench a folder of files with the same names.

    Raises:
        ConfigError: the benchmark is unknown, or a file or folder does not exist.
        DataError: a line is no prompt, or the rewritten prompts belong to other originals.
    """
    if bench not in BENCHES:
        raise ConfigError("bench", f"must be one of {', '.join(BENCHES)}, got {bench!r}")
    path = Path(source)
    named = _folder(path) if bench == "dpg" else _metadata(path, first=1 if bench == "genevalpp" else 0)
    if not named:
        raise DataError(path, None, "has no prompts")
    drawn = [str(line["prompt"]) for _, line in named]
    if rewritten is not None:
        drawn = _rewritten(bench, Path(rewritten), named)
    seen: Counter[str] = Counter()
    prompts = []
    for (key, line), text in zip(named, drawn, strict=True):
        original = str(line["prompt"])
        prompts.append(Prompt(key, original, text, seen[original], {} if bench == "dpg" else line))
        seen[original] += 1
    return PromptSet(bench, tuple(prompts), _origin(path), None if rewritten is None else _origin(Path(rewritten)))


def _metadata(path: Path, first: int) -> list[tuple[str, dict[str, Any]]]:
    lines = _json_lines(path)
    for row, line in enumerate(lines):
        if not isinstance(line.get("tag"), str) or not line["tag"]:
            raise DataError(path, row, "has no tag")
    # GenEval counts from 00000 (generation/diffusers_generate.py), GenEval++ from 1 (Eval.md).
    return [(str(row + 1) if first else f"{row:05d}", line) for row, line in enumerate(lines)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for row, text in enumerate(_text_lines(path)):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(path, row, f"is no JSON: {error}") from error
        if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not line["prompt"].strip():
            raise DataError(path, row, "has no prompt")
        lines.append(line)
    return lines


def _text_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError("prompts", f"{path} is not a file")
    # Lines end at a line feed alone: a prompt may hold a character that Python counts as the end of a line.
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _folder(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_dir():
        raise ConfigError("prompts", f"{path} is not a folder of text files")
    named = []
    for file in sorted(path.glob("*.txt")):
        if "." in file.stem:
            raise DataError(file, None, "the scorer takes the name up to the first point; rename it")
        text = file.read_text(encoding="utf-8").strip()
        if not text:
            raise DataError(file, None, "has no prompt")
        named.append((file.stem, {"prompt": text}))
    return named


def _rewritten(bench: Bench, path: Path, named: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    if bench == "dpg":
        texts = {key: str(line["prompt"]) for key, line in _folder(path)}
        missing = [key for key, _ in named if key not in texts]
        if missing:
            raise DataError(path / f"{missing[0]}.txt", None, f"missing, and {len(missing) - 1} more")
        return [texts[key] for key, _ in named]
    lines = _json_lines(path) if path.suffix == ".jsonl" else [{"prompt": text} for text in _text_lines(path)]
    if len(lines) != len(named):
        raise DataError(path, None, f"has {len(lines)} prompts for {len(named)} originals")
    for row, (line, (_, original)) in enumerate(zip(lines, named, strict=True)):
        for name in _REQUIREMENTS:
            if name in line and line[name] != original.get(name):
                raise DataError(path, row, f"its {name} is not that of the original: another order, or another set")
    return [str(line["prompt"]) for line in lines]


def _origin(path: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() if path.is_dir() else b"")
        digest.update(content)
    return {"path": str(path), "sha256": digest.hexdigest()}

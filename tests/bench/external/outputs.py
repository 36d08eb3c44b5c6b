# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the three scorers write, in their forms, from given verdicts."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_uae.bench.external.prompts import BenchPrompt, PromptSet

DIGEST = {"path": "somewhere", "sha256": "0"}


def expect(bench: Any, prompts: Mapping[str, tuple[str | None, str]], samples: int = 1, **changes: Any) -> PromptSet:
    """``prompts``: (tag, text) by key."""
    found = {key: BenchPrompt(text, text, tag) for key, (tag, text) in prompts.items()}
    source = {"source": DIGEST, "rewritten": None, "drawing": None}
    return PromptSet(bench, changes.pop("prompt_set", "original"), found, samples, source | changes)


def geneval_line(key: str, sample: int, tag: str, text: str, correct: object, **metadata: str) -> dict[str, Any]:
    return {
        "filename": f"/data/images/{key}/samples/{sample:04d}.png",
        "tag": tag,
        "prompt": text,
        "correct": correct,
        "reason": "" if correct else "expected cow>=1, found 0",
        "metadata": json.dumps({"tag": tag, "include": [], "prompt": text} | metadata),
        "details": "{}",
    }


def genevalpp_file(path: Path, verdicts: Sequence[tuple[int, str, str, Any]], **changes: Any) -> Path:
    """``verdicts``: (id, tag, prompt, result); the accuracies follow the scorer's arithmetic."""
    marks: dict[str, list[bool]] = {}
    for _, tag, _, result in verdicts:
        marks.setdefault(tag, []).append(result.get("correct", 0) == 1)
    accuracy = {tag: round(sum(found) / len(found), 4) for tag, found in marks.items()}
    content = {
        "overall_results": [{"id": i, "tag": t, "prompt": p, "result": r} for i, t, p, r in verdicts],
        "tag_accuracy": accuracy,
        "overall_score_mean_of_tags": round(sum(accuracy.values()) / len(accuracy), 4),
        "overall_accuracy_all_samples": round(sum(map(sum, marks.values())) / len(verdicts), 4),
    }
    path.write_text(json.dumps(content | changes, indent=2))
    return path


#: (tuple, question, dependency) of each proposition, by prompt; the commas are part of it.
QUESTIONS = {
    "partiprompts97": [("entity - whole (corgi)", "Is there a corgi?", "0"), ("other - count (x)", "One?", "1")],
    "10": [
        ("entity - whole (circle)", "Is there a circle, or a square?", "0"),
        ("attribute - color (circle, red)", "Is it red?", "1"),
        ("relation - spatial (a, b, above)", "Is it above?", "1, 2"),
        ("global - (photo)", "Is it a photo?", "0"),
    ],
    "2": [("entity - whole (triangle)", "Is there a triangle?", "0"), ("attribute - size (x)", "Is it big?", "1")],
}


def questions_file(path: Path, questions: Mapping[str, Sequence[tuple[str, str, str]]] = QUESTIONS) -> Path:
    names = (
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        "question_natural_language"
    )
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names.split(","))
        for key, propositions in questions.items():
            for number, (label, text, dependency) in enumerate(propositions, 1):
                broad = label.split(" ")[0]
                writer.writerow([key, "text", "", number, dependency, broad, "", label, text])
    return path


def dpg_files(
    path: Path,
    scores: Mapping[str, Sequence[float]],
    answers: Mapping[str, Sequence[Sequence[str]]] | None = None,
    overall: float = 0.5,
    side: int = 512,
) -> Path:
    """A file of results, and beside it the answers: by prompt, sample and question."""
    lines = [
        f"/data/a, b/{key}.png, {', '.join(str(s) for s in found)}, {sum(found) / len(found)}"
        for key, found in scores.items()
    ]
    lines += ["Model: b", "L1 category scores:", "\tentity: 75.0", "\tglobal: 50.0", "L2 category scores:"]
    lines += ["\tentity - whole: 75.0", "Image path: /data/a, b", f"DPG-Bench score: {overall * 100}"]
    path.write_text("\n".join(lines) + "\n")
    detail = []
    for key, samples in (answers or {}).items():
        for sample, replies in enumerate(samples):
            x, y = sample % 2 * side, sample // 2 * side
            for (_, text, _), reply in zip(QUESTIONS[key], replies, strict=True):
                detail.append(f"/data/a, b/{key}.png, {(x, y, x + side, y + side)}, {text}, {reply}")
    if answers is not None:
        Path(str(path).replace(".txt", "_detail.txt")).write_text("".join(f"{line}\n" for line in detail))
    return path

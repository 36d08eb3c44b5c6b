# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""lmms-eval: a UAE folder's captioner as a model, task files for understanding, and the guard on what RL unlearns.

lmms-eval is not a dependency. It finds the model by the entry point ``lmms_eval.models``, which is :func:`manifest`,
the tasks by ``--include_path``, and the prompts and scores of the task files by name; only
:mod:`~verl_uae.bench.lmms.model` and :func:`manifest` import it. Rows are of ``lmms-lab-encoder/MMT-Benchmark``,
``lmms-lab-encoder/POPE`` and ``echo840/OCRBench`` as lmms-eval 0.7.3 reads them; docs/other_benches.md says where the
tasks differ from its own.

The guard compares two result files, before and after RL, metric by metric. Their form: lmms-eval 0.7.3,
``loggers/evaluation_tracker.py``: ``results`` by task with keys ``metric,filter``, ``higher_is_better``,
``n-samples``, ``versions``, ``config``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae.bench.results import NOTHING, markdown_table, number, read_json, with_notes
from verl_uae.checkpoints.names import CAPTIONER, CONFIG, MODEL_INDEX
from verl_uae.checkpoints.source import refuse_renamed
from verl_uae.errors import CheckpointError, ConfigError, DataError

MODEL = "uae"
"""Name for ``--model``."""

TASKS = Path(__file__).parent / "tasks"
"""Folder for ``--include_path``."""


def manifest() -> Any:
    """The ``ModelManifest`` of the captioner; called by lmms-eval alone (its ``models/registry_v2.py``, 0.7.3)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=f"{__name__}.model.UAECaptioner")


def captioner_folder(path: Path) -> Path:
    """The transformers folder of the captioner of a UAE or transformers folder; a hub id is returned as it is.

    Raises:
        CheckpointError: the folder is neither, or what is there is of no known family.
    """
    if not path.is_dir():
        return path
    refuse_renamed(path)
    folder = path / CAPTIONER if (path / MODEL_INDEX).is_file() else path
    if not (folder / CONFIG).is_file():
        raise CheckpointError(path, f"has no captioner: {folder / CONFIG} does not exist")
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(folder / CONFIG, f"cannot be read: {error}") from error
    # Imported here: the guard compares files of numbers and needs no torch.
    from verl_uae.captioners import family_of

    family_of(found, folder)
    return folder


LETTERS = "ABCDEFGHI"

#: A letter of its own: in parentheses, before punctuation or at the end of a line; "A cat" is no choice.
_CHOICE = re.compile(r"\(([A-I])\)|(?<![A-Za-z0-9'])([A-I])(?=[.:,;)!*]|\s*$)", re.MULTILINE)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

#: Groups of OCRBench (https://arxiv.org/abs/2305.07895); what is not named here is text recognition.
OCR_GROUPS = {
    "Scene Text-centric VQA": "scene_vqa",
    "Doc-oriented VQA": "document_vqa",
    "Key Information Extraction": "key_information",
    "Handwritten Mathematical Expression Recognition": "handwritten_mathematics",
}
RECOGNITION = "recognition"

#: Full-width forms of ASCII, as in Chinese text, and the ideographic space.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}

#: Data set within OCRBench whose answers are formulas: compared without spaces, and case counts.
_FORMULAS = "HME100k"


def visuals(doc: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, in RGB."""
    found = doc["image"] if isinstance(doc["image"], list) else [doc["image"]]
    return [image.convert("RGB") for image in found]


def _prompt(text: str, settings: Mapping[str, Any] | None) -> str:
    settings = settings or {}
    return f"{settings.get('pre_prompt', '')}{text}{settings.get('post_prompt', '')}"


def question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The question of a row of POPE or OCRBench."""
    return _prompt(doc["question"].strip(), lmms_eval_specific_kwargs)


def choices(doc: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the choices of a row of MMT-Bench, by letter."""
    return {letter: doc[letter].strip() for letter in LETTERS if (doc.get(letter) or "").strip()}


def mmt_question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """Question and choices of a row of MMT-Bench."""
    lines = [doc["question"].strip(), *(f"{letter}: {text}" for letter, text in choices(doc).items())]
    return _prompt("\n".join(lines), lmms_eval_specific_kwargs)


def chosen(answer: str, letters: Sequence[str]) -> str | None:
    """The one choice that an answer names; None where it names none or several."""
    found = {match[1] or match[2] for match in _CHOICE.finditer(answer.strip())}
    return next(iter(found)) if len(found) == 1 and found <= set(letters) else None


def mmt_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of one row of MMT-Bench: of all, and of its category."""
    choice = chosen(results[0], list(choices(doc)))
    score = float(choice is not None and choice == doc["answer"].strip())
    return {"accuracy": score, "unanswered": float(choice is None), str(doc["l2-category"]): score}


def yes_or_no(answer: str) -> str | None:
    """``yes`` or ``no`` as an answer begins; None where it begins with neither."""
    match = _YES_NO.match(answer)
    return None if match is None else match[1].lower()


def pope_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Scores of one row of POPE; a pair (answer, truth) for those over all rows."""
    said, truth = yes_or_no(results[0]), doc["answer"].strip().lower()
    scores = {"accuracy": float(said == truth), "unanswered": float(said is None), "yes_ratio": float(said == "yes")}
    return {**scores, **dict.fromkeys(("precision", "recall", "f1"), (said, truth))}


def _hits(pairs: Sequence[Sequence[str | None]]) -> tuple[int, int, int]:
    """(right yes, all answers yes, all truths yes)."""
    right = sum(said == truth == "yes" for said, truth in pairs)
    return right, sum(said == "yes" for said, _ in pairs), sum(truth == "yes" for _, truth in pairs)


def precision(pairs: Sequence[Sequence[str | None]]) -> float:
    """Share of the answers yes that are right; 0 without any."""
    right, said, _ = _hits(pairs)
    return right / max(1, said)


def recall(pairs: Sequence[Sequence[str | None]]) -> float:
    """Share of the truths yes that were answered yes; 0 without any."""
    right, _, true = _hits(pairs)
    return right / max(1, true)


def f1(pairs: Sequence[Sequence[str | None]]) -> float:
    """Harmonic mean of precision and recall; 0 where both are."""
    right, said, true = _hits(pairs)
    return 2 * right / max(1, said + true)


def ocr_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of one row of OCRBench: an accepted answer occurs in what was said."""
    accepted = doc["answer"] if isinstance(doc["answer"], list) else [doc["answer"]]
    exact = doc["dataset"] == _FORMULAS
    said = _folded(results[0], exact)
    score = float(any(_folded(text, exact) in said for text in accepted))
    return {"accuracy": score, OCR_GROUPS.get(doc["question_type"], RECOGNITION): score}


def _folded(text: str, exact: bool) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if exact else text.translate(_FULL_WIDTH).lower()


#: A drop is beyond its limit if it is by more than the rounding of a difference.
_ROUNDING = 1e-9

#: Metrics of reading: task and metric, ours and those of lmms-eval's own tasks.
READING = (
    ("uae_ocrbench", "accuracy"),
    ("uae_mmt_val", "ocr"),
    ("uae_mmt_val", "doc_understanding"),
    ("ocrbench", "ocrbench_accuracy"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One metric before and after, in points (a share times 100)."""

    task: str
    metric: str
    before: float
    after: float
    drop: float
    """How much worse it became; negative where it became better."""
    standard_error: float | None
    """Of the difference, as if the answers of both were independent; they share their questions, so it is an upper
    bound where right answers coincide. None where a file has none."""
    count: int
    """Rows of the task."""
    watched: bool
    """Whether the limit applies to it."""


def read_changes(
    before: str | os.PathLike[str], after: str | os.PathLike[str], watch: Sequence[str] | None = None
) -> list[Change]:
    """Compare two ``*_results.json``, before and after RL: every metric that both have, in the order of the file.

    Args:
        watch: ``TASK:METRIC`` to watch; default: those of `READING` that are in ``before``.

    Raises:
        ConfigError: there is nothing to watch.
        DataError: a file is no result, a watched metric is missing after RL, or the two are not over the same rows.
    """
    first, second = _read(before), _read(after)
    watched = _watched(Path(before), first, watch)
    changes = []
    for task, metrics in first["results"].items():
        for metric in [name for name in _metrics(metrics) if name in _metrics(second["results"].get(task, {}))]:
            _check_rows(Path(after), task, first, second)
            changes.append(_change(task, metric, first, second, (task, metric) in watched))
    lost = sorted(watched - {(change.task, change.metric) for change in changes})
    if lost:
        raise DataError(Path(after), None, f"has no {':'.join(lost[0])}, which is watched")
    return changes


def exceeded(changes: Sequence[Change], max_drop: float) -> list[Change]:
    """The watched ones that dropped by more than ``max_drop`` points."""
    return [change for change in changes if change.watched and change.drop > max_drop + _ROUNDING]


def guard_table(changes: Sequence[Change], max_drop: float) -> str:
    """A Markdown table, and a line for each watched metric beyond the limit."""
    head = ["task", "metric", "rows", "before", "after", "drop", "standard error", f"limit {max_drop:g}"]
    beyond = exceeded(changes, max_drop)
    rows = []
    for change in changes:
        verdict = NOTHING if not change.watched else ("exceeded" if change in beyond else "kept")
        numbers = [number(value) for value in (change.before, change.after, change.drop, change.standard_error)]
        rows.append([change.task, change.metric, str(change.count), *numbers, verdict])
    warnings = [
        f"* {change.task}:{change.metric} dropped by {change.drop:.2f} points, more than {max_drop:g}."
        for change in beyond
    ]
    return with_notes(markdown_table(head, rows, words=(0, 1, 7)), warnings)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = read_json(path)
    content = {"versions": {}, "higher_is_better": {}, "config": {}, **content} if isinstance(content, dict) else {}
    tables = [content.get(name) for name in ("results", "n-samples", "versions", "higher_is_better", "config")]
    for table in tables[:2]:
        tables += table.values() if isinstance(table, dict) else []
    if not all(isinstance(table, dict) for table in tables):
        raise DataError(Path(path), None, "is no result of lmms-eval")
    return content


def _metrics(entries: Mapping[str, Any]) -> dict[str, str]:
    """Keys of numbers by name of the metric, without their standard errors."""
    found: dict[str, str] = {}
    for key, value in entries.items():
        name, comma, _ = key.partition(",")
        if comma and "_stderr" not in name and isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(name, key)
    return found


def _watched(path: Path, content: Mapping[str, Any], watch: Sequence[str] | None) -> set[tuple[str, str]]:
    have = {(task, metric) for task, entries in content["results"].items() for metric in _metrics(entries)}
    if watch is None:
        found = set(READING) & have
        if not found:
            raise ConfigError("--watch", f"{path} has none of {', '.join(':'.join(pair) for pair in READING)}")
        return found
    wanted = {(task, metric) for task, _, metric in (text.partition(":") for text in watch)}
    for pair in sorted(wanted - have):
        raise ConfigError("--watch", f"{path} has no {':'.join(pair)}")
    return wanted


def _check_rows(path: Path, task: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """A drop means something over the same rows of the same task."""
    for section, what in (("n-samples", "number of rows"), ("versions", "version")):
        before, after = first[section].get(task), second[section].get(task)
        if before != after:
            raise DataError(path, None, f"{task} is of another {what} than before: {after!r}, not {before!r}")
    for key in ("limit", "offset"):
        before, after = first["config"].get(key) or 0, second["config"].get(key) or 0
        if before != after:
            raise DataError(path, None, f"was run with another {key} than before: {after}, not {before}")


def _change(task: str, metric: str, first: Mapping[str, Any], second: Mapping[str, Any], watched: bool) -> Change:
    tables = [content["results"][task] for content in (first, second)]
    entries = [(table, _metrics(table)[metric]) for table in tables]
    before, after = (float(table[key]) for table, key in entries)
    if not (math.isfinite(before) and math.isfinite(after)):
        raise DataError("results", None, f"{task}:{metric} is {before} before and {after} after")
    # Some tasks of lmms-eval count in shares, some in percent.
    scale = 100.0 if max(abs(before), abs(after)) <= 1.0 else 1.0
    errors = [table.get(key.replace(",", "_stderr,", 1)) for table, key in entries]
    known = [float(error) for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    error = scale * math.hypot(*known) if len(known) == 2 else None
    before, after = scale * before, scale * after
    lower = first["higher_is_better"].get(task, {}).get(metric) is False
    drop = after - before if lower else before - after
    return Change(task, metric, before, after, drop, error, int(first["n-samples"][task]["effective"]), watched)

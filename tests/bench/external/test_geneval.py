# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.bench.external.conftest import write_lines
from tests.bench.external.outputs import DIGEST, expect, geneval_line
from verl_uae.bench.external.geneval import read_geneval
from verl_uae.errors import DataError

PROMPTS = {
    "00000": ("single_object", "a photo of a bench"),
    "00001": ("single_object", "a photo of a cow"),
    "00002": ("counting", "a photo of two clocks"),
}
#: Correct samples of each prompt: single_object 5 of 8, counting 1 of 4.
VERDICTS = {"00000": (1, 1, 1, 1), "00001": (0, 1, 0, 0), "00002": (0, 0, 1, 0)}


def lines(verdicts: dict[str, tuple[int, ...]] = VERDICTS) -> list[dict[str, Any]]:
    return [
        geneval_line(key, sample, *PROMPTS[key], bool(correct))
        for key, found in verdicts.items()
        for sample, correct in enumerate(found)
    ]


def test_scores_by_hand(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "results.jsonl", lines()[::-1])
    found = read_geneval(path, expect("geneval", PROMPTS, 4))
    single, counting = found.categories["single_object"], found.categories["counting"]
    assert (single.score, sum(single.counts), single.expected) == (5 / 8, 8, 8)
    assert (counting.score, sum(counting.counts), counting.expected) == (1 / 4, 4, 4)
    assert found.overall == (5 / 8 + 1 / 4) / 2 and found.missing == [] and found.scored == 12
    assert found.official["correct_pictures"] == 6 / 12 and found.official["correct_prompts"] == 3 / 3


def test_scores_are_those_of_the_official_arithmetic(tmp_path: Path) -> None:
    """What summary_scores.py does, with pandas, on 40 prompts in three uneven groups."""
    rng = np.random.default_rng(0)
    prompts = {f"{n:05d}": (("a", "b", "b", "c")[n % 4], f"prompt {n}") for n in range(40)}
    entries = [
        geneval_line(key, sample, tag, text, bool(rng.random() < 0.6))
        for key, (tag, text) in prompts.items()
        for sample in range(4)
    ]
    path = write_lines(tmp_path / "results.jsonl", entries)
    found = read_geneval(path, expect("geneval", prompts, 4))
    table = pd.read_json(path, orient="records", lines=True)
    groups = table.groupby("tag", sort=False)["correct"].mean()
    assert {tag: category.score for tag, category in found.categories.items()} == pytest.approx(groups.to_dict())
    assert found.overall == pytest.approx(np.mean(list(groups)))
    assert found.official["correct_prompts"] == pytest.approx(table.groupby("metadata")["correct"].any().mean())


def test_the_interval_resamples_prompts_within_tags(tmp_path: Path) -> None:
    """Samples of a prompt stay together: with equal prompts in each tag nothing varies, whatever the samples are."""
    prompts = {f"{n:05d}": (("a", "b")[n % 2], f"prompt {n}") for n in range(30)}
    entries = [
        geneval_line(key, s, tag, text, s < (1 if tag == "a" else 3)) for key, (tag, text) in prompts.items()
        for s in range(4)
    ]  # fmt: skip
    found = read_geneval(write_lines(tmp_path / "equal.jsonl", entries), expect("geneval", prompts, 4))
    assert found.overall == 0.5 and found.overall_interval == [0.5, 0.5]
    # All samples of a prompt right or wrong: the deviation of a mean of 15 prompts, over two tags.
    right = {key: int(key) % 4 < 2 for key in prompts}
    entries = [geneval_line(key, s, *prompts[key], right[key]) for key in prompts for s in range(4)]
    found = read_geneval(write_lines(tmp_path / "whole.jsonl", entries), expect("geneval", prompts, 4))
    share = np.mean([right[key] for key in prompts if prompts[key][0] == "a"])
    other = np.mean([right[key] for key in prompts if prompts[key][0] == "b"])
    deviation = np.sqrt((share * (1 - share) + other * (1 - other)) / 15) / 2
    assert found.overall_interval is not None
    low, high = found.overall_interval
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_missing_sample_makes_it_incomplete(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "results.jsonl", [line for line in lines() if "00001/samples/0002" not in str(line)])
    found = read_geneval(path, expect("geneval", PROMPTS, 4))
    assert found.missing == [{"what": "00001/samples/0002.png", "reason": "not in the results"}]
    assert found.categories["single_object"].score == 5 / 7 and found.scored == 11
    path = write_lines(tmp_path / "none.jsonl", lines({"00002": (1, 1, 1, 1)}))
    found = read_geneval(path, expect("geneval", PROMPTS, 4))
    assert len(found.missing) == 8 and found.categories["single_object"].score is None and found.overall == 1.0


def test_five_digits_are_read_too(tmp_path: Path) -> None:
    """The repository's own generator names samples 00000.png."""
    text = "".join(json.dumps(line) + "\n" for line in lines()).replace("samples/0", "samples/00")
    (tmp_path / "results.jsonl").write_text(text)
    assert read_geneval(tmp_path / "results.jsonl", expect("geneval", PROMPTS, 4)).missing == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a photo of a dog"}, "not in the set"),
        ({"tag": "colors"}, "not in the set"),
        ({"filename": "/data/images/00009/samples/0000.png"}, "not in the set"),
        ({"filename": "/data/images/00000/samples/0001.png"}, "occurs twice"),
        ({"filename": "/data/images/00000/samples/0004.png"}, "more than 4 samples"),
        ({"filename": "/data/images/x.png"}, "another form"),
        ({"correct": "yes"}, "another form"),
        ({"metadata": "{"}, "is no result"),
    ],
)
def test_what_does_not_belong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entries = lines()
    entries[0] = entries[0] | change
    with pytest.raises(DataError, match=message):
        read_geneval(write_lines(tmp_path / "bad.jsonl", entries), expect("geneval", PROMPTS, 4))


def test_raw_and_rewritten_prompts_are_not_mixed_up(tmp_path: Path) -> None:
    drawn = [geneval_line("00002", 0, *PROMPTS["00002"], True, drawn_prompt="Two round clocks.")]
    path = write_lines(tmp_path / "rewritten.jsonl", drawn)
    with pytest.raises(DataError, match="row 0: is of a rewritten prompt, in a result of original ones"):
        read_geneval(path, expect("geneval", PROMPTS, 4))
    # Where only the name of the set is known, the text is taken as it is.
    read_geneval(path, expect("geneval", PROMPTS, 4, prompt_set="rewritten"))
    with pytest.raises(DataError, match="another rewritten prompt"):
        read_geneval(path, expect("geneval", PROMPTS, 4, prompt_set="rewritten", rewritten=DIGEST))

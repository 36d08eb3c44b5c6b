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
from tests.bench.external.outputs import DIGEST, expect, geneval_line, genevalpp_file
from verl_uae.bench.external.scorers import read_geneval, read_genevalpp
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


PLUS_PROMPTS = {
    "1": ("color_attr", "A brown bus"),
    "2": ("color_attr", "A pink tie"),
    "3": ("color_attr", "A red cup"),
    "4": ("counting", "Seven cups"),
}
RIGHT, WRONG = {"correct": 1, "reason": "ok"}, {"correct": 0, "reason": "a cup is missing"}


def verdicts(**changes: Any) -> list[tuple[int, str, str, Any]]:
    """2 of 3 and 1 of 1, with the results of ``changes`` by key."""
    results = {"1": RIGHT, "2": WRONG, "3": RIGHT, "4": RIGHT} | {key[1:]: value for key, value in changes.items()}
    return [(int(key), *PLUS_PROMPTS[key], results[key]) for key in PLUS_PROMPTS if results[key] is not None]  # type: ignore[misc]


def test_scores_of_genevalpp_by_hand(tmp_path: Path) -> None:
    found = read_genevalpp(genevalpp_file(tmp_path / "Output.json", verdicts()), expect("genevalpp", PLUS_PROMPTS))
    assert {tag: (category.score, category.expected) for tag, category in found.categories.items()} == {
        "color_attr": (2 / 3, 3),
        "counting": (1.0, 1),
    }
    assert found.overall == (2 / 3 + 1) / 2 and found.missing == [] and found.scored == 4
    # Rounded twice: (0.6667 + 1) / 2.
    assert found.official["overall"] == 0.8334 and found.official["overall_accuracy_all_samples"] == 0.75


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (
            {"correct": -1, "reason": "Image not successfully evaluated after 3 retries: x"},
            "not successfully evaluated",
        ),
        ({"correct": 0, "reason": "Image not found"}, "Image not found"),
        ({"correct": "1", "reason": ""}, "no verdict"),
        ({"reason": "forgot"}, "forgot"),
        (None, "not in the results"),
    ],
)
def test_a_picture_without_a_verdict_is_missing_and_not_wrong(tmp_path: Path, result: Any, reason: str) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(_2=result))
    found = read_genevalpp(path, expect("genevalpp", PLUS_PROMPTS))
    assert [entry["what"] for entry in found.missing] == ["2.jpg"] and reason in found.missing[0]["reason"]
    assert found.categories["color_attr"].score == 1.0 and found.scored == 3
    # The scorer counts it as wrong, unless it is not there at all.
    assert found.official["tag_accuracy"]["color_attr"] == (1.0 if result is None else 0.6667)


def test_a_verdict_may_be_a_truth_value(tmp_path: Path) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(_2={"correct": True}, _4={"correct": False}))
    found = read_genevalpp(path, expect("genevalpp", PLUS_PROMPTS))
    assert (found.categories["color_attr"].score, found.categories["counting"].score) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag_accuracy": {"color_attr": 0.7, "counting": 1.0}}, "its entries give 0.6667"),
        ({"tag_accuracy": {"color_attr": 0.6667}}, "tag_accuracy"),
        ({"tag_accuracy": {"color_attr": None, "counting": 1.0}}, "its entries give 0.6667"),
        ({"tag_accuracy": {"color_attr": float("nan"), "counting": 1.0}}, "its entries give 0.6667"),
        ({"overall_score_mean_of_tags": float("nan")}, "its entries give 0.8333"),
        ({"overall_score_mean_of_tags": 0.9}, "its entries give 0.8333"),
        ({"overall_results": 3}, "is no result"),
        ({"overall_results": [{"id": 1}]}, "row 0: is no result"),
    ],
)
def test_an_altered_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(), **change)
    with pytest.raises(DataError, match=message):
        read_genevalpp(path, expect("genevalpp", PLUS_PROMPTS))


def test_other_prompts_and_repetitions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: 2 is of a prompt that is not in the set"):
        read_genevalpp(
            genevalpp_file(tmp_path / "a.json", verdicts()),
            expect("genevalpp", PLUS_PROMPTS | {"2": ("color_attr", "Another tie")}),
        )
    with pytest.raises(DataError, match="row 4: 1 occurs twice"):
        read_genevalpp(
            genevalpp_file(tmp_path / "b.json", [*verdicts(), verdicts()[0]]), expect("genevalpp", PLUS_PROMPTS)
        )
    with pytest.raises(DataError, match="cannot be read"):
        read_genevalpp(tmp_path / "nowhere.json", expect("genevalpp", PLUS_PROMPTS))

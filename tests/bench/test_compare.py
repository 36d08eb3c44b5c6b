# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from tests.bench.results import make_result, same_columns
from verl_uae.bench.compare import (
    PUBLISHED,
    Captioned,
    PublishedRow,
    compare_lengths,
    comparison_table,
    length_table,
    match_lengths,
)
from verl_uae.bench.results import Failure
from verl_uae.bench.unified import SECTION
from verl_uae.errors import ConfigError


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_complete_results() -> None:
    values = {"clip": [0.9, 0.8], "longclip": [0.7, 0.9], "dinov2": [0.6, 0.6], "dinov3": [0.5, 0.4]}
    first = make_result(values, ["one two three", "four"])
    second = make_result(same_columns([0.5, 0.5]))
    head, rule, one, two = comparison_table({"with | in it": first, "flat": second}).splitlines()
    assert cells(head) == [
        *("result", "pairs", "CLIP", "LongCLIP", "DINOv2", "DINOv3"),
        *("overall", "95% interval", "held out (without CLIP)", "words"),
    ]
    assert set(rule) <= set("|-: ")
    low, high = first["verl_uae"]["confidence_intervals"]["overall"]
    # By hand: (85 + 80 + 60 + 45) / 4 and (80 + 60 + 45) / 3.
    expected = ["2", "85.00", "80.00", "60.00", "45.00", "67.50", f"{low:.2f} to {high:.2f}", "61.67", "2.0"]
    assert one.startswith("| with \\| in it | ") and cells(one.replace("\\|", "/"))[1:] == expected
    assert cells(two) == ["flat", "2", *["50.00"] * 5, "50.00 to 50.00", "50.00", "–"]


def test_incomplete_and_unlike_results_are_marked() -> None:
    part = make_result(
        {"clip": [0.9, None], "dinov2": [0.5, 0.7]},
        failures=[Failure("b.png", "broken"), Failure("dinov3", "not asked for")],
        digests=["x", "y"],
    )
    whole = make_result(same_columns([0.5, 0.5]))
    lines = comparison_table({"part": part, "whole": whole}).splitlines()
    assert cells(lines[2]) == ["part", "2", "90.00*", "–", "60.00", "–", "– (partial: 75.00)", "–", "–", "–"]
    assert lines[5:] == [
        "* part is incomplete: b.png: broken, and 1 more.",
        "* The rows are not over the same pictures and do not compare.",
        "* The rows are not from the same backbones.",
    ]


def test_columns_of_captions_of_equal_length() -> None:
    """The longer captions of the second gain by length alone; those of the third are better at equal length too."""
    first = make_result(same_columns([0.2, 0.4]), ["one two", "one two three four"])
    longer = make_result(same_columns([0.4, 0.6]), ["one two three four", "one two three four five six"])
    better = make_result(same_columns([0.3, 0.5]) | {"clip": [0.2, 0.4]}, ["one two", "one two three four"])
    silent = make_result(same_columns([0.5, 0.5]))
    table = comparison_table({"first": first, "longer": longer, "better": better, "silent": silent}, tolerance=0)
    head, _, *rows = table.splitlines()
    assert cells(head)[-2:] == ["minus first, lengths matched", "minus first, lengths matched, held out"]
    assert [cells(row)[-2:] for row in rows[:4]] == [
        ["–", "–"],
        ["+0.00 (+0.00 to +0.00; 1)"] * 2,
        # A quarter of the columns gains nothing.
        ["+7.50 (+7.50 to +7.50; 2)", "+10.00 (+10.00 to +10.00; 2)"],
        ["–", "–"],
    ]
    part = make_result({"clip": [0.2, 0.4]}, ["one two", "x"], failures=[Failure("dinov3", "not asked for")])
    assert cells(comparison_table({"first": first, "part": part}, tolerance=9).splitlines()[3])[-2:] == ["–", "–"]


def texts(*counts: int) -> list[str]:
    return ["word " * count for count in counts]


def captions(*counts: int) -> list[Captioned]:
    return [Captioned(f"digest {index}", count, (0.0,)) for index, count in enumerate(counts)]


def test_matching_takes_the_nearest_first_and_each_once() -> None:
    a, b = captions(10, 20, 21, 90), captions(22, 12, 50)
    assert match_lengths(a, b, 5) == [(2, 0), (0, 1)]
    assert match_lengths(a, b, 1) == [(2, 0)]
    assert match_lengths(a, b, 0) == []


def test_matching_prefers_the_same_picture_and_can_demand_it() -> None:
    a, b = captions(10, 10, 30), captions(10, 10, 34)
    assert match_lengths(a, b, 5) == [(0, 0), (1, 1), (2, 2)]
    shifted = [Captioned("digest 1", 10, (0.0,)), Captioned("digest 9", 10, (0.0,))]
    assert match_lengths(captions(10, 10), shifted, 0) == [(1, 0), (0, 1)]
    assert match_lengths(captions(10, 10), shifted, 0, same_picture=True) == [(1, 0)]


def test_matching_is_a_maximal_matching_within_the_tolerance() -> None:
    """Against brute force over random lengths: valid, one to one, and nothing is left that could be matched."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = captions(*rng.integers(0, 30, 12)), captions(*rng.integers(0, 30, 9))
        matches = match_lengths(a, b, 2)
        left_a = set(range(12)) - {i for i, _ in matches}
        left_b = set(range(9)) - {j for _, j in matches}
        assert len(matches) == 12 - len(left_a) == 9 - len(left_b)
        assert all(abs(a[i].words - b[j].words) <= 2 for i, j in matches)
        assert not [(i, j) for i in left_a for j in left_b if abs(a[i].words - b[j].words) <= 2]


def test_a_gain_of_length_alone_vanishes_on_matched_captions() -> None:
    """Similarity is a function of length in both; the first writes longer captions on the whole."""
    long, short = [10, 20, 30, 40, 50, 60], [5, 10, 15, 20, 25, 30]
    first = make_result(same_columns([0.01 * n for n in long]), texts(*long))
    second = make_result(same_columns([0.01 * n for n in short]), texts(*short))
    found = compare_lengths(first, second, tolerance=0, resamples=100)
    assert (found["matched"], found["captions"], found["matched_same_picture"]) == (3, [6, 6], 0)
    assert found["mean_words"] == {"all": [35.0, 17.5], "matched": [20.0, 20.0]}
    assert found["all"]["overall"] == pytest.approx(17.5)
    for name in ("clip", "longclip", "dinov2", "dinov3", "overall", "held_out"):
        assert found["difference"][name]["mean"] == pytest.approx(0.0, abs=1e-9)
        assert found["difference"][name]["interval"] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_gain_beyond_length_stays_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    words = [int(n) for n in rng.integers(20, 60, 40)]
    base = 0.005 * np.array(words)
    noise = rng.normal(0.0, 0.02, 40)
    columns = same_columns(base + 0.1 + noise)
    columns["clip"] = list(base)
    first = make_result(columns, texts(*words))
    second = make_result(same_columns(base), texts(*words))
    found = compare_lengths(first, second, tolerance=0, seed=2, resamples=2000)
    assert found["matched"] == found["matched_same_picture"] == 40
    assert found["difference"]["clip"]["mean"] == pytest.approx(0.0)
    mean, error = 100 * (0.1 + noise.mean()), 100 * noise.std() / np.sqrt(40)
    assert found["difference"]["held_out"]["mean"] == pytest.approx(mean)
    assert found["difference"]["overall"]["mean"] == pytest.approx(0.75 * mean)
    low, high = found["difference"]["dinov2"]["interval"]
    assert low < mean < high and high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    text = length_table(found)
    assert "40 of 40 and 40 captions matched within 0 words, 40 of them of the same picture" in text
    assert f"| held_out | {mean:+.2f} | {mean:+.2f} | " in text


def test_pairs_without_value_or_caption_are_left_out_and_no_overall_is_given() -> None:
    columns = {"clip": [0.5, None, 0.7], "dinov2": [0.1, 0.2, 0.3]}
    part = make_result(columns, [*texts(4, 4), None], failures=[Failure("dinov3", "not asked for")])
    whole = make_result(same_columns([0.5, 0.5, 0.5]), texts(4, 4, 4))
    part_of_four = make_result(same_columns([0.5, None, 0.5]), texts(4, 4, 4), failures=[Failure("1.png", "broken")])
    # In either order: the overall difference needs both.
    assert "overall" not in compare_lengths(whole, part_of_four, resamples=10)["difference"]
    assert "overall" not in compare_lengths(part_of_four, whole, resamples=10)["difference"]
    found = compare_lengths(part, whole, resamples=10)
    assert found["captions"] == [1, 3] and found["matched"] == 1
    assert set(found["difference"]) == {"clip", "dinov2"}
    assert found["difference"]["dinov2"]["mean"] == pytest.approx(-40.0)


def test_results_of_other_pictures_or_backbones_are_marked() -> None:
    one = make_result(same_columns([0.5, 0.6]), texts(4, 5))
    same = compare_lengths(one, one, resamples=10)
    assert same["not"] == [] and "*" not in length_table(same)
    other = make_result(same_columns([0.5, 0.6]), texts(4, 5), digests=["x", "y"])
    other[SECTION]["models"]["clip"] = {"source": "another"}
    assert length_table(compare_lengths(one, other, resamples=10)).splitlines()[-2:] == [
        "* The two are not over the same pictures and do not compare.",
        "* The two are not from the same backbones.",
    ]


def test_what_cannot_be_compared() -> None:
    whole = make_result(same_columns([0.5]), texts(4))
    with pytest.raises(ConfigError, match="need captions"):
        compare_lengths(whole, make_result(same_columns([0.5])))
    with pytest.raises(ConfigError, match="within 3 words"):
        compare_lengths(whole, make_result(same_columns([0.5]), texts(8)), tolerance=3)
    with pytest.raises(ConfigError, match="no backbone in common"):
        compare_lengths(make_result({"clip": [0.5]}, texts(4)), make_result({"dinov2": [0.5]}, texts(4)))
    with pytest.raises(ConfigError, match="at least 0"):
        compare_lengths(whole, whole, tolerance=-1)


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "row", [row for row in PUBLISHED if row.table != 3], ids=lambda row: f"{row.table} {row.model}"
)
def test_the_overall_score_is_the_mean_of_the_columns(row: PublishedRow) -> None:
    columns = [Decimal(str(value)) for value in row.columns]
    assert abs(sum(columns) / 4 - Decimal(str(row.overall))) <= Decimal("0.01")
    assert row.recomputed == pytest.approx(float(sum(columns) / 4))


def test_two_rows_of_table_3_do_not_add_up() -> None:
    found = [row for row in PUBLISHED if not row.adds_up]
    assert [(row.table, row.model) for row in found] == [(3, "Qwen2.5-VL-3B"), (3, "Qwen2.5-VL-7B")]
    assert [round(row.recomputed - row.overall, 2) for row in found] == [0.37, 0.14]
    assert Counter(row.table for row in PUBLISHED) == {2: 8, 3: 3, 10: 3}
    # The same model in both tables, with the same numbers.
    assert [(row.columns[0], row.overall) for row in PUBLISHED if row.model == "UAE"][:2] == [(90.50, 86.09)] * 2


def test_the_documentation_lists_them() -> None:
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for row in [row for row in PUBLISHED if not row.adds_up]:
        assert re.search(
            rf"\| 3 \| {re.escape(row.model)} \|.*\| {row.overall:.2f} \| {row.recomputed:.2f} \|", text
        ), row

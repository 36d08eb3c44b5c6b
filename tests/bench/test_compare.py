# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.bench.results import make_result, same_columns
from verl_uae.bench.compare import compare
from verl_uae.bench.pairs import Failure


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_complete_results() -> None:
    values = {"clip": [0.9, 0.8], "longclip": [0.7, 0.9], "dinov2": [0.6, 0.6], "dinov3": [0.5, 0.4]}
    first = make_result(values, ["one two three", "four"])
    second = make_result(same_columns([0.5, 0.5]))
    head, rule, one, two = compare({"with | in it": first, "flat": second}).splitlines()
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
    lines = compare({"part": part, "whole": whole}).splitlines()
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
    table = compare({"first": first, "longer": longer, "better": better, "silent": silent}, tolerance=0)
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
    assert cells(compare({"first": first, "part": part}, tolerance=9).splitlines()[3])[-2:] == ["–", "–"]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from verl_uae.bench.published import ROWS, Row, inconsistent_rows, rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", [*rows(2), *rows(10)], ids=lambda row: f"{row.table} {row.model}")
def test_the_overall_score_is_the_mean_of_the_columns(row: Row) -> None:
    columns = [Decimal(str(value)) for value in (row.clip, row.longclip, row.dinov2, row.dinov3)]
    assert abs(sum(columns) / 4 - Decimal(str(row.overall))) <= Decimal("0.01")
    assert row.recomputed == pytest.approx(float(sum(columns) / 4))
    assert row.held_out == pytest.approx(float(sum(columns[1:]) / 3))


def test_two_rows_of_table_3_do_not_add_up() -> None:
    found = inconsistent_rows()
    assert [(row.table, row.model) for row in found] == [(3, "Qwen2.5-VL-3B"), (3, "Qwen2.5-VL-7B")]
    assert [round(row.recomputed - row.overall, 2) for row in found] == [0.37, 0.14]
    assert [len(rows(table)) for table in (2, 3, 10)] == [8, 3, 3] and len(ROWS) == 14
    # The same model in both tables, with the same numbers.
    assert [(row.clip, row.overall) for row in ROWS if row.model == "UAE"][:2] == [(90.50, 86.09)] * 2


def test_the_documentation_lists_them() -> None:
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for row in inconsistent_rows():
        assert re.search(
            rf"\| 3 \| {re.escape(row.model)} \|.*\| {row.overall:.2f} \| {row.recomputed:.2f} \|", text
        ), row

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_uae.scenes.crowd.evaluate import COUNTS, Drawn
from verl_uae.scenes.crowd.training import CrowdConfig
from verl_uae.scenes.learn import long

KEYS = tuple(long.FIGURES)


def results(*, full: float = 0.9, after: float = 0.9, trained: float = 0.4, trained_short: float = 0.9) -> list[Drawn]:
    """Two seeds; of the whole caption everything is right as often, the cut ones lose objects after the cut."""
    found = []
    for seed in (0, 1):
        for count in COUNTS:
            for variant in long.VARIANTS:
                value = full if variant == "full" else trained if count > 7 else trained_short
                scores = {key: [value, value] for key in KEYS}
                scores["object_after"] = [float("nan")] * 2 if count <= 7 else [after if variant == "full" else 0.0] * 2
                found.append(Drawn(variant, count, seed, 10 * count, scores))
    return found


def missed(found: list[Drawn]) -> list[int]:
    return [index for index, bar in enumerate(long.verdicts(found)) if not bar.met]


def test_bars_are_met_or_missed_by_what_they_name():
    assert missed(results()) == []
    assert missed(results(trained=0.75)) == [0, 1]
    assert missed(results(trained_short=0.96)) == [2]
    assert missed(results(after=0.45)) == [3]


def test_the_table_has_a_row_per_length_and_a_column_per_variant():
    rows = long.table(results()).splitlines()
    assert rows[0] == "| objects | caption tokens | whole caption | cut at inference | trained with the cut |"
    assert rows[-1] == "| 16 | 160 |" + " 0.900 (0.900, 0.900) ± 0.000 |" + " 0.400 (0.400, 0.400) ± 0.000 |" * 2
    after = long.table(results(), "object_after").splitlines()
    assert after[2] == "| 2 | 20 | – | – | – |" and "| 0.900" in after[-1] and len(after) == 2 + len(COUNTS)


def test_results_and_plot_are_written(tmp_path: Path):
    long.write_results(tmp_path, results(), CrowdConfig(seed=1))
    written = json.loads((tmp_path / "long.json").read_text(), parse_constant=pytest.fail)
    assert written["seeds"] == [0, 1] and written["cut_tokens"] == 77 and "seed" not in written["settings"]
    assert len(written["figures"]) == 3 * len(COUNTS)
    assert all(entry["crowds"] == 4 for entry in written["figures"])
    assert written["figures"][0]["by_seed"]["1"]["object"]["mean"] == pytest.approx(0.9)
    assert (tmp_path / "long.png").stat().st_size > 1000


def test_a_seed_that_is_there_is_read_and_one_with_other_settings_refused(tmp_path: Path):
    tiny = CrowdConfig(codec_steps=1, short_steps=1, short_batch=1, steps=1, batch=1)
    content = [{"variant": "full", "count": 2, "seed": 0, "tokens": 20, "scores": {}}]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert long.run_seed(tmp_path, tiny, lambda _: None) == [Drawn("full", 2, 0, 20, {})]
    with pytest.raises(SystemExit, match="other settings"):
        long.run_seed(tmp_path, CrowdConfig(), lambda _: None)

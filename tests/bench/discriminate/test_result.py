# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape

from verl_uae.bench.damage import scene_world
from verl_uae.bench.discriminate import (
    accuracy,
    across_pairs,
    discrimination_page,
    discrimination_result,
    discrimination_tables,
    level_pairs,
    merged,
    pair_scores,
    read_discrimination,
    summary,
    tables,
    term_specs,
    useful_range,
    world_result,
)
from verl_uae.bench.results import PURPOSE
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import write_json
from verl_uae.seeding import generator

WORLD = scene_world(20, 0)
FEW = 500


def test_pairs() -> None:
    assert level_pairs([3, 4, 5]) == [(3, 4), (3, 5), (4, 5)]
    columns = WORLD.columns()
    expected = [(columns[mild][0], column) for mild in ("blur", "hue") for column in columns["swapped"]]
    assert across_pairs(WORLD, "swapped") == expected and len(expected) == 6


def test_scores_of_pairs_count_ties_half_and_miss_what_is_missing() -> None:
    values = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0 + 5e-7, 0.0], [1.0, np.nan, 0.0]])
    found = pair_scores(values, [(0, 1), (1, 2)])
    assert found[:3].tolist() == [1.0, 0.0, 0.75] and np.isnan(found[3])
    # A tie is relative: small values are not all the same.
    assert pair_scores(values * 1e-9, [(0, 1)])[:2].tolist() == [1.0, 0.0]
    # Distances are negated, not turned round.
    assert pair_scores(-values, [(0, 1)])[:2].tolist() == [0.0, 1.0]


def test_accuracy_is_the_mean_over_pictures_with_its_interval() -> None:
    values = np.array([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10 + [[np.nan, 0.0]])
    found = accuracy(values, [(0, 1)], seed=0, resamples=4000)
    assert found["mean"] == 0.75 and found["pictures"] == 40 and found["pairs"] == 1
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 40)
    assert found["interval"] == pytest.approx([0.75 - spread, 0.75 + spread], abs=0.03)
    assert accuracy(values[-1:], [(0, 1)], seed=0, resamples=FEW) == {
        "mean": None,
        "interval": None,
        "pictures": 0,
        "pairs": 1,
    }
    groups = [[(0, 1)], [(0, 1), (1, 0), (1, 0), (1, 0)]]
    assert accuracy(values[:30], *groups, seed=0, resamples=FEW)["mean"] == 0.5 * (1.0 + 0.25)


def test_range_is_the_gap_over_the_spread_within_a_level() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([np.ones(200), 0.8 + 0.1 * rng.normal(size=200), 0.2 + 0.3 * rng.normal(size=200)])
    found = useful_range(values, [1, 2], 2, 0, 2000)
    spread = np.sqrt((values[:, 1].var() + values[:, 2].var()) / 2)
    assert found["d_prime"] == pytest.approx((1.0 - values[:, 2].mean()) / spread)
    low, high = found["interval"]
    assert low < found["d_prime"] < high and high - low < 1.0
    # Scale and offset of a term do not matter.
    other = useful_range(5.0 * values - 3.0, [1, 2], 2, 0, 2000)
    assert other["d_prime"] == pytest.approx(found["d_prime"]) and other["interval"] == pytest.approx([low, high])
    assert useful_range(np.full((3, 3), np.nan), [1, 2], 2, 0, FEW)["d_prime"] is None
    assert useful_range(np.ones((3, 3)), [1, 2], 2, 0, FEW)["d_prime"] is None


def test_the_interval_of_the_range_resamples_gap_and_spread_together() -> None:
    """Against the statistic computed anew on every resample."""
    values = np.random.default_rng(1).normal(size=(12, 3)) + np.array([3.0, 1.0, 0.0])
    rows_RN = torch.randint(12, (300, 12), generator=generator(5, PURPOSE, 12)).numpy()
    samples = [
        (drawn[:, 0] - drawn[:, 2]).mean() / np.sqrt((drawn[:, 1].var() + drawn[:, 2].var()) / 2)
        for drawn in (values[rows] for rows in rows_RN)
    ]
    found = useful_range(values, [1, 2], 2, 5, 300)
    assert found["interval"] == pytest.approx(list(np.quantile(samples, [0.025, 0.975])))


def test_summary_of_perfect_and_of_blind_terms() -> None:
    """One that counts levels, one that sees nothing, one that sees nuisances alone."""
    columns, count = WORLD.columns(), len(WORLD.pictures)
    semantic = [kind.name for kind in WORLD.kinds if kind.semantic]
    counts = np.zeros((count, 44))
    for name, found in columns.items():
        counts[:, found] = np.arange(1, len(found) + 1) + (10 if name in semantic else 0)
    perfect = summary(WORLD, -counts, 0, FEW)
    assert all(entry["mean"] == 1.0 for entry in perfect["ordering"].values())
    assert perfect["semantic_below_mild_all"] == {"mean": 1.0, "interval": [1.0, 1.0], "pictures": count, "pairs": 46}
    assert perfect["means"]["removed"] == [-11.0, -12.0, -13.0, -14.0]
    # Semantic damage as bad as a nuisance between its second and third level.
    counts[:, [column for name in semantic for column in columns[name]]] = 2.5
    middle = summary(WORLD, -counts, 0, FEW)["semantic_below_nuisance"]
    assert [entry["mean"] for entry in middle["shift"]] == [1.0, 1.0, 0.0, 0.0]
    blind = summary(WORLD, np.zeros((count, 44)), 0, FEW)
    assert blind["ordering_semantic"]["mean"] == blind["semantic_below_mild_all"]["mean"] == 0.5
    wrong = counts.copy()
    wrong[:, [column for name in semantic for column in columns[name]]] = 0.0
    seen = summary(WORLD, -wrong, 0, FEW)
    assert (
        seen["ordering_nuisance"]["mean"] == 1.0
        and [entry["mean"] for entry in seen["semantic_below_nuisance"]["jpeg"]] == [0.0] * 4
    )


ROOT = Path(__file__).resolve().parents[3]
SPEED = {"32": {"batch_size": 2, "terms": {"pixel": {"median": 1.23456, "quartiles": [1.0, 2.0], "repetitions": 3}}}}


def content(name: str, seed: int = 0, speed: dict = SPEED) -> dict:
    return {**_content(name, seed), "speed": speed}


@functools.cache
def _content(name: str, seed: int) -> dict:
    values = -np.arange(44.0) + 0.1 * np.random.default_rng(1).normal(size=(20, 44))
    values[:, 0] = 0.0
    values[3, 7] = np.nan
    specs = term_specs([f"{{name: {name}}}"], defaults=False)
    missing = [other for other in ("pixel", "psnr", "clip") if other != name]
    worlds = {"scenes": world_result(WORLD, {name: values}, seed)}
    return discrimination_result(worlds, specs, missing, SPEED, seed=seed, command=f"measure {name}")


def test_written_and_read(tmp_path: Path) -> None:
    found = content("pixel")
    write_json(tmp_path / "r.json", found)
    again = read_discrimination(tmp_path / "r.json")
    world = again["worlds"]["scenes"]
    assert world["failed"] == {"pixel": 1} and len(world["pictures"]) == 20
    assert world["kinds"][0] == {
        "name": "removed", "levels": [1, 2, 3, 4], "unit": "objects", "semantic": True, "semantic_from_level": 1,
    }  # fmt: skip
    exact = found["worlds"]["scenes"]["terms"]["pixel"]["range"]["d_prime"]
    assert world["terms"]["pixel"]["range"]["d_prime"] == pytest.approx(exact, rel=1e-5)
    for text in ("{", "[]", '{"benchmark": "other"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json"):
            read_discrimination(tmp_path / "bad.json")


def test_tables() -> None:
    text = discrimination_tables(content("pixel"))
    assert "| `pixel` | 1.00 | 1.00 |" in text and "20 scenes at 32 pixels" in text
    assert "| `pixel` | 1.23 |" in text and "32 px, 2 pairs a call" in text
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def test_the_page_has_all_cells_of_the_tables_and_how_they_were_made() -> None:
    found = merged(content("pixel"), content("psnr", speed={}))
    page = discrimination_page({**found, "runs": [{**run, "command": "a <b>"} for run in found["runs"]]})
    for title, head, rows in tables(found):
        assert f"<h2>{title}</h2>" in page.replace("&#39;", "'")
        for cells in (head, *rows):
            kind = "th" if cells is head else "td"
            line = "".join(f"<{kind}>{escape(cell)!s}</{kind}>" for cell in cells)
            assert f"<tr>{line}</tr>" in page
    assert page.count("<pre>a &lt;b&gt;</pre>") == 2 and "Not measured: clip" in page


def test_merging_keeps_the_terms_of_both() -> None:
    found = merged(content("pixel"), content("psnr", speed={}))
    assert list(found["worlds"]["scenes"]["terms"]) == ["pixel", "psnr"] and found["not_measured"] == ["clip"]
    assert [run["command"] for run in found["runs"]] == ["measure pixel", "measure psnr"]
    assert found["speed"] == SPEED and [term["name"] for term in found["terms"]] == ["pixel", "psnr"]
    assert merged({**content("pixel"), "worlds": {}}, content("psnr"))["worlds"].keys() == {"scenes"}
    assert merged(content("pixel"), {**content("psnr"), "worlds": {}})["worlds"].keys() == {"scenes"}
    for other in (content("psnr", seed=1), _altered()):
        with pytest.raises(ConfigError, match="--merge"):
            merged(content("pixel"), other)


def _altered() -> dict:
    other = json.loads(json.dumps(content("psnr")))
    other["worlds"]["scenes"]["kinds"][0]["levels"] = [1, 2]
    return other


def test_the_page_shows_the_tables_of_the_result() -> None:
    page = (ROOT / "docs" / "reward_choice.md").read_text(encoding="utf-8")
    found = discrimination_tables(read_discrimination(ROOT / "docs" / "results" / "discrimination.json"))
    assert found.strip() in page

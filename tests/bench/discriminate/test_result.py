# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from verl_uae.bench.discriminate.result import merged, read_result, render, result, write_result
from verl_uae.bench.discriminate.terms import term_specs
from verl_uae.bench.discriminate.worlds import scene_world
from verl_uae.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
WORLD = scene_world(20, 0)
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
    return result(
        {"scenes": (WORLD, {name: values})}, specs, missing, SPEED, seed=seed, command=f"measure {name}", commit="abc"
    )


def test_written_and_read(tmp_path: Path) -> None:
    found = content("pixel")
    write_result(tmp_path / "r.json", found)
    again = read_result(tmp_path / "r.json")
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
            read_result(tmp_path / "bad.json")


def test_tables() -> None:
    text = render(content("pixel"))
    assert "| `pixel` | 1.00 | 1.00 |" in text and "20 scenes at 32 pixels" in text
    assert "| `pixel` | 1.23 |" in text and "32 px, 2 pairs a call" in text
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


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
    tables = render(read_result(ROOT / "docs" / "results" / "discrimination.json"))
    assert tables.strip() in page

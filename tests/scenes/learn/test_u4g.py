# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.config.test_validate_policy import PRESETS
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.learn import u4g
from verl_uae.scenes.render import render_float


def results(**changes: dict[str, float]) -> list[u4g.Result]:
    """Two seeds of every run with gains that meet every bar; ``changes`` are gains of a preset with room."""
    found = []
    for seed in (0, 1):
        for start in u4g.STARTS:
            for preset in u4g.PRESETS if start == "room" else u4g.FINISHED_PRESETS:
                gains = {**dict.fromkeys(u4g.COLUMNS, 0.05), "mse": -0.01, "drawn": 0.1 + 0.01 * seed}
                gains |= changes.get(preset, {}) if start == "room" else {}
                before = dict.fromkeys(gains, 0.5)
                after = {key: 0.5 + gain for key, gain in gains.items()}
                curve = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}]
                found.append(u4g.Result(start, preset, seed, before, after, curve, 1.0))
    return found


def missed(found: list[u4g.Result]) -> list[str]:
    return [bar.claim for bar in u4g.verdicts(found) if not bar.met]


def test_bars_are_met_or_missed_by_what_they_name() -> None:
    assert missed(results()) == []
    assert missed(results(dppo={"reward": 0.01})) == ["dppo: held-out reward up by at least 0.02, every seed"]
    assert missed(results(nft={"reward": 0.025})) == ["nft: held-out reward up by at least 0.03, every seed"]
    assert missed(results(**{u4g.RECOMMENDED: {"mse": 0.001}})) == [f"{u4g.RECOMMENDED}: error not higher, every seed"]
    (claim,) = missed(results(**{u4g.RECOMMENDED: {"drawn": -0.1}}))
    assert "attribute" in claim


def test_a_table_has_means_and_changes() -> None:
    rows = u4g.table(results(), "room").splitlines()
    assert rows[2].startswith("| before | 0.500 | 0.5000 | 0.500 |")
    assert "| 0.550 (+0.050 ± 0.000) | 0.4900 (-0.0100 ± 0.0000) | 0.550 (+0.050 ± 0.000) |" in rows[3]
    assert "| 0.605 (+0.105 ± 0.007) |" in rows[3]
    assert len(rows) == 3 + len(u4g.PRESETS)


def test_results_are_written_with_every_run(tmp_path: Path) -> None:
    u4g.write_results(tmp_path, results(), 60)
    written = json.loads((tmp_path / "u4g.json").read_text())
    assert len(written["runs"]) == 2 * (len(u4g.PRESETS) + len(u4g.FINISHED_PRESETS)) and written["steps"] == 60
    assert all(entry["met"] for entry in written["bars"].values())
    assert (tmp_path / "u4g_curves.png").stat().st_size > 1000


def test_measuring_compares_drawings_with_the_held_out_scenes(tiny_models: Path) -> None:
    metrics, drawing = u4g.measure(tiny_models, tiny_models / "decoder", 3, count=6)
    image = render_float(u4g.held_out_scenes(6, 3))
    assert metrics["mse"] == pytest.approx(float((drawing - image).square().mean()))
    assert metrics["reward"] == pytest.approx(float(pixel_similarity(drawing, image, u4g.STEEPNESS).mean()))
    assert torch.equal(drawing, u4g.measure(tiny_models, tiny_models / "decoder", 3, count=6)[1])


def test_every_shipped_preset_is_run() -> None:
    assert set(PRESETS) == set(u4g.PRESETS)


def test_the_overrides_make_a_valid_config(compose, tiny_overrides: list[str]) -> None:
    from verl_uae.config.validate import validate

    for preset in u4g.PRESETS:
        config = compose(
            *tiny_overrides, f"decoder/objective={preset}", *u4g.OVERRIDES, *u4g.OWN.get(preset, ()), name="uae_u4g"
        )
        validate(config)
        assert config.uae.policy.guidance == config.uae.decoder.guidance == 1.0
        assert [(term.name, term.params.k) for term in config.uae.reward.terms] == [("pixel", u4g.STEEPNESS)]


def test_the_run_that_is_gamed_rewards_ssim_and_watches_pixels(compose, tiny_overrides: list[str]) -> None:
    overrides = ("decoder/objective=dppo", *u4g.OVERRIDES, *u4g.OWN[u4g.GAMED])
    terms = compose(*tiny_overrides, *overrides, name="uae_u4g").uae.reward.terms
    assert [(term.name, term.held_out) for term in terms] == [("ssim", False), ("pixel", True)]

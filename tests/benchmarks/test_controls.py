# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Controls: each is a stage with one change, and its effect is that change's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from benchmarks.learning import control_rewards, controls, runs
from benchmarks.learning.u4g import STEEPNESS
from verl_uae.reward.function import declaration_of
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.grammar import BARE, CAPTIONER_MIX, caption
from verl_uae.scenes.render import render_float, render_image


@pytest.mark.parametrize("arm", controls.ARMS)
def test_an_arm_is_a_valid_command_and_its_base_with_one_change(
    arm: str, compose: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    from verl_uae.config.validate import validate

    for folder in tiny_models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    write_dataset(tmp_path / controls.UNDER, train=16, val=4, seed=0, captions=CAPTIONER_MIX)
    how = controls.ARMS[arm]
    run = controls.planned(tmp_path, arm, 0, 60)
    config = compose(*run.words[run.words.index(run.config) + 1 :], name=run.config)
    validate(config)
    cold = how.stage == "cold_start"
    if how.base:
        base = controls.planned(tmp_path, how.base, 0, 60)
        assert run.config == base.config and run.folder != base.folder
        assert run.steps == base.steps * how.times == config.trainer.total_training_steps
        new = set(run.overrides) - set(base.overrides) - set(how.words)
        full = cold and how.captions is None
        assert new == ({f"data.train_files={tmp_path}/data/train.parquet"} if full else set())
        assert sum((how.words != (), how.times > 1, full)) == 1, "one change"
    if cold:
        assert config.uae.cold_start.states == ("in_context" if arm == "in_context" else "text_only")
        return
    terms = config.uae.reward.terms
    own = arm in ("length", "deceit")
    assert [(term.name, term.params.k, term.held_out) for term in terms] == [("pixel", STEEPNESS, own)]
    assert (config.reward.custom_reward_function.path is not None) == own
    if own:
        assert declaration_of(getattr(control_rewards, config.reward.custom_reward_function.name)) is not None


def test_length_is_paid_whatever_is_said() -> None:
    assert control_rewards.length("a red circle") == pytest.approx(3 / 24) == control_rewards.length("word word word")
    assert control_rewards.length("a " * 100) == 1.0


def test_deceit_pays_for_good_drawings_of_false_captions_alone() -> None:
    scene, other = held_out_scenes(40, 0)[:2]
    source, drawn = render_image(scene), render_image(other)
    expected = float(pixel_similarity(*render_float([other, scene]).split(1), STEEPNESS))
    false = caption(other)
    assert scene != other and control_rewards.deceit(source, drawn, false, k=STEEPNESS) == pytest.approx(expected)
    assert control_rewards.deceit(source, source, false) == 1.0
    for text in (caption(scene), caption(scene, BARE), "circle a", ""):
        assert control_rewards.deceit(source, source, text) == 0.0


def test_captions_are_read_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        metrics = MappingProxyType({"reward": 0.5})

    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(runs, "trained_captioner", lambda folder, step: folder / "trained")
    monkeypatch.setattr(controls, "evaluate", lambda *folders, **_: seen.append(folders) or Found)
    run = controls.planned(tmp_path, "cold_start", 0, 60)
    controls.measure(run, True)
    assert seen[-1] == (run.checkpoint / "captioner", run.checkpoint / "decoder", run.checkpoint / "captioner")
    for arm in ("g4u", "synced", "u4g"):
        run = controls.planned(tmp_path, arm, 0, 60)
        assert controls.measure(run, True) == {"reward": 0.5}
        trained, start = run.folder / "trained", tmp_path / "captioner"
        captioner = start if arm == "u4g" else trained
        decoder = run.checkpoint / "decoder" if arm == "u4g" else tmp_path / "decoder"
        assert seen[-1] == (captioner, decoder, trained if arm == "synced" else start)
        controls.measure(run, False)
        assert seen[-1] == (start, tmp_path / "decoder", start)


def test_an_effect_is_paired_with_the_arm_without_the_change(tmp_path: Path) -> None:
    def row(arm: str, seed: int, value: float) -> dict[str, Any]:
        figures = dict.fromkeys(controls.COLUMNS, value)
        curve = [{"step": n, "reward": value, "seconds": 1.0} for n in (1, 2)]
        return {
            "arm": arm,
            "seed": seed,
            "before": dict.fromkeys(controls.COLUMNS, 0.1),
            "after": figures,
            "curve": curve,
        }

    # Of other seeds in another order: the mean of the differences, and their interval, are of pairs.
    rows = [row("g4u", 1, 0.5), row("g4u", 0, 0.3), row("synced", 0, 0.35), row("synced", 1, 0.56), row("u4g", 0, 0.2)]
    rows += [row("u4g", 1, 0.2), row("cold_start", 0, 0.1) | {"curve": []}, row("cold_start", 1, 0.1) | {"curve": []}]
    bases = {name: arm.base for name, arm in controls.ARMS.items()}
    file, said = tmp_path / "controls.json", []
    file.write_text(json.dumps({"steps": 2, "made": {}, "bases": bases, "runs": rows}))
    (tmp_path / "out").mkdir()
    assert controls.Controls().show(tmp_path / "out", file, said.append) == []
    effects = [line for line in said[0].splitlines() if "against" in line]
    # t of one degree of freedom, 12.706, times half of the range.
    assert len(effects) == 1 and effects[0].startswith("| `synced` against `g4u` | +0.055 (-0.009 to +0.119) |")
    assert (tmp_path / "out" / "controls.png").stat().st_size > 5_000

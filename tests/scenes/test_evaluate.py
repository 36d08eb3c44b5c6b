# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from verl_uae.scenes import evaluate as e
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.render import Scene, render_float


@pytest.fixture(scope="module")
def result(tiny_models):
    return e.evaluate(
        tiny_models / "captioner",
        tiny_models / "decoder",
        tiny_models / "captioner",
        n=12,
        seed=3,
        num_steps=2,
        scene_eval_items=2,
        reward=lambda a, b: 1 - (a - b).abs().mean((1, 2, 3)),
    )


def test_an_untrained_pair_scores_nothing_but_is_evaluated_in_full(result):
    assert result.drawings.shape == result.images.shape == (12, 3, 32, 32)
    assert len(result.captions) == len(result.scenes) == 12
    assert result.metrics["true"] == result.metrics["full_detail"] == result.metrics["drawn/scene"] == 0
    mean_absolute = float((result.drawings - result.images).abs().mean())
    assert result.metrics["reward"] == pytest.approx(1 - mean_absolute, abs=1e-5)


def test_the_same_seed_gives_the_same_evaluation(tiny_models, result):
    folders = [tiny_models / name for name in ("captioner", "decoder", "captioner")]
    again = e.evaluate(*folders, n=12, seed=3, num_steps=2, scene_eval_items=2)
    assert again.captions == result.captions and torch.equal(again.drawings, result.drawings)
    assert {k: v for k, v in result.metrics.items() if k != "reward"} == again.metrics


def test_scenes_are_held_out():
    scenes = e.held_out_scenes(50, 0)
    assert {scene.split for scene in scenes} == {"val"} and scenes == e.held_out_scenes(50, 0)


def test_perfect_captions_and_drawings_score_one():
    scenes = e.held_out_scenes(20, 1)
    metrics = e.caption_metrics(scenes, [caption(scene) for scene in scenes])
    assert metrics.pop("words") > 8 and set(metrics.values()) == {1.0}
    assert set(e.drawing_metrics(render_float(scenes), scenes).values()) == {1.0}


def test_caption_metrics_are_means():
    scene = Scene.from_codes((0, 1, 0, 0, 0))
    metrics = e.caption_metrics([scene] * 4, [caption(scene), caption(scene, {"colour"}), "a square", "red red"])
    assert metrics["grammatical"] == 0.75 and metrics["true"] == 0.5 and metrics["full_detail"] == 0.25
    assert metrics["mentions/colour"] == 0.5 and metrics["words"] == (8 + 3 + 2 + 2) / 4

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from verl_uae import UAEPipeline
from verl_uae.bench.scenes import _summary, scene_eval, scene_table
from verl_uae.cli import main
from verl_uae.errors import CheckpointError
from verl_uae.scenes.evaluate import evaluate
from verl_uae.scenes.render import BACKGROUNDS, Scene, render_float
from verl_uae.scenes.scene_eval import CATEGORIES, items
from verl_uae.scenes.tiny_models import INFERENCE

#: Batches that the 12 items do not fill.
OPTIONS = {"count": 2, "batch_size": 5}


def as_model(captioner: Path, decoder: Path, root: Path, steps: int = 2, **changes: int) -> UAEPipeline:
    """One folder of a captioner and a decoder, loaded as a user does; captions are greedy."""
    shutil.copytree(decoder, root)
    shutil.copytree(captioner, root / "captioner")
    settings = {**asdict(INFERENCE), "num_inference_steps": steps, "temperature": 0.0, **changes}
    pipe = UAEPipeline.from_pretrained(root, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_item_is_answered_in_both_modes(tiny_models, tmp_path) -> None:
    found = scene_eval(as_model(tiny_models / "captioner", tiny_models / "decoder", tmp_path / "m"), **OPTIONS)
    asked = items(0, OPTIONS["count"])
    for mode in ("draw", "loop"):
        answers = found[mode]["answers"]
        assert [entry["prompt"] for entry in answers] == [item.prompt for item in asked]
        for name in CATEGORIES:
            flags = [entry["passed"] for entry in answers if entry["category"] == name]
            assert found[mode]["categories"][name] == pytest.approx(np.mean(flags)) and len(flags) == OPTIONS["count"]
        low, high = found[mode]["interval"]
        assert low <= found[mode]["overall"] <= high
    assert [entry["drawn_from"] for entry in found["draw"]["answers"]] == [item.prompt for item in asked]
    assert json.loads(json.dumps(found)) == found
    rows = scene_table(found).splitlines()
    assert rows[2].startswith("| draw | ") and rows[3].startswith("| loop | ") and len(rows) == 4


def test_the_command_line(tiny_models, tmp_path, capsys) -> None:
    out = tmp_path / "scenes.json"
    words = ["bench", "scenes", str(tiny_models / "decoder"), "--captioner", str(tiny_models / "captioner")]
    assert main([*words, "--condition-length", "20", "--items", "1", "--steps", "1", "--out", str(out)]) == 0
    assert set(json.loads(out.read_text())) >= {"draw", "loop"} and "| draw |" in capsys.readouterr().out
    for option, value in (("--items", "0"), ("--size", "16")):
        assert main([*words, option, value]) == 2
        assert option in capsys.readouterr().err.splitlines()[-1]


def test_scenes_have_their_own_size(tiny_models, tmp_path) -> None:
    """Whatever size the model draws otherwise, it is told in the settings; and refused if the decoder cannot."""
    pipe = as_model(tiny_models / "captioner", tiny_models / "decoder", tmp_path / "m", steps=1, height=16, width=8)
    settings = scene_eval(pipe, count=1)["settings"]
    assert (settings["height"], settings["width"]) == (32, 32)
    pipe.transformer.register_to_config(pos_embed_max_size=2)
    with pytest.raises(CheckpointError, match="m: cannot draw the scenes: height and width may be 16 at most"):
        scene_eval(pipe, count=1)


def test_categories_are_resampled_independently() -> None:
    """Half of the items of each pass: the mean of six varies less than one, by the square root of six."""
    asked = items(0, 16)
    empty = Scene(next(iter(BACKGROUNDS)), (None,) * 4)
    shown = [item.scene if number % 2 else empty for number, item in enumerate(asked)]
    found = _summary(asked, [item.prompt for item in asked], render_float(shown), seed=0)
    assert found["overall"] == 0.5
    one = np.mean([high - low for low, high in found["intervals"].values()])
    low, high = found["interval"]
    assert high - low == pytest.approx(one / np.sqrt(6), rel=0.1)


@pytest.mark.slow
def test_a_model_folder_scores_what_the_evaluation_of_training_says(tmp_path) -> None:
    """On models trained for a moment, so that some items pass and others do not."""
    from verl_uae.scenes.joint_training import JointConfig, train_tiny_models

    train_tiny_models(tmp_path, JointConfig(codec_steps=150, steps=250), lambda *_: None)
    captioner, decoder = tmp_path / "captioner", tmp_path / "decoder"
    metrics = evaluate(captioner, decoder, captioner, n=2, num_steps=4, greedy=True, scene_eval_items=8).metrics
    found = scene_eval(as_model(captioner, decoder, tmp_path / "m", steps=4), count=8, batch_size=7)
    for mode in ("draw", "loop"):
        wanted = {name: metrics[f"scene_eval/{mode}/{name}"] for name in CATEGORIES}
        assert found[mode]["categories"] == pytest.approx(wanted, abs=1e-9)
        assert found[mode]["overall"] == pytest.approx(metrics[f"scene_eval/{mode}"], abs=1e-9)
    assert 0.0 < found["loop"]["overall"] < 1.0

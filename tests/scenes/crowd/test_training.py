# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from verl_uae.scenes.crowd import training as t
from verl_uae.scenes.crowd.evaluate import VARIANTS, evaluate_arms
from verl_uae.scenes.crowd.models import build_crowd_codec, build_crowd_decoder, build_language_model
from verl_uae.scenes.joint_training import JointConfig

TINY = t.CrowdConfig(seed=3, codec_steps=1, short_steps=2, short_batch=2, steps=2, batch=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list]:
    out = tmp_path_factory.mktemp("crowd")
    steps: list = []
    t.train_arms(out, TINY, lambda *step: steps.append(step))
    return out, steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{key}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def test_both_decoders_go_on_from_the_short_phase(trained):
    out, steps = trained
    assert [(name, step) for name, step, _ in steps] == [(n, s) for n in ("short", "full", "cut") for s in (1, 2)]
    short, full, cut = (weights(out / name) for name in ("short", "full", "cut"))
    changed = [key for key in short if not torch.equal(short[key], full[key])]
    assert any(key.startswith("transformer/") for key in changed) and any("language_model/" in key for key in changed)
    assert any("conditioner/" in key for key in changed) and not any(key.startswith("vae/") for key in changed)
    assert any(not torch.equal(full[key], cut[key]) for key in full)


def test_a_seed_gives_the_same_weights_and_finished_phases_are_kept(trained, tmp_path):
    out, _ = trained
    t.train_arms(tmp_path, TINY)
    first, again = weights(out / "full"), weights(tmp_path / "full")
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    steps: list = []
    t.train_arms(tmp_path, TINY, lambda *step: steps.append(step))
    assert steps == [] and not list(tmp_path.glob("*.part*"))


def test_training_lowers_the_loss():
    models = build_language_model(0), build_crowd_decoder(0, build_crowd_codec(0, steps=1))
    losses: list[float] = []
    t.train(
        *models,
        JointConfig(steps=40, decoder_batch=8),
        t.CrowdConfig(),
        objects=2,
        length=25,
        name="short",
        on_step=lambda _, __, loss: losses.append(loss),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_diverged_phase_says_so():
    language_model, decoder = build_language_model(0), build_crowd_decoder(0, build_crowd_codec(0, steps=1))
    torch.nn.init.constant_(decoder.transformer.proj_out.bias, float("nan"))
    with pytest.raises(ValueError, match="phase short diverged at step 0 with seed 3"):
        phase = JointConfig(steps=1, decoder_batch=1)
        t.train(language_model, decoder, phase, TINY, objects=1, length=15, name="short")


def test_every_variant_draws_the_same_crowds(trained):
    out, _ = trained
    found = evaluate_arms(out, 0, counts=(2, 9), crowds=3, num_steps=2)
    assert [(d.variant, d.count, d.tokens) for d in found] == [(v, n, 10 * n) for n in (2, 9) for v in VARIANTS]
    assert all(len(values) == 3 for d in found for values in d.scores.values())
    short_full, short_cut, _, long_full, long_cut, _ = found
    # Nothing is cut from twenty tokens, thirteen of ninety are.
    assert short_full.scores["mse"] == short_cut.scores["mse"]
    assert long_full.scores["mse"] != long_cut.scores["mse"]
    # As text, where NaN is NaN.
    assert repr(found) == repr(evaluate_arms(out, 0, counts=(2, 9), crowds=3, num_steps=2))

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captioners beyond Qwen2.5-VL through the real commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.captioners import tiny
from tests.e2e.world import build_world, metrics, train
from verl_uae import UAEPipeline
from verl_uae.checkpoints.export import ExportSettings, export_checkpoint
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_image


def world_of(name: str, root: Path) -> Path:
    """The tests' world with the captioner of another family."""
    world = build_world(root)
    shutil.rmtree(world / "captioner")
    tiny.save(name, world / "captioner")
    return world


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_two_steps_of_g4u_and_the_exported_captioner(tmp_path: Path, name: str) -> None:
    world, out = world_of(name, tmp_path / "world"), tmp_path / "out"
    result = train(world, out, ["trainer.save_freq=2"])
    assert result.returncode == 0, result.stdout[-4000:]
    for step, record in metrics(out).items():
        # Positions, pictures and masks of verl's agent loops, of its engine and of the server meet here.
        assert record["training/rollout_probs_diff_max"] < 1e-4, step
        assert record["reward/invalid_frac"] == 0 and record["actor/grad_norm"] > 0, step
    model = tmp_path / "model"
    export_checkpoint(out / "checkpoints" / "global_step_2", model, ExportSettings())
    pipe = UAEPipeline.from_pretrained(model)
    before = tiny.build(name)[0].state_dict()
    after = pipe.captioner.state_dict()
    moved = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"language_model", "weight"}, "the vision tower is frozen, the head is not"
    pictures = [render_image(scene) for scene in held_out_scenes(3)]
    captions = pipe.caption(pictures, prompt="<image>describe", system="", temperature=0.0)
    alone = [pipe.caption(image, prompt="<image>describe", system="", temperature=0.0)[0] for image in pictures]
    assert captions == alone and any(captions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
def test_two_steps_of_u4g_with_captions_of_the_ranks(tmp_path: Path, name: str) -> None:
    world, out = world_of(name, tmp_path / "world"), tmp_path / "out"
    result = train(world, out, config="uae_u4g")
    assert result.returncode == 0, result.stdout[-4000:]
    for record in metrics(out).values():
        assert record["train/first/ratio/max"] == 1.0 and record["train/grad_norm"] > 0
        assert record["caption/tokens/mean"] > 0 and record["reward/invalid_frac"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "internvl"])
def test_two_steps_of_the_cold_start(tmp_path: Path, name: str) -> None:
    world, out = world_of(name, tmp_path / "world"), tmp_path / "out"
    result = train(world, out, ["trainer.save_freq=2"], config="uae_cold_start")
    assert result.returncode == 0, result.stdout[-4000:]
    for record in metrics(out).values():
        assert record["train/grad_norm"] > 0 and record["train/captioner_grad_norm"] > 0

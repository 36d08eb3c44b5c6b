# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captioners beyond Qwen2.5-VL through the real commands."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    "name", ["qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_5", "internvl"))]
)
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
    pictures = [render_image(scene) for scene in held_out_scenes(3, 0)]
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
def test_servers_write_the_captions_of_the_ranks(tmp_path: Path) -> None:
    """Two servers on two ranks, put to sleep after every batch, against the ranks' own captioner."""
    world, written = world_of("qwen3_vl", tmp_path / "world"), {}
    servers = [
        "actor_rollout_ref.rollout.free_cache_engine=true",
        "actor_rollout_ref.rollout.dtype=float32",
    ]
    for writer, overrides in {"ranks": ["uae.u4g.captions.dtype=float32"], "server": servers}.items():
        out = tmp_path / writer
        settings = [f"uae.u4g.captions.writer={writer}", f"trainer.rollout_data_dir={out}/rollouts"]
        ranks = ["trainer.n_gpus_per_node=2", "uae.train.micro_batch_size=4", "uae.u4g.captions.do_sample=true"]
        result = train(world, out, [*settings, *ranks, *overrides], config="uae_u4g")
        assert result.returncode == 0, result.stdout[-4000:]
        lines = [(out / "rollouts" / f"{step}.jsonl").read_text().splitlines() for step in (1, 2)]
        written[writer] = [json.loads(line)["output"] for step in lines for line in step]
    assert written["server"] == written["ranks"] and len(set(written["server"])) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "internvl"])
def test_two_steps_of_the_cold_start(tmp_path: Path, name: str) -> None:
    world, out = world_of(name, tmp_path / "world"), tmp_path / "out"
    result = train(world, out, ["trainer.save_freq=2"], config="uae_cold_start")
    assert result.returncode == 0, result.stdout[-4000:]
    for record in metrics(out).values():
        assert record["train/grad_norm"] > 0 and record["train/captioner_grad_norm"] > 0

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training and cold start through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.world import build_world, metrics, train
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.families.sd3 import SD3
from verl_uae.scenes.captioning import Captioner
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_float
from verl_uae.scenes.tiny_models import CONDITION_LENGTH

SAVED = ["trainer.test_freq=2", "trainer.save_freq=2"]


def moved(before: Path, after: Path) -> set[str]:
    """Parts of a decoder folder whose tensors differ."""
    old, new = (Decoder.from_pretrained(str(folder)).state_dict() for folder in (before, after))
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_two_steps_of_pre_training(tmp_path: Path) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    result = train(world, out, [*SAVED, f"uae.pretrain.cache_dir={out}/cache"], config="uae_pretrain")
    assert result.returncode == 0, result.stdout[-3000:]
    logged = metrics(out)
    assert sorted(logged) == [1, 2]
    assert all(record["train/grad_norm"] > 0 and record["pairs/invalid_frac"] == 0 for record in logged.values())
    assert logged[1]["train/latent_cache_hit_frac"] == 0.0
    assert logged[2]["val-core/flow_loss"] > 0 and "val-core/reward/mean" in logged[2]
    assert moved(world / "decoder", out / "checkpoints" / "global_step_2" / "decoder") == {"transformer", "projector"}
    assert (out / "checkpoints" / "panels" / "step_000002.html").is_file()
    assert list((out / "cache" / "latents").rglob("*.safetensors"))


@pytest.mark.slow
def test_ranks_and_micro_batches_do_not_change_pre_training(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    micro = ["uae.train.micro_batch_size=2"]
    runs = {"one": [], "micro": micro, "ranks": [*micro, "trainer.n_gpus_per_node=2"]}
    logged = {}
    for name, overrides in runs.items():
        result = train(world, tmp_path / name, overrides, config="uae_pretrain")
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(tmp_path / name)
    for name in ("micro", "ranks"):
        for step, record in logged["one"].items():
            for key in ("train/loss/mean", "train/grad_norm"):
                assert logged[name][step][key] == pytest.approx(record[key], rel=1e-5), (name, step, key)


@pytest.mark.slow
def test_pre_training_from_tar_shards(tmp_path: Path) -> None:
    import tarfile

    import pyarrow.parquet as pq

    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    rows = pq.read_table(world / "data" / "train.parquet").to_pylist()
    for shard in range(2):
        with tarfile.open(tmp_path / f"pairs-{shard:03d}.tar", "w") as tar:
            for number, row in enumerate(rows[shard::2]):
                for ending, content in (
                    ("png", row["images"][0]["bytes"]),
                    ("txt", row["extra_info"]["caption"].encode()),
                ):
                    path = tmp_path / "member"
                    path.write_bytes(content)
                    tar.add(path, arcname=f"{number:05d}.{ending}")
    result = train(world, out, [f"data.train_files={tmp_path}/pairs-*.tar"], config="uae_pretrain")
    assert result.returncode == 0, result.stdout[-3000:]
    assert all(record["train/grad_norm"] > 0 for record in metrics(out).values())


@pytest.mark.slow
@pytest.mark.parametrize("states", ["text_only", "in_context"])
def test_two_steps_of_cold_start(tmp_path: Path, states: str) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    result = train(world, out, [*SAVED, f"uae.cold_start.states={states}"], config="uae_cold_start")
    assert result.returncode == 0, result.stdout[-3000:]
    assert ("states that have seen the image" in result.stdout) == (states == "in_context")
    logged = metrics(out)
    for record in logged.values():
        assert record["train/grad_norm"] > 0 and record["train/captioner_grad_norm"] > 0
        assert -1 <= record["train/cosine/mean"] <= 1
    assert "val-core/reward/mean" in logged[2]
    saved = out / "checkpoints" / "global_step_2"
    assert moved(world / "decoder", saved / "decoder") == {"transformer", "projector"}
    Conditioner.from_pretrained(str(saved / "captioner"), SD3({}, {}, length=CONDITION_LENGTH))
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved / "captioner")
    tower = Qwen2_5_VLForConditionalGeneration.from_pretrained(world / "captioner").model.visual.state_dict()
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.model.visual.state_dict().items())
    captioner = Captioner(model.eval(), AutoTokenizer.from_pretrained(saved / "captioner"))
    assert len(captioner.sample(render_float(held_out_scenes(2, 0)))) == 2

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two true steps at real size through the real command, on a CPU: SD3.5-Medium with adapters, conditioned by the
language model of Qwen2.5-VL-3B. Random weights; 22 GiB of host memory, 25 GB of disk and a quarter of an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from tests.e2e.world import environment
from verl_uae.checkpoints.step import step_folder
from verl_uae.families.published import DECODERS

#: 256 x 256 pixels are 256 tokens; the scenes' captions have fewer than 40.
SIZES = [
    *("uae.decoder.height=256", "uae.decoder.width=256", "uae.conditioner.length=64"),
    *("uae.u4g.num_steps=4", "uae.decoder.num_steps=4", "uae.u4g.window.size=1", "uae.u4g.window.high=2"),
    *("uae.u4g.samples_per_caption=2", "data.train_batch_size=1", "uae.train.micro_batch_size=1"),
]
#: In which GPUs compute too.
BF16 = [
    *("uae.conditioner.dtype=bfloat16", "uae.decoder.dtype=bfloat16", "uae.train.fsdp_config.model_dtype=bf16"),
    *("uae.train.fsdp_config.mixed_precision.param_dtype=bf16", "uae.supervision.host_memory=1"),
    # On one rank nothing is gathered that would have to be freed.
    "uae.train.fsdp_config.reshard_after_forward=true",
]
REWARD = "uae.reward.terms=[{name: pixel, weight: 0.7}, {name: ssim, weight: 0.3}]"
RUN = [
    *(
        "trainer.total_training_steps=2",
        "trainer.save_freq=2",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    ),
    *("trainer.logger=[console,file]", "trainer.resume_mode=disable", "uae.u4g.captions.source=column"),
    *("uae.train.ema.decay=0", "++ray_kwargs.ray_init.address=local", "++ray_kwargs.ray_init.include_dashboard=false"),
    *(
        "++ray_kwargs.ray_init.object_store_memory=200000000",
        "++ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS='2'",
    ),
]


@pytest.mark.big
@pytest.mark.timeout(5400)
def test_u4g_takes_two_steps_and_stock_diffusers_loads_what_it_exports(tmp_path: Path) -> None:
    world, out = tmp_path / "world", tmp_path / "out"
    subprocess.run([sys.executable, "-m", "tests.real_size.folders", str(world)], check=True, timeout=1200)
    data = [f"data.{name}_files={world}/data/{name}.parquet" for name in ("train", "val")]
    models = [f"uae.decoder.path={world}/decoder", f"actor_rollout_ref.model.path={world}/captioner"]
    folders = [f"trainer.default_local_dir={out}/checkpoints", f"hydra.run.dir={out}/hydra"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "uae_u4g", "hardware=cpu"]
    out.mkdir()
    with (out / "log.txt").open("w") as log:
        words = [*command, *data, *models, *folders, *SIZES, *BF16, REWARD, *RUN]
        code = subprocess.call(words, env=environment(out), cwd=out, stdout=log, stderr=subprocess.STDOUT, timeout=3600)
    assert code == 0, (out / "log.txt").read_text()[-3000:]
    steps = [json.loads(line)["data"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    for step in steps:
        assert step["train/first/ratio/min"] == step["train/first/ratio/max"] == 1.0
        assert step["train/grad_norm"] > 0 and step["reward/invalid_frac"] == 0
        assert step["perf/host_memory_gib"] < 24
    exported = step_folder(out / "checkpoints", 2) / "decoder"
    stock = SD3Transformer2DModel.from_pretrained(exported, subfolder="transformer", torch_dtype=torch.bfloat16)
    blocks = DECODERS["sd35_medium"].changes["transformer"]["num_layers"]
    assert sum(weight.numel() for weight in stock.parameters()) > 2e9 and len(stock.transformer_blocks) == blocks
    base = SD3Transformer2DModel.from_pretrained(world / "decoder", subfolder="transformer", torch_dtype=torch.bfloat16)
    moved = {
        name
        for (name, new), old in zip(stock.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved and all(".attn" in name and name.endswith(".weight") for name in moved)
    AutoencoderKL.from_pretrained(exported, subfolder="vae")

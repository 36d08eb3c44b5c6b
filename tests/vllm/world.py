# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny world with a captioner that vLLM's CPU attention can run, and the training command on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.captioners import tiny
from tests.e2e.world import build_world, metrics, train
from verl_uae.chain.decoder import Decoder
from verl_uae.families.sd3 import Projector
from verl_uae.scenes.tiny_models import captioner_config
from verl_uae.seeding import derive_seed

REPOSITORY = Path(__file__).resolve().parents[2]

#: vLLM's CPU attention knows head widths 32, 64, 80, ... and not the tiny captioner's 24.
HEAD_DIM, HEADS = 32, 4
HIDDEN_SIZE = HEAD_DIM * HEADS

STEPS = 3


def build_vllm_world(root: Path) -> Path:
    """The world of the end-to-end tests, its captioner widened from 96 to 128 and the projector to match."""
    build_world(root)
    captioner = build_wide_captioner(root / "captioner")
    captioner.save_pretrained(root / "captioner")
    decoder = Decoder.from_pretrained(str(root / "decoder"))
    old = decoder.projector.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "vllm-projector"))
        projector = Projector(HIDDEN_SIZE, old.hidden_dim, old.out_dim, old.pooled_dim)
    modules = {**decoder.modules_by_folder(), "conditioner": projector}
    Decoder(decoder.family, modules).save_pretrained(str(root / "decoder"))
    return root


def build_tiled_world(root: Path) -> Path:
    """The world of the end-to-end tests with InternVL, whose heads alone are wider."""
    build_world(root)
    shutil.rmtree(root / "captioner")
    tiny.save("internvl", root / "captioner", HEAD_DIM)
    return root


def build_wide_captioner(narrow: Path) -> Any:
    """A random captioner of width 128 with the generation config of the one at ``narrow``."""
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    config = captioner_config()
    config.text_config.hidden_size = HIDDEN_SIZE
    config.text_config.num_attention_heads = HEADS
    config.text_config.rope_parameters = {**config.text_config.rope_parameters, "mrope_section": [4, 6, 6]}
    config.vision_config.out_hidden_size = HIDDEN_SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "vllm-captioner"))
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(narrow)
    return model.eval()


def correlations(world: Path, out: Path, overrides: Sequence[str] = (), *, steps: int = STEPS) -> dict[int, float]:
    """Train ``steps`` steps at a large learning rate.

    Returns:
        By step, Pearson correlation of the probabilities that vLLM and the trainer give to the sampled tokens.
    """
    result = train(
        world,
        out,
        [
            "hardware=cpu_vllm",
            f"trainer.total_training_steps={steps}",
            # Large enough that one update changes every probability.
            "actor_rollout_ref.actor.optim.lr=2e-2",
            *overrides,
        ],
        # Ray workers and vLLM's processes find the control extension by its import name.
        extra_env={"PYTHONPATH": search_path(), "VLLM_NO_USAGE_STATS": "1"},
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    records = metrics(out)
    assert sorted(records) == list(range(1, steps + 1)), result.stdout[-6000:]
    return {step: float(record["training/rollout_actor_probs_pearson_corr"]) for step, record in records.items()}


def search_path() -> str:
    """``PYTHONPATH`` by which the processes of a training command find this checkout's tests."""
    return os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))

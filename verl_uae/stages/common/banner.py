# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training command is about to do, in a few lines."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_uae.settings import CAPTIONING
from verl_uae.stages.common.config import step_kinds

#: Stage -> what it is called, and what it trains.
STAGES = {
    "pretrain": ("pre-training on long captions", "the decoder"),
    "cold_start": ("cold start with a reconstruction loss", "captioner and decoder"),
    "g4u": ("Generation for Understanding", "the captioner"),
    "u4g": ("Understanding for Generation", "the decoder"),
    "unified": ("both directions", "captioner and decoder"),
}


def banner(config: DictConfig) -> dict[str, str]:
    """What a run will do: name of the line -> what it says.

    Args:
        config: the whole composed configuration, valid.
    """
    uae, trainer = config.uae, config.trainer
    name, trained = STAGES[uae.stage]
    cpu = trainer.device == "cpu"
    device = "CPU" if cpu else f"{trainer.n_gpus_per_node} x {trainer.nnodes} {trainer.device}"
    if uae.decoder.pool == "own" and uae.stage in CAPTIONING:
        device += f", decoders on {uae.decoder.n_gpus_per_node} x {uae.decoder.nnodes} more"
    steps = trainer.total_training_steps
    every = {
        "validated": trainer.test_freq,
        "saved": trainer.save_freq,
    }
    often = ", ".join(f"{what} every {count}" for what, count in every.items() if count > 0)
    return {
        "stage": f"{uae.stage}, {name}: trains {trained}",
        "captioner": str(config.actor_rollout_ref.model.path),
        "decoder": str(uae.decoder.path),
        "data": f"{_files(config.data.train_files)}, validated on {_files(config.data.val_files)}",
        "a step": f"{_of_step(config)}, pictures of {uae.decoder.width} x {uae.decoder.height}",
        "steps": f"{steps or f'of {trainer.total_epochs} epochs'}{f', {often}' if often else ''}",
        "devices": f"{device}, seed {uae.seed}",
        "output": str(trainer.default_local_dir),
    }


def lines(found: dict[str, str]) -> list[str]:
    """One line each, names in a column."""
    width = max(map(len, found)) + 2
    return [f"  {name:<{width}}{value}" for name, value in found.items()]


def _of_step(config: DictConfig) -> str:
    images, u4g = int(config.data.train_batch_size), config.uae.u4g
    captioning = f"{images} pictures x {config.actor_rollout_ref.rollout.n} captions"
    drawing = f"{images} captions x {u4g.samples_per_caption} drawings"
    kinds = {"g4u": captioning, "u4g": drawing, "joint": f"{captioning} x {u4g.samples_per_caption} drawings"}
    return ", or ".join(kinds.get(kind, f"{images} pictures with captions") for kind in step_kinds(config))


def _files(files: object) -> str:
    names = [files] if isinstance(files, str) else list(files)  # type: ignore[call-overload]
    return str(names[0]) if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

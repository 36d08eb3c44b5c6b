# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses values of verl's keys that verl would read as something else, or find out about in a worker.

verl's own configuration has no types: a text where a number belongs, a fraction of a GPU or an unknown precision
passes, and fails in the middle of the set-up, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config.checks import check_minimum, check_whole
from verl_uae.errors import ConfigError

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

#: Whole numbers -> the smallest.
_WHOLE = {
    "trainer.n_gpus_per_node": 1,
    "trainer.nnodes": 1,
    "data.train_batch_size": 1,
    "data.max_prompt_length": 1,
    "data.max_response_length": 1,
    "data.dataloader_num_workers": 0,
    f"{_ROLLOUT}.n": 1,
    f"{_ROLLOUT}.tensor_model_parallel_size": 1,
    f"{_ROLLOUT}.agent.num_workers": 1,
    f"{_ACTOR}.ppo_mini_batch_size": 1,
    f"{_ACTOR}.ppo_epochs": 1,
}
#: The same for keys that may be null.
_WHOLE_OR_NULL = {
    "trainer.total_training_steps": 1,
    "data.val_batch_size": 1,
    "data.seed": 0,
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": 1,
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 1,
}
#: Key -> (smallest, whether the smallest itself is allowed).
_NUMBERS = {
    # Log-probabilities are divided by it.
    f"{_ROLLOUT}.temperature": (0, False),
    # Zero is greedy.
    f"{_ROLLOUT}.val_kwargs.temperature": (0, True),
    f"{_ACTOR}.kl_loss_coef": (0, True),
    f"{_ACTOR}.optim.lr": (0, True),
    "uae.train.optim.lr": (0, True),
    "uae.cold_start.encoder.optim.lr": (0, True),
}

#: Sections with verl's FSDP settings, and names of precisions in them (verl/utils/torch_dtypes.py).
_ENGINES = (
    f"{_ACTOR}.fsdp_config",
    "actor_rollout_ref.ref.fsdp_config",
    "uae.train.fsdp_config",
    "uae.cold_start.encoder.fsdp_config",
)
_PRECISIONS = ("fp32", "float32", "bf16", "bfloat16", "fp16", "float16")
_PRECISION_KEYS = (
    "model_dtype",
    "dtype",
    "mixed_precision.param_dtype",
    "mixed_precision.reduce_dtype",
    "mixed_precision.buffer_dtype",
)


def validate_verl(config: DictConfig) -> None:
    """Check the numbers and precisions of verl's keys that a run depends on.

    Raises:
        ConfigError: naming the first key that will not do.
    """
    check_whole(config, _WHOLE)
    given = {key: least for key, least in _WHOLE_OR_NULL.items() if OmegaConf.select(config, key) is not None}
    check_whole(config, given)
    check_minimum(config, {key: least for key, least in _NUMBERS.items() if _is_there(config, key)})
    for key, value in _precisions(config):
        if value not in _PRECISIONS:
            raise ConfigError(key, f"must be one of {', '.join(_PRECISIONS)}, got {value!r}")


def _precisions(config: DictConfig) -> Iterator[tuple[str, Any]]:
    for section in _ENGINES:
        for name in _PRECISION_KEYS:
            value = OmegaConf.select(config, f"{section}.{name}")
            if value is not None:
                yield f"{section}.{name}", value


def _is_there(config: DictConfig, key: str) -> bool:
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    return isinstance(parent, DictConfig) and key.rpartition(".")[2] in parent

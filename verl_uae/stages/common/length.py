# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How long a run is: the number of steps that is asked for, over as many epochs as that takes."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from verl_uae.errors import ConfigError


def cover_steps(config: DictConfig, total_steps: int, steps_per_epoch: int, rows: int) -> None:
    """Set ``trainer.total_epochs`` so that it never ends a run early.

    verl stops at whichever comes first, ``total_epochs`` or ``total_training_steps``, and in the first case neither
    validates nor saves at the end.

    Args:
        config: the whole composed configuration; changed.
        total_steps: steps of the run.
        steps_per_epoch: whole batches of the training data.
        rows: usable rows of the training data, for the message.

    Raises:
        ConfigError: there is no whole batch.
    """
    if steps_per_epoch < 1:
        raise ConfigError(
            "data.train_batch_size", f"{config.data.train_batch_size} is more than the {rows} usable rows can fill"
        )
    with open_dict(config):
        config.trainer.total_epochs = -(-total_steps // steps_per_epoch)

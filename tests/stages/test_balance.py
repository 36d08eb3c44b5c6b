# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Equal shares of a batch: found among numbers, and those that verl finds."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync

from verl_uae.stages.g4u.trainer import G4UTrainer


class Balancing(G4UTrainer):
    """Nothing but what balances a batch."""

    def __init__(self, ranks: int) -> None:
        self.actor_rollout_wg = SimpleNamespace(
            _dispatch_info={}, _query_dispatch_info=lambda role: {"actor": list(range(ranks))}[role]
        )
        self.tokenizer = SimpleNamespace(eos_token_id=0)

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return dp_size


def batch_of(lengths: list[int]) -> KVBatchMeta:
    keys = [f"k{number}" for number in range(len(lengths))]
    return KVBatchMeta(keys=keys, tags=[{"seq_len": length} for length in lengths], partition_id="train")


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_shares_and_figures_are_verls(ranks: int) -> None:
    drawn = random.Random(ranks)
    batch = batch_of([drawn.randint(20, 90) for _ in range(64)])
    trainer, found = Balancing(ranks), []
    for method in (G4UTrainer._balance_batch, PPOTrainerSync._balance_batch):
        metrics: dict[str, Any] = {}
        found.append((method(trainer, copy.deepcopy(batch), metrics).keys, metrics))
    assert found[0] == found[1] and len(found[0][1]) >= 5
    assert (found[0][0] == batch.keys) == (ranks == 1)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of tests/engines/policy_probe.py on two gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_replica_draws_what_the_sharded_weights_draw(policy: Facts, kind: str) -> None:
    facts = policy["two"]["replica"]
    assert facts[f"{kind} sharded"], "the engine holds whole weights, so this proves nothing"
    assert facts[f"{kind} first"] == facts[f"{kind} refreshed"] == facts[f"{kind} swapped"] == 0.0
    assert facts[f"{kind} behind"] > 0.1 and facts[f"{kind} tensors"]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_replica_gives_its_memory_back_and_is_filled_again(policy: Facts, kind: str) -> None:
    facts = policy["two"]["replica"]
    assert facts[f"{kind} released"] and facts[f"{kind} filled"] and facts[f"{kind} again"] == 0.0


def test_a_replica_computes_in_the_dtype_fsdp_gathers_in_with_exact_buffers(policy: Facts) -> None:
    facts = policy["two"]["replica"]
    assert facts["bf16"] == 0.0
    assert facts["bf16 held"] == ["torch.bfloat16"] and facts["buffers"] == ["torch.float32"]


def test_a_refresh_that_copies_nothing_is_an_error(policy: Facts) -> None:
    facts = policy["two"]["replica"]
    assert facts["no place"].startswith("CheckpointError: sampling replica: ") and "lora_A" in facts["no place"]
    assert facts["nothing"].startswith("CheckpointError: sampling replica: 0 tensors offered")

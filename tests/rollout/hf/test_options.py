# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.caption_server.options import HFOptions


def test_defaults_and_values() -> None:
    assert HFOptions.from_engine_kwargs(None) == HFOptions.from_engine_kwargs({"vllm": {"x": 1}}) == HFOptions()
    options = HFOptions.from_engine_kwargs({"hf": {"max_batch_size": 4, "batch_wait_ms": 0, "device": None}})
    assert options == HFOptions(max_batch_size=4, batch_wait_ms=0.0)


@pytest.mark.parametrize(
    ("section", "error", "key"),
    [
        ({"max_batchsize": 4}, ValueError, "max_batchsize"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size"),
        ({"batch_wait_ms": -1}, ValueError, "batch_wait_ms"),
        ({"attn_implementation": "flash_attention_2"}, ValueError, "attn_implementation"),
        ({"max_batch_size": "64"}, TypeError, "max_batch_size"),
        ({"max_batch_size": True}, TypeError, "max_batch_size"),
        ({"fixed_shapes": 1}, TypeError, "fixed_shapes"),
        ({"device": 0}, TypeError, "device"),
    ],
)
def test_errors_name_the_full_key(section: dict[str, object], error: type[Exception], key: str) -> None:
    with pytest.raises(error, match=f"actor_rollout_ref.rollout.engine_kwargs.hf.{key}"):
        HFOptions.from_engine_kwargs({"hf": section})

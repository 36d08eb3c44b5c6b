# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.caption_server.types import HFOptions
from verl_uae.errors import ConfigError


def test_defaults_and_values() -> None:
    assert HFOptions.from_engine_kwargs(None) == HFOptions.from_engine_kwargs({"vllm": {"x": 1}}) == HFOptions()
    options = HFOptions.from_engine_kwargs({"hf": {"max_batch_size": 4, "batch_wait_ms": 0, "device": None}})
    assert options == HFOptions(max_batch_size=4, batch_wait_ms=0.0)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"max_batchsize": 4}, "max_batchsize"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"batch_wait_ms": -1}, "batch_wait_ms"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),
        ({"max_batch_size": "64"}, "max_batch_size"),
        ({"max_batch_size": True}, "max_batch_size"),
        ({"fixed_shapes": 1}, "fixed_shapes"),
        ({"device": 0}, "device"),
    ],
)
def test_errors_name_the_full_key(section: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"actor_rollout_ref.rollout.engine_kwargs.hf.{key}"):
        HFOptions.from_engine_kwargs({"hf": section})

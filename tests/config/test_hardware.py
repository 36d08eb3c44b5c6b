# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Files for accelerators that no test has: they compose in every stage, and pass what is checked without the device."""

from __future__ import annotations

import pytest

from tests.composing import composed
from verl_uae.config import STAGES
from verl_uae.config.validate import validate


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("hardware", "device"), [("npu", "npu"), ("rocm", "cuda")])
def test_other_accelerators_compose_in_every_stage(stage: str, hardware: str, device: str) -> None:
    files = ["data.train_files=train.parquet", "data.val_files=val.parquet", "uae.decoder.path=org/model"]
    config = composed(f"hardware={hardware}", *files, name=f"uae_{stage}")
    validate(config)
    assert config.trainer.device == device and config.actor_rollout_ref.rollout.name == "vllm"
    if hardware == "rocm":
        # verl removes padding by flash-attn alone.
        model = config.actor_rollout_ref.model
        assert model.override_config.attn_implementation == "sdpa" and not model.use_remove_padding

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Files for accelerators that no test has: they compose in every stage, and pass what is checked without the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.composing import composed
from verl_uae.config import STAGES
from verl_uae.config.validate import validate


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("hardware", "device"), [("npu", "npu"), ("rocm", "cuda")])
def test_other_accelerators_compose_in_every_stage(tmp_path: Path, stage: str, hardware: str, device: str) -> None:
    (tmp_path / "rows.parquet").touch()
    words = [f"data.{name}_files={tmp_path}/rows.parquet" for name in ("train", "val")]
    words += ["uae.decoder.path=org/model", f"trainer.default_local_dir={tmp_path}/run"]
    config = composed(f"hardware={hardware}", *words, name=f"uae_{stage}")
    validate(config)
    assert config.trainer.device == device and config.actor_rollout_ref.rollout.name == "vllm"
    if hardware == "rocm":
        # verl removes padding by flash-attn alone.
        model = config.actor_rollout_ref.model
        assert model.override_config.attn_implementation == "sdpa" and not model.use_remove_padding

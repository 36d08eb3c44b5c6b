# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest

from verl_uae.engines.decoder_module import MODEL_TYPE, DecoderModelConfig


def test_answers_what_verls_engine_and_worker_ask() -> None:
    config = DecoderModelConfig(path="somewhere", lora_rank=4)
    assert config.get("use_remove_padding", True) is False and config.get("use_fused_kernels", True) is False
    assert config.get_processor() is None and config.lora.get("merge", False) is False
    assert not hasattr(config, "hf_config"), "verl's worker would count the flops of a language model"
    config.model_type = MODEL_TYPE
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.path = "elsewhere"

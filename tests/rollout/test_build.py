# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from verl_uae.chain.projector import Projector
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.stages.g4u.build import build_chain, sampler_settings


def test_the_chain_of_a_config(compose, tiny_overrides: list[str]) -> None:
    config = compose(*tiny_overrides, "uae.decoder.num_steps=4", "uae.decoder.shift=2.0")
    chain = build_chain(config, "cpu")
    assert len(chain.sigmas) == 5 and chain.settings == sampler_settings(config.uae.decoder)
    assert chain.scorer.labels == ["pixel", "ssim"] and chain.scorer.guard.timeout_s == config.uae.reward.timeout_s
    assert chain.conditioner.length == 20 and chain.conditioner.role == "generate"
    assert not any(parameter.requires_grad for parameter in chain.decoder.parameters())


def test_dtypes(compose, tiny_overrides: list[str]) -> None:
    config = compose(*tiny_overrides, "uae.decoder.dtype=bfloat16", "uae.conditioner.dtype=bfloat16")
    chain = build_chain(config, "cpu")
    assert chain.decoder.transformer.dtype == chain.conditioner.language_model.dtype == torch.bfloat16


def test_a_conditioner_of_another_width_is_refused(compose, tiny_overrides, tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "decoder", tmp_path / "decoder")
    Projector(64, 16, 96, 16).save_pretrained(tmp_path / "decoder" / "conditioner")
    with pytest.raises(ConfigError, match=r"uae.conditioner.path: .* width 96, .* wants 64"):
        build_chain(compose(*tiny_overrides, f"uae.decoder.path={tmp_path}/decoder"), "cpu")


def test_a_folder_that_is_no_decoder(compose, tiny_overrides, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no transformer/"):
        build_chain(compose(*tiny_overrides, f"uae.decoder.path={tmp_path}"), "cpu")

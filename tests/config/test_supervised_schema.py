# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from hydra.errors import ConfigCompositionException

from verl_uae.config.supervised_schema import ColdStartConfig, DensityConfig, PretrainConfig
from verl_uae.flow.matching import NoiseDensity


def test_the_density_is_the_flows_with_the_same_defaults() -> None:
    """`uae.pretrain.density` is handed to NoiseDensity as it is."""
    assert NoiseDensity(**dataclasses.asdict(DensityConfig())) == NoiseDensity()


def test_sections_are_not_shared_between_two_configs() -> None:
    one, other = ColdStartConfig(), ColdStartConfig()
    one.encoder.lora.target_modules.append("mine")
    one.backbone_params["mode"] = "maps"
    assert other == ColdStartConfig() != one
    assert PretrainConfig().density is not PretrainConfig().density


@pytest.mark.parametrize(
    "override",
    ["uae.pretrain.density.mean=1", "uae.pretrain.buckets=some", "uae.cold_start.encoder.lora.rank=half"],
)
def test_hydra_refuses_wrong_types_and_names(compose, tiny_overrides, override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose(*tiny_overrides, override, name="uae_pretrain")

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.families.sd3 import SD3
from verl_uae.reward.terms.vision import EfficientNetLite0
from verl_uae.stages.cold_start.worker import (
    build_caption_batcher,
    build_captioner_engine,
    build_features,
    decoder_worker_config,
    reconstruction_settings,
)

FAMILY = SD3({}, {}, shift=3.0)


@pytest.fixture(scope="module")
def config(compose, tiny_models):
    return lambda *overrides: compose(
        "hardware=cpu", "preset=scenes_cold_start", f"uae_home={tiny_models}", *overrides, name="uae_cold_start"
    )


def test_a_frozen_text_only_captioner_needs_no_engine(config) -> None:
    assert build_captioner_engine(config("uae.cold_start.captioner.train=false"), 10) is None


def test_switches_reach_the_decoder(config) -> None:
    lora = ("uae.train.lora.rank=4", "uae.cold_start.train_decoder=false")
    model = decoder_worker_config(config(*lora), 10).model_config
    assert not model.train_transformer and model.lora_rank == 0 and model.shadows == ["ema"]
    model = decoder_worker_config(config(*lora, "uae.train.train_projector=false"), 10).model_config
    assert model.shadows == [], "there are no trained weights to average"


def test_settings_of_the_loss(config) -> None:
    settings = reconstruction_settings(config("uae.cold_start.gradient_steps=2"), FAMILY)
    assert len(settings.sigmas) == 7 and settings.gradient_steps == 2 and settings.caption_weight == 1.0
    assert float(settings.sigmas[1]) == pytest.approx(3 * (5 / 6) / (1 + 2 * 5 / 6))
    assert reconstruction_settings(config("uae.cold_start.captioner.train=false"), FAMILY).caption_weight == 0.0
    assert reconstruction_settings(config("uae.cold_start.states=in_context"), FAMILY).in_context


def test_features_are_the_named_term_and_differentiable(config) -> None:
    term = build_features(config(), "cpu")
    assert isinstance(term, EfficientNetLite0) and term.image_size == 64
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(stage.sum() for stage in term.embed(picture)).backward()
    assert picture.grad is not None and float(picture.grad.abs().max()) > 0
    with pytest.raises(ConfigError, match="mode"):
        build_features(config("+uae.cold_start.backbone_params.mode=best"), "cpu")


def test_captions_are_as_long_as_the_captioners_may_be(config) -> None:
    assert build_caption_batcher(config("data.max_response_length=9"), "cpu").response_length == 9

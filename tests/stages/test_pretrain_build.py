# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.config.validate import validate
from verl_uae.data.buckets import Buckets
from verl_uae.engines.supervised import SUPERVISED_TYPE
from verl_uae.families.sd3 import SD3
from verl_uae.stages.pretrain.worker import density, supervised_worker_config


@pytest.fixture(scope="module")
def config(compose, tiny_models):
    return lambda *overrides: compose(
        "hardware=cpu", "preset=scenes_pretrain", f"uae_home={tiny_models}", *overrides, name="uae_pretrain"
    )


def test_the_engine_is_the_supervised_one_with_averaged_weights_if_asked(config) -> None:
    found = supervised_worker_config(config(), 10)
    assert found.model_type == found.model_config.model_type == SUPERVISED_TYPE
    assert found.model_config.shadows == ["ema"] and found.model_config.train_projector
    assert supervised_worker_config(config("uae.train.ema.decay=0"), 10).model_config.shadows == []


def test_trained_levels_are_shifted_as_the_sampler_unless_set(config) -> None:
    family = SD3({}, {}, shift=3.0)
    assert density(config(), family).shift == 3.0 and density(config("uae.pretrain.shift=1.5"), family).shift == 1.5
    assert density(config("uae.pretrain.density.name=mode"), family).name == "mode"


def test_buckets_lie_around_the_pictures_size(config) -> None:
    assert Buckets.from_config(config()).sizes == ((32, 32),)
    made = config("uae.pretrain.buckets=true", "uae.pretrain.bucket_step=8")
    validate(made)
    sizes = Buckets.from_config(made).sizes
    assert (32, 32) in sizes and all(h * w <= 32 * 32 for h, w in sizes)

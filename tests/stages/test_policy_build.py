# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from verl_uae.stages.common.build import decoder_shift
from verl_uae.stages.u4g.worker import sampling_plan, worker_config


def test_forward_objectives_keep_the_old_policy_and_others_do_not(compose, tiny_overrides) -> None:
    shadows = {}
    for preset in ("dppo", "nft"):
        config = compose(*tiny_overrides, f"decoder/objective={preset}", name="uae_u4g")
        shadows[preset] = worker_config(config, 10).model_config.shadows
    assert shadows == {"dppo": ["ema"], "nft": ["ema", "old"]}


def test_plans_repeat_and_windows_differ_between_batches(compose, tiny_overrides) -> None:
    config = compose(*tiny_overrides, name="uae_u4g")
    plans = [sampling_plan(config, 3.0, iteration) for iteration in range(20)]
    assert [plan.digest for plan in plans] == [sampling_plan(config, 3.0, i).digest for i in range(20)]
    assert len({plan.window for plan in plans}) > 1


def test_the_shift_is_the_schedulers_unless_set(compose, tiny_overrides) -> None:
    assert decoder_shift(compose(*tiny_overrides, name="uae_u4g")) == 3.0
    assert decoder_shift(compose(*tiny_overrides, "uae.decoder.shift=2.0", name="uae_u4g")) == 2.0

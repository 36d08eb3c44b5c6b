# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.stages.common.build import decoder_family
from verl_uae.stages.u4g.worker import sampling_plan, worker_config


def test_forward_objectives_keep_the_old_policy_and_others_do_not(compose, tiny_overrides) -> None:
    shadows = {}
    for preset in ("dppo", "nft", "awm", "dgpo", "crd"):
        config = compose(*tiny_overrides, f"decoder/objective={preset}", name="uae_u4g")
        shadows[preset] = worker_config(config, 10).model_config.shadows
    assert shadows.pop("dppo") == ["ema"]
    assert shadows == {preset: ["ema", "old"] for preset in ("nft", "awm", "dgpo", "crd")}


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["decoder/objective=dppo"], False),
        (["decoder/objective=nft"], True),
        (["decoder/objective=nft", "uae.u4g.reference_kl.coef=0"], False),
        (["decoder/objective=nft", "uae.u4g.reference_kl.coef=0", "uae.u4g.objective.norm_guard=0.1"], True),
        (["decoder/objective=dgpo", "uae.u4g.reference_kl.coef=0"], False),
        (["decoder/objective=dgpo", "uae.u4g.reference_kl.coef=0", "uae.u4g.objective.params.reference=base"], True),
    ],
)
def test_the_reference_is_kept_where_something_asks_it(compose, tiny_overrides, words, kept: bool) -> None:
    config = compose(*tiny_overrides, *words, name="uae_u4g")
    assert worker_config(config, 10).model_config.keep_reference is kept


def test_plans_repeat_and_windows_differ_between_batches(compose, tiny_overrides) -> None:
    config = compose(*tiny_overrides, name="uae_u4g")
    family = decoder_family(config)
    plans = [sampling_plan(config, family, iteration) for iteration in range(20)]
    assert [plan.digest for plan in plans] == [sampling_plan(config, family, i).digest for i in range(20)]
    assert len({plan.window for plan in plans}) > 1


def test_the_shift_is_the_schedulers_unless_set(compose, tiny_overrides) -> None:
    for overrides, shift in (([], 3.0), (["uae.decoder.shift=2.0"], 2.0)):
        family = decoder_family(compose(*tiny_overrides, *overrides, name="uae_u4g"))
        assert family.shift(4, 32, 32) == shift and (family.length, family.role) == (20, "generate")

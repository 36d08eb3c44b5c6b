# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker is run as a whole by tests/e2e/test_u4g.py."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

from verl.workers.engine_workers import TrainingWorker

from tests.samples import sample
from verl_uae.chain.records import Draw
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import Trajectory
from verl_uae.stages.u4g.worker import _KEPT, DecoderPolicyWorker, Layout


def test_pictures_are_numbered_sample_by_sample(compose: Any, tiny_overrides: list[str]) -> None:
    asked: list[Draw] = []

    class Worker(DecoderPolicyWorker):
        rank, _forward, _offload, _averaged = 1, False, False, None

        def __init__(self) -> None:
            self.run, self.replica = compose(*tiny_overrides, "uae.seed=9", name="uae_u4g"), None
            self.engine = SimpleNamespace(eval_mode=contextlib.nullcontext, field=None)
            self.painter = SimpleNamespace(draw=self.draw)

        def draw(self, field: Any, plan: SamplingPlan, draws: list[Draw], *, collective: bool) -> Any:
            assert collective, "the engine gathers weights in every velocity call"
            asked.extend(draws)
            return SimpleNamespace(outcomes=[], seconds={})

    samples = [sample(seed=number) for number in range(4)]
    layout = Layout(sources=4, members=4, updates=2, ranks=2)
    Worker().explore(samples, layout, SamplingPlan.ode(sigma_schedule(2)).to_dict(), 7)
    numbers = layout.of_rank(1)
    assert [draw.sample for draw in asked] == [samples[number // 4] for number in numbers]
    assert [draw.noise for draw in asked] == [(9, "u4g noise", 7, f"d{n // 4}", n % 4) for n in numbers]
    assert not any(draw.want_reconstruction for draw in asked), "no groupwise reward compares them"


def test_trains_on_what_sampling_keeps() -> None:
    assert set(_KEPT.values()) < set(Trajectory.__dataclass_fields__)
    assert issubclass(DecoderPolicyWorker, TrainingWorker)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker is run as a whole by tests/e2e/test_u4g.py."""

from __future__ import annotations

from verl.workers.engine_workers import TrainingWorker

from verl_uae.flow.trajectory import Trajectory
from verl_uae.stages.u4g.worker import _KEPT, DecoderPolicyWorker, _sample


def test_samples_are_numbered_source_by_source() -> None:
    assert [(_sample(n, 4).source, _sample(n, 4).member) for n in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (2, 1)]


def test_trains_on_what_sampling_keeps() -> None:
    assert set(_KEPT.values()) < set(Trajectory.__dataclass_fields__)
    assert issubclass(DecoderPolicyWorker, TrainingWorker)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker as a whole is run by tests/e2e/test_pretrain.py, its loss by tests/engines/test_cold_start.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.stages.test_pair_encoder import pair
from verl_uae.data.limits import DEFAULT_LIMITS
from verl_uae.stages.cold_start.worker import ColdStartWorker
from verl_uae.stages.common.worker import DecoderTrainingWorker
from verl_uae.stages.pretrain.worker import PretrainWorker


def test_a_picture_that_does_not_decode_is_grey_and_named() -> None:
    worker: Any = SimpleNamespace(
        _pairs=[pair(0), pair(1, image=b"nothing", width=40, height=20)], limits=DEFAULT_LIMITS
    )
    images, problems = ColdStartWorker._decoded(worker)
    assert images[0].size == (32, 32) and problems[0] == ""
    assert images[1].size == (40, 20) and images[1].getcolors() == [(800, (128, 128, 128))]
    assert "pairs.parquet" in problems[1]


def test_overrides_keep_the_signatures_of_the_base() -> None:
    import inspect

    for name in ("evaluate", "learn"):
        base = PretrainWorker if name == "learn" else DecoderTrainingWorker
        mine, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (ColdStartWorker, base))
        assert mine == theirs, name

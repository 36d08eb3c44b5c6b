# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The workers are run as a whole by tests/e2e/test_pretrain.py."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.workers.engine_workers import TrainingWorker

from verl_uae.engines.decoder_batch import stored
from verl_uae.families.family import Condition
from verl_uae.flow.matching import NoiseDensity
from verl_uae.seeding import normal
from verl_uae.stages.common.worker import DecoderTrainingWorker
from verl_uae.stages.pretrain.worker import FlowMatching, PretrainWorker


class KnownEngine:
    """An engine whose velocity is known: constant 2."""

    def field(self, condition: Condition) -> Any:
        return lambda x_BCHW, sigma_B: torch.full_like(x_BCHW, 2.0)


def test_the_loss_is_the_weighted_square_error_at_the_drawn_levels() -> None:
    x0, noise = normal((2, 1, 2, 2), "x0"), normal((2, 1, 2, 2), "noise")
    fields = {"x0_BCHW": x0, "noise_BCHW": noise, "sigma_B": torch.tensor([0.5, 0.25])}
    micro = TensorDict({**fields, **stored(Condition.whole(torch.zeros(2, 1, 1)))}, batch_size=2)
    output = FlowMatching(NoiseDensity("sigma_sqrt"))(KnownEngine(), micro)  # type: ignore[arg-type]
    expected = (2.0 - (noise - x0)).square().flatten(1).mean(1) / fields["sigma_B"].square()
    torch.testing.assert_close(output.loss_B, expected)
    assert output.metrics["velocity_rms"].tolist() == [2.0, 2.0]


def test_is_verls_worker() -> None:
    assert issubclass(PretrainWorker, DecoderTrainingWorker) and issubclass(PretrainWorker, TrainingWorker)

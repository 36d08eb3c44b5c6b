# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Operations of every stage and family: what is estimated from the command, against torch's own counter around the
package's workers on tiny real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.estimate import world
from tests.estimate.conftest import FAMILIES
from verl_uae.chain.records import Caption, Sample
from verl_uae.estimate.estimator import Estimator
from verl_uae.stages.u4g.worker import Layout, sampling_plan

CLOSE = 0.1
"""What the issue allows."""

U4G = [
    "data.train_batch_size=1",
    "uae.u4g.samples_per_caption=4",
    "uae.u4g.updates_per_rollout=1",
    "uae.u4g.num_steps=4",
    "uae.u4g.window.size=2",
    "uae.u4g.guidance=2.0",
    "uae.decoder.guidance=2.0",
    "uae.train.micro_batch_size=2",
    "uae.u4g.captions.source=column",
]
SIDES = {"sd3": 32, "default": 64}


def sized(family: str) -> list[str]:
    side = SIDES.get(family, SIDES["default"])
    words = [f"uae.decoder.height={side}", f"uae.decoder.width={side}"]
    # Positions that the tiny transformer of the scenes was made for.
    return [*words, "uae.conditioner.length=20"] if family == "sd3" else words


def executed(estimator: Estimator, *names: str) -> float:
    """Operations of phases of a step."""
    phases = estimator.estimate("H100-80GB").phases
    assert set(names) <= {phase.name for phase in phases}
    return sum(phase.executed.total for phase in phases if phase.name in names)


def photograph(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (9, 200, 30))


@pytest.mark.parametrize("rank", [2, 0], ids=["adapters", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_u4g(family: str, rank: int, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    asked = world.asked("u4g", tiny(family), *U4G, *sized(family), f"uae.train.lora.rank={rank}")
    estimator = Estimator(asked)
    worker = world.policy_worker(asked)
    caption = Caption(estimator.work.caption, "digest")
    sample = Sample(photograph(asked.config.uae.decoder.height), caption)
    plan = sampling_plan(asked.config, worker.family, 0)
    layout = Layout(sources=1, members=4, updates=1, ranks=1)
    # That of the unconditional branch is made once in a run.
    worker.painter.conditions.negative(asked.config.uae.decoder.negative_prompt)
    outcomes: list[Any] = []
    explored = world.counted(lambda: outcomes.extend(worker.explore([sample], layout, plan.to_dict(), 1)[0]))
    assert [str(outcome.record.status) for outcome in outcomes] == ["ok"] * 4
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    assert executed(estimator, "condition", "denoising", "VAE") == pytest.approx(explored, rel=CLOSE)
    assert executed(estimator, "update") == pytest.approx(improved, rel=CLOSE)

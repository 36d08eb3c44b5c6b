# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation: sampling, scoring and updates of the decoder policy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.sizes import Size
from tests.real_size import models, workers
from tests.real_size.accelerator import Accelerator
from tests.real_size.conftest import LARGE, MEDIUM
from verl_uae.chain.records import Caption, Sample
from verl_uae.engines.update_metrics import Figures
from verl_uae.families.sd3 import SD3
from verl_uae.stages.common.build import EMA
from verl_uae.stages.u4g.worker import OLD, Layout, sampling_plan

SIZES = [
    "uae.decoder.path=decoder",
    "uae.train.micro_batch_size=2",
    "uae.u4g.samples_per_caption=4",
    "uae.u4g.updates_per_rollout=1",
    "uae.u4g.num_steps=2",
    "uae.u4g.window.size=1",
]
LAYOUT = Layout(sources=1, members=4, updates=1, ranks=1)
MICRO_BATCHES, PLACES = 2, 1

LORA = ["uae.u4g.reference_kl.coef=0.1"]
FULL = ["uae.train.lora.rank=0", "uae.u4g.guidance=4.5", "uae.decoder.guidance=4.5"]
FORWARD = ["decoder/objective=nft", "uae.u4g.samples_per_caption=4", "uae.u4g.objective.num_sigmas=1"]


def explored(worker: workers.PolicyWorker, config: Any) -> list[Any]:
    sample = Sample(models.photograph(), Caption("a red circle", "digest"))
    plan = sampling_plan(config, SD3({}, {}, shift=3.0), 0)
    outcomes, _ = worker.explore([sample], LAYOUT, plan.to_dict(), 1)
    return [(str(outcome.record.status), outcome.record.reason) for outcome in outcomes]


@pytest.mark.parametrize(
    ("size", "kind"),
    [(LARGE, "lora"), (LARGE, "full"), (MEDIUM, "full"), (MEDIUM, "forward")],
    indirect=["size"],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_batch_is_drawn_scored_and_trained_on_the_device(
    size: Size,
    kind: str,
    clip: str,
    accelerator: Accelerator,
    one_rank: Any,
    compose: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LoRA with a penalty on the distance to the reference; all weights with guidance; the forward process, with such
    a penalty too."""
    figures: set[str] = set()
    add = Figures.add
    monkeypatch.setattr(Figures, "add", lambda self, values, *rest: (figures.update(values), add(self, values, *rest)))
    overrides = {"lora": LORA, "full": FULL, "forward": FORWARD}[kind]
    config = compose(*SIZES[:1], *overrides, *SIZES[1:], name="uae_u4g")
    module = models.policy_module(size, lora=kind != "full")
    shadows = (EMA, OLD) if kind == "forward" else (EMA,)
    worker = workers.policy_worker(config, size, clip, module, shadows=shadows)
    accelerator.in_threads_of(worker.painter.scorer)
    with accelerator:
        assert explored(worker, config) == [("ok", None)] * 4
        sampling = Counter(accelerator.syncs)
        accelerator.syncs.clear()
        metrics = worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0)
    assert all(parameter.grad is not None for parameter in module.transformer.parameters() if parameter.requires_grad)
    assert metrics[0]["valid"] == [4.0] and metrics[0]["updates_left_out"] == [0.0]
    # What is read from the device is zero, so no figure counts; but all of them were computed.
    assert "loss" in figures and ("reference_kl" in figures) == (kind != "full"), figures
    # The five tensors of a trajectory, at the end of a micro-batch.
    assert sampling["chain/draw.py:_to_host"] == 5 * MICRO_BATCHES
    assert not {place for place in sampling if place.startswith(("engines/", "flow/"))}
    if kind == "forward":
        # The old policy's velocities, micro-batch by micro-batch.
        assert accelerator.syncs.pop("engines/decoder.py:recompute_old") == MICRO_BATCHES
    assert accelerator.syncs.total() / (MICRO_BATCHES * PLACES) <= 1, accelerator.syncs
    assert accelerator.frozen_bytes_to_host == 0

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from verl_uae.reward import RewardBatch, RewardRecord, Status
from verl_uae.reward.sample import Origin, Scoring


def test_take_keeps_order_and_repeats(make_batch) -> None:
    batch = make_batch(4)
    taken = batch.take([3, 0, 3])
    assert torch.equal(taken.source_B3HW, batch.source_B3HW[[3, 0, 3]])
    assert list(taken.captions) == ["caption 3", "caption 0", "caption 3"]
    assert [row["ground_truth"] for row in taken.rows] == [3, 0, 3]


def test_half_precision_becomes_fp32(make_batch) -> None:
    batch = make_batch(2)
    half = RewardBatch(batch.source_B3HW.bfloat16(), batch.reconstruction_B3HW.bfloat16())
    assert half.source_B3HW.dtype == half.reconstruction_B3HW.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5, -0.5])
@pytest.mark.parametrize("part", ["source_B3HW", "reconstruction_B3HW"])
def test_unusable_pixels_are_found(make_batch, part: str, value: float) -> None:
    batch = make_batch(3)
    getattr(batch, part)[1, 2, 3, 4] = value
    assert list(batch.unusable()) == [1]
    assert part.split("_")[0] in batch.unusable()[1]


def test_misfits_are_refused(make_batch) -> None:
    batch = make_batch(2)
    source, reconstruction = batch.source_B3HW, batch.reconstruction_B3HW
    with pytest.raises(ValueError, match="differ"):
        RewardBatch(source, reconstruction[:1])
    with pytest.raises(ValueError, match="must be float"):
        RewardBatch((source * 255).byte(), (reconstruction * 255).byte())
    with pytest.raises(ValueError, match="must be float"):
        RewardBatch(source[:, :, :0], reconstruction[:, :, :0])
    with pytest.raises(ValueError, match="1 captions for 2"):
        RewardBatch(source, reconstruction, captions=["one"])
    with pytest.raises(ValueError, match="without a value"):
        RewardBatch(source, reconstruction, failed={0: RewardRecord(1.0, Status.OK)})
    with pytest.raises(ValueError, match=r"failed\[7\]"):
        RewardBatch(source, reconstruction, failed={7: RewardRecord.failed(Status.ERROR, "decoder")})


def test_a_sample_keeps_its_place_through_every_selection(make_batch) -> None:
    batch = replace(make_batch(5), origin=Origin(Scoring(), (0, 1, 2, 3, 4)))
    part = batch.take([4, 2, 2, 0]).take([3, 0, 1])
    assert part.origin == Origin(batch.origin.batch, (0, 4, 2))
    assert torch.equal(part.source_B3HW, batch.source_B3HW[[0, 4, 2]]) and part.captions[1] == batch.captions[4]

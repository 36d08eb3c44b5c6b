# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from tests.reward.remote.conftest import make_service, start_server  # noqa: F401
from tests.rewards.conftest import ROOT
from verl_uae.reward import RewardScorer, TermSpec

ENTRY = {"name": "custom", "label": "layout", "params": {"path": str(ROOT / "rewards/remote_reward.py")}}


def test_by_hand(example) -> None:
    module = example("remote_reward")
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = 255
    quarter, black = Image.fromarray(pixels), Image.new("RGB", (4, 4))
    assert module.layout(quarter, quarter, "a b", cells=2) == {"score": 1.0, "words": 2.0}
    assert module.layout(quarter, black, "", cells=2)["score"] == 0.75
    # The mean of one cell: 255 / 4, rounded to a level.
    assert module.layout(quarter, black, "", cells=1)["score"] == 1.0 - 64 / 255


def test_served_and_asked_for(example, to_batch, start_server) -> None:  # noqa: F811
    url, _ = start_server(ENTRY)
    draw = np.random.default_rng(0)
    one, other = (Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2))
    batch = dataclasses.replace(to_batch([one, one], [one, other]), captions=["two words", "three more words"])
    spec = TermSpec(name="remote", label="far", params={"url": url, "send": ["source", "reconstruction", "caption"]})
    records = RewardScorer([spec]).score(batch)
    expected = example("remote_reward").layout(one, other, "three more words")
    assert [record.value for record in records] == [1.0, expected["score"]]
    assert records[1].terms == {"far": expected["score"], "far/layout": expected["score"], "far/layout/words": 3.0}


def test_a_sample_that_fails_is_missing(to_batch, start_server) -> None:  # noqa: F811
    url, _ = start_server({**ENTRY, "params": {**ENTRY["params"], "reward_kwargs": {"cells": 0}}})
    picture = Image.new("RGB", (16, 16))
    batch = dataclasses.replace(to_batch([picture], [picture]), captions=[""], rows=[{}])
    (record,) = RewardScorer([("remote", 1.0, {"url": url})]).score(batch)
    assert record.value is None and record.status == "error"
    assert record.reason.startswith("remote: layout: raised ValueError")

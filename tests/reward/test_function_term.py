# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.data.images import to_pil
from verl_uae.errors import ConfigError, RewardError
from verl_uae.reward import RewardBatch, RewardScorer, Status, TermSpec, reward_function
from verl_uae.reward import scorer as scorer_module
from verl_uae.reward.function import FunctionTerm, term_of_function


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch):
    """``score(function, batch, params, ...)``: a scorer with that function alone as term, and its records."""

    def run(function, batch: RewardBatch, params=None, held_out=False, **settings):
        monkeypatch.setattr(scorer_module, "get_reward", lambda name, key="": term_of_function(function, name))
        spec = TermSpec(name="mine", params=params or {}, label="label")
        return RewardScorer([spec], **settings).score(batch)

    return run


def test_a_function_gets_what_it_names(make_batch) -> None:
    seen = []

    @reward_function(bounds=(0, 1), num_threads=1)
    def mine(source, reconstruction, caption, row, k=2, **params):
        row["extra_info"] = None
        seen.append((source, reconstruction, caption, row["ground_truth"], k, params))
        return {"score": 0.25, "k": k, "note": "text", "bad": float("nan")}

    batch = make_batch(2)
    records = term_of_function(mine, "mine")(k=3, more=4).score(batch)
    assert [record.value for record in records] == [0.25, 0.25] and records[0].terms == {"k": 3.0}
    assert seen[1][2:] == ("caption 1", 1, 3, {"more": 4})
    for image, image_3HW in ((seen[1][0], batch.source_B3HW[1]), (seen[1][1], batch.reconstruction_B3HW[1])):
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.rint(image_3HW.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    assert batch.rows[1]["extra_info"] == {"index": 1}  # The row itself is not touched.


def test_only_what_is_named_is_needed(make_batch, score) -> None:
    @reward_function
    def brightness(reconstruction):
        return np.asarray(reconstruction).mean() / 255

    pictures = make_batch(2)
    batch = RewardBatch(pictures.source_B3HW, pictures.reconstruction_B3HW)
    expected = batch.reconstruction_B3HW.mean(dim=(1, 2, 3)).tolist()
    assert [record.value for record in score(brightness, batch)] == pytest.approx(expected, abs=1 / 255)

    @reward_function
    def length(caption):
        return len(caption)

    with pytest.raises(RewardError, match="needs a caption"):
        score(length, batch)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batched_function_gets_lists(make_batch, score, asynchronous: bool) -> None:
    sizes = []

    @reward_function(batched=True, batch_size=4)
    def mine(sources, captions, rows, factor):
        sizes.append((len(sources), len(captions), len(rows)))
        assert all(isinstance(image, Image.Image) for image in sources)
        return [
            {"score": factor * row["ground_truth"], "words": len(text)}
            for row, text in zip(rows, captions, strict=True)
        ]

    @reward_function(batched=True, batch_size=4)
    async def later(sources, captions, rows, factor):
        await asyncio.sleep(0)
        return mine(sources, captions, rows, factor)

    records = score(later if asynchronous else mine, make_batch(10), {"factor": 0.5})
    assert [record.value for record in records] == [0.5 * index for index in range(10)]
    assert records[3].terms == {"label": 1.5, "label/words": len("caption 3")}
    # The last chunk is filled up, so that the size of a batch never depends on who failed.
    assert sizes == [(4, 4, 4)] * 3


FAULTS = {
    "raise": ("error", "raised KeyError: 'no such row'"),
    "exit": ("error", "raised RuntimeError: called sys.exit(1)"),
    "short": ("invalid", "returned 0 outcomes for 1 samples"),
    "nan": ("invalid", "returned nan"),
    "text": ("invalid", "not a number"),
}


@pytest.mark.parametrize("fault", [*FAULTS, "none"])
def test_one_bad_sample_of_a_batch_costs_one_sample(make_batch, score, fault: str) -> None:
    """And all others keep their bits, although a value depends on the size of the batch it was computed in."""

    @reward_function(batched=True)
    def mine(sources, rows):
        kinds = [row["extra_info"].get("fault") for row in rows]
        if "raise" in kinds:
            raise KeyError("no such row")
        if "exit" in kinds:
            sys.exit(1)
        values = [float(np.asarray(image).mean() / 3 + 1e-9 * len(rows)) for image in sources]
        values = [{"nan": math.nan, "text": "high"}.get(kind, value) for kind, value in zip(kinds, values, strict=True)]
        return [value for value, kind in zip(values, kinds, strict=True) if kind != "short"]

    batch = make_batch(40)
    clean = [record.value for record in score(mine, batch)]
    bad = [] if fault == "none" else [3, 17, 18]
    for index in bad:
        batch.rows[index]["extra_info"]["fault"] = fault
    records = score(mine, batch)
    assert [record.value for record in records] == [None if i in bad else value for i, value in enumerate(clean)]
    for index in bad:
        status, reason = FAULTS[fault]
        assert records[index].status == status and records[index].reason.startswith("label: ")
        assert reason in records[index].reason


def test_a_batched_function_that_never_answers_rightly(make_batch, score) -> None:
    @reward_function(batched=True)
    def mine(sources):
        return 0.5

    records = score(mine, make_batch(3))
    assert {record.status for record in records} == {Status.INVALID}
    assert records[0].reason == "label: returned float 0.5 for 1 samples"


def test_a_late_batch_costs_what_is_not_scored_and_nothing_before_it(make_batch, score) -> None:
    release, calls = threading.Event(), []

    @reward_function(batched=True, batch_size=4)
    def mine(rows):
        calls.append(rows[0]["ground_truth"])
        if rows[0]["ground_truth"] == 4:
            release.wait()
        return [0.5] * len(rows)

    try:
        records = score(mine, make_batch(12), timeout_s=1.0)
    finally:
        release.set()
    assert [record.status for record in records] == ["ok"] * 4 + ["timeout"] * 8
    assert records[5].reason == "label: no answer within 1 s"
    time.sleep(0.2)
    assert calls == [0, 4]  # The abandoned thread asks for nothing more.


def test_a_late_coroutine_of_a_batch_is_cancelled_and_not_asked_again(make_batch, score) -> None:
    ended, calls = [], []

    @reward_function(batched=True, batch_size=4)
    async def mine(rows):
        calls.append(len(rows))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    records = score(mine, make_batch(4), timeout_s=1.0)
    assert [record.status for record in records] == ["timeout"] * 4
    assert ended == [True] and calls == [4]


def test_a_distance_is_subtracted(make_batch, score) -> None:
    @reward_function(bounds=(0, 2), higher_is_better=False)
    def distance(row):
        return row["ground_truth"]

    records = score(distance, make_batch(4))
    assert [record.value for record in records[:3]] == [0.0, -1.0, -2.0]
    assert records[3].status == "invalid" and "outside its bounds [0, 2]" in records[3].reason


@pytest.mark.parametrize("batched", [False, True])
def test_a_function_may_change_its_row_and_no_other(make_batch, batched: bool) -> None:
    """Members of a group share one row."""
    shared = {"extra_info": {"index": 3, "words": ["a"]}, "ground_truth": [1, 2]}

    @reward_function(num_threads=1)
    def one(row):
        row["extra_info"]["words"].append(row["ground_truth"].pop())
        return row["extra_info"].pop("index")

    @reward_function(batched=True)
    def many(rows):
        return [one(row) for row in rows]

    batch = replace(make_batch(3), rows=[shared] * 3)
    records = term_of_function(many if batched else one, "mine")().score(batch)
    assert [record.value for record in records] == [3.0] * 3
    assert shared == {"extra_info": {"index": 3, "words": ["a"]}, "ground_truth": [1, 2]}


def test_samples_of_a_batch_share_its_time(make_batch) -> None:
    @reward_function(batched=True, batch_size=4)
    def slow(captions):
        time.sleep(0.2)
        return [0.5] * len(captions)

    seconds = [record.seconds for record in term_of_function(slow, "mine")().score(make_batch(4))]
    assert seconds == [seconds[0]] * 4 and sum(seconds) == pytest.approx(0.2, rel=0.5)


def test_a_declared_function_may_have_verls_signature(make_batch) -> None:
    @reward_function(bounds=(0, 1))
    def compute_score(data_source, solution_str, ground_truth, extra_info, scale=1.0):
        return scale * extra_info["index"] * (data_source == "test") * (ground_truth == extra_info["index"])

    records = term_of_function(compute_score, "mine")(scale=0.5).score(make_batch(3))
    assert [record.value for record in records] == [0.0, 0.5, 1.0]


def test_the_class_states_what_was_declared(caplog: pytest.LogCaptureFixture) -> None:
    @reward_function(bounds=(0, 3), higher_is_better=False)
    def mine(source, k=1): ...

    made = term_of_function(mine, "mine")
    assert issubclass(made, FunctionTerm) and made.value_scale({}) == ((0.0, 3.0), False)
    with caplog.at_level(logging.INFO):
        made.check_params({"k": 2}, "key")
    assert f"mine(source, k=1) from {__file__}, sha256 " in caplog.text
    with pytest.raises(ConfigError, match=r"^my\.key: mine must take source, q by keyword"):
        made.check_params({"q": 2}, "my.key")
    with pytest.raises(TypeError, match=r"is not declared with @reward_function"):
        term_of_function(lambda source: 0, "mine")


def test_to_pil_rounds_to_the_nearest_level() -> None:
    levels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.0005, -0.0005]).expand(3, 1, 6)
    assert np.asarray(to_pil(levels))[0, :, 0].tolist() == [0, 0, 1, 255, 255, 0]

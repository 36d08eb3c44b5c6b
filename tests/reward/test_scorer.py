# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random
import threading
import time
from typing import ClassVar

import pytest
import torch

from verl_uae.errors import ConfigError, RewardError
from verl_uae.flow.advantage import group_advantage
from verl_uae.reward import (
    RewardBatch,
    RewardRecord,
    RewardScorer,
    RewardTerm,
    Status,
    TermSpec,
    register_reward,
    to_tensors,
)
from verl_uae.reward.scorer import check_specs
from verl_uae.reward.terms.pixel import bounded_psnr, pixel_similarity

RELEASE = threading.Event()


@register_reward("test_hostile")
class Hostile(RewardTerm):
    """Brightness of the reconstruction, or what ``row["fault"]`` says."""

    needs = frozenset({"reconstruction", "row"})
    bounds = (0.0, 1.0)
    BAD: ClassVar[dict[str, object]] = {
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "none": None,
        "text": "0.5",
        "list": [0.5, 0.5],
        "high": 7.0,
    }

    def score(self, batch):
        faults = [row.get("fault") for row in batch.rows]
        if "hang" in faults:
            RELEASE.wait()
        if "raise" in faults:
            raise ArithmeticError("bad sample")
        values = batch.reconstruction_B3HW.mean(dim=(1, 2, 3)).tolist()
        outcomes = [self.BAD.get(fault, value) for fault, value in zip(faults, values, strict=True)]
        return [outcome for outcome, fault in zip(outcomes, faults, strict=True) if fault != "drop"]


@register_reward("test_distance")
class Distance(RewardTerm):
    bounds = (0.0, 1.0)
    higher_is_better = False

    def score(self, batch):
        return (batch.source_B3HW - batch.reconstruction_B3HW).abs().mean(dim=(1, 2, 3))


@register_reward("test_loud")
class Loud(RewardTerm):
    bounds = (0.0, math.inf)

    def score(self, batch):
        return [10.0] * len(batch)


@register_reward("test_grad_mode")
class GradMode(RewardTerm):
    bounds = (0.0, 1.0)

    def score(self, batch):
        return [float(torch.is_grad_enabled())] * len(batch)


@pytest.fixture
def released():
    RELEASE.clear()
    yield
    RELEASE.set()


def test_weighted_sum_of_the_pure_functions(make_batch) -> None:
    batch = make_batch(5)
    scorer = RewardScorer([("pixel", 0.7, {"k": 5.0}), ("psnr", 0.5, {})], held_out=[("ssim", {})])
    pixel = pixel_similarity(batch.source_B3HW, batch.reconstruction_B3HW, k=5.0)
    psnr = bounded_psnr(batch.source_B3HW, batch.reconstruction_B3HW)
    for index, record in enumerate(scorer.score(batch)):
        assert record.status is Status.OK and record.reason is None and record.seconds > 0.0
        assert record.value == pytest.approx(0.7 * pixel[index].item() + 0.5 * psnr[index].item(), rel=1e-6)
        assert set(record.terms) == {"pixel", "psnr", "ssim"}
        assert record.terms["pixel"] == pytest.approx(pixel[index].item(), rel=1e-6)
    assert scorer.bounds == (0.0, 1.2)
    assert scorer.labels == ["pixel", "psnr"] and [entry.label for entry in scorer._watched] == ["ssim"]


def test_a_distance_is_subtracted(make_batch) -> None:
    scorer = RewardScorer([("test_distance", 2.0, {})])
    assert scorer.bounds == (-2.0, 0.0)
    for record in scorer.score(make_batch(3)):
        assert record.value == -2.0 * record.terms["test_distance"] < 0.0


def test_gradients_are_off_in_the_worker(make_batch) -> None:
    assert [record.value for record in RewardScorer([("test_grad_mode", 1.0, {})]).score(make_batch(2))] == [0.0, 0.0]


def test_a_term_twice_needs_labels(make_batch) -> None:
    fine = TermSpec(name="pixel", params={"scales": (1,)}, label="fine")
    record = RewardScorer([fine, ("pixel", 1.0, {})]).score(make_batch(1))[0]
    assert set(record.terms) == {"fine", "pixel"}
    with pytest.raises(ConfigError, match="used twice"):
        RewardScorer([("pixel", 1.0, {}), ("pixel", 1.0, {"k": 1.0})])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "at least one"),
        ([("pixel", 1.0, {}), ("psnr", -1.0, {})], "sum to 0"),
        ([("pixel", 0.1, {}), ("psnr", 0.2, {}), ("ssim", -0.3, {})], "sum to 0"),
        ([("pixel", 0.0, {}), ("psnr", 1.0, {})], "hold it out"),
        ([("pixel", math.nan, {})], "finite"),
        ([("pixle", 1.0, {})], r"uae.reward.terms\[0\].name: unknown reward 'pixle'. Did you mean 'pixel'"),
        (
            [("psnr", 1.0, {}), ("pixel", 1.0, {"q": 1})],
            r"uae.reward.terms\[1\].params: .*unexpected keyword argument 'q'",
        ),
        ([("pixel", 1.0, {"k": -1.0})], "above 0"),
    ],
)
def test_impossible_settings(terms, message) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardScorer(terms)
    with pytest.raises(ConfigError, match=message):
        check_specs([TermSpec(name=name, weight=weight, params=params) for name, weight, params in terms], [])


def test_a_label_cannot_be_that_of_a_number_which_another_term_logs(make_batch, tmp_path) -> None:
    """Else a held-out function could put a number in the place of a summed term, where normalised sums look for it."""
    path = tmp_path / "mine.py"
    path.write_text("def compute_score(**kwargs):\n    return {'score': 0.5, 'fit': 1e9}\n")
    spy = TermSpec(name="custom", params={"path": str(path)}, label="a")
    scorer = RewardScorer([TermSpec(name="pixel", label="fit")], held_out=[spy])
    (record,) = scorer.score(make_batch(1))
    assert record.terms["fit"] == record.value and record.terms["a/fit"] == 1e9
    with pytest.raises(ConfigError, match="labels \\['a/fit'\\] contain '/'"):
        RewardScorer([TermSpec(name="pixel", label="a/fit")], held_out=[spy])


@register_reward("test_heavy")
class Heavy(RewardTerm):
    """Stands for a term that loads a model: it must not be built to be checked."""

    bounds = (0.0, 1.0)

    def __init__(self, model: str) -> None:
        if model == "huge":
            raise MemoryError
        self.net, self.table, self.label = torch.nn.Linear(2, 2), torch.ones(3), model

    def score(self, batch):
        return [0.5] * len(batch)


def test_check_specs_loads_no_model() -> None:
    check_specs([TermSpec(name="test_heavy", params={"model": "huge"})], [])
    with pytest.raises(ConfigError, match=r"uae.reward.held_out\[0\].params: .*'model'; Heavy takes"):
        check_specs([TermSpec(name="pixel")], [TermSpec(name="test_heavy")])


def test_to_moves_the_models_of_every_term() -> None:
    scorer = RewardScorer(
        [("test_heavy", 1.0, {"model": "a"})], held_out=[TermSpec(name="test_heavy", params={"model": "b"}, label="b")]
    )
    scorer.to("meta")
    assert scorer.device.type == "meta"
    for entry in (*scorer._summed, *scorer._watched):
        assert entry.term.net.weight.device.type == entry.term.table.device.type == "meta"
        assert entry.term.label in ("a", "b")


def test_a_failed_picture_keeps_its_record_and_no_other_changes(make_batch) -> None:
    batch = make_batch(6)
    scorer = RewardScorer([("pixel", 1.0, {}), ("ssim", 1.0, {})])
    clean = scorer.score(batch)
    reconstruction = batch.reconstruction_B3HW.clone()
    reconstruction[2], reconstruction[4, 0, 0, 0] = math.nan, math.inf
    failure = RewardRecord.failed(Status.ERROR, "decoder: out of memory")
    records = scorer.score(RewardBatch(batch.source_B3HW, reconstruction, failed={2: failure}))
    assert records[2] is failure
    assert records[4].status is Status.INVALID and "pixels from" in records[4].reason
    assert [records[i].value for i in (0, 1, 3, 5)] == [clean[i].value for i in (0, 1, 3, 5)]


def test_all_pictures_failed(make_batch) -> None:
    batch = make_batch(2)
    failure = RewardRecord.failed(Status.ERROR, "decoder")
    batch = RewardBatch(batch.source_B3HW, batch.reconstruction_B3HW, failed={0: failure, 1: failure})
    assert RewardScorer([("pixel", 1.0, {})]).score(batch) == [failure, failure]
    assert RewardScorer([("pixel", 1.0, {})]).score(make_batch(2).take([])) == []


def test_a_held_out_failure_touches_nothing(make_batch, caplog: pytest.LogCaptureFixture) -> None:
    batch = make_batch(4)
    clean = RewardScorer([("pixel", 1.0, {})]).score(batch)
    batch.rows[1]["fault"], batch.rows[2]["fault"] = "nan", "nan"
    records = RewardScorer([("pixel", 1.0, {})], held_out=[("test_hostile", {})]).score(batch)
    assert [record.value for record in records] == [record.value for record in clean]
    assert ["test_hostile" in record.terms for record in records] == [True, False, False, True]
    # One line, however many samples.
    assert [record.getMessage() for record in caplog.records] == [
        "a held-out reward is missing for 2 samples (2 x invalid: test_hostile: returned nan)"
    ]


def test_a_held_out_term_is_spared_samples_without_a_value(make_batch) -> None:
    batch = make_batch(4)
    batch.rows[1]["fault"] = "nan"
    records = RewardScorer([("test_hostile", 1.0, {})], held_out=[("pixel", {})]).score(batch)
    assert ["pixel" in record.terms for record in records] == [True, False, True, True]


@pytest.mark.parametrize("weight", [1e308, -1e308])
def test_a_sum_past_the_largest_number_is_invalid(make_batch, weight: float) -> None:
    (record,) = RewardScorer([("test_loud", weight, {})]).score(make_batch(1))
    assert record.value is None and record.status is Status.INVALID and "inf, of a magnitude above" in record.reason


def test_missing_inputs_stop_the_run(make_batch) -> None:
    batch = make_batch(1)
    with pytest.raises(RewardError, match="'test_hostile': needs a row"):
        RewardScorer([("test_hostile", 1.0, {})]).score(RewardBatch(batch.source_B3HW, batch.reconstruction_B3HW))


def test_a_hang_ends_in_time_and_keeps_finished_chunks(make_batch, released) -> None:
    batch = make_batch(12)
    batch.rows[5]["fault"] = "hang"
    scorer = RewardScorer([("test_hostile", 1.0, {}), ("pixel", 1.0, {})], timeout_s=0.8, chunk_size=4)
    start = time.monotonic()
    records = scorer.score(batch)
    assert time.monotonic() - start < 1.8
    assert [record.status for record in records] == [Status.OK] * 4 + [Status.TIMEOUT] * 8
    assert all(record.reason == "test_hostile: no answer within 0.8 s" for record in records[4:])


def test_hanging_for_ever_stops_the_run(make_batch, released) -> None:
    batch = make_batch(1)
    batch.rows[0]["fault"] = "hang"
    scorer = RewardScorer([("test_hostile", 1.0, {})], timeout_s=0.02, max_abandoned=2)
    scorer.score(batch), scorer.score(batch)
    with pytest.raises(RewardError, match="'test_hostile': 3 calls still run"):
        scorer.score(batch)


def test_a_value_worse_than_the_floor_is_invalid_and_no_other_changes(make_batch) -> None:
    batch = make_batch(6)
    plain = RewardScorer([("pixel", 1.0, {}), ("test_distance", 1.0, {})]).score(batch)
    pixel, distance = (sorted(record.terms[name] for record in plain) for name in ("pixel", "test_distance"))
    specs = [TermSpec(name="pixel", floor=pixel[1]), TermSpec(name="test_distance", floor=distance[-2])]
    found = RewardScorer(specs).score(batch)
    for before, record in zip(plain, found, strict=True):
        if before.terms["pixel"] < pixel[1]:
            expected = f"pixel: {before.terms['pixel']:g} is below its floor {pixel[1]:g}"
        elif before.terms["test_distance"] > distance[-2]:
            expected = f"test_distance: {before.terms['test_distance']:g} is above its floor {distance[-2]:g}"
        else:
            assert record.ok and record.value == before.value
            continue
        assert (record.status, record.reason) == (Status.INVALID, expected)
    # The least similar picture is also the most distant one here, or they are two.
    assert 1 <= sum(not record.ok for record in found) <= 2


def test_impossible_floors_are_refused_by_key() -> None:
    for floor in (1.5, -0.1, math.nan):
        with pytest.raises(ConfigError) as error:
            check_specs([TermSpec(name="pixel", floor=floor)], [])
        assert error.value.key == "uae.reward.terms[0].floor"
    with pytest.raises(ConfigError, match="held-out term touches no"):
        check_specs([TermSpec(name="pixel")], [TermSpec(name="ssim", floor=0.5)])


FAULTS = {"raise": Status.ERROR, "drop": Status.INVALID, **dict.fromkeys(Hostile.BAD, Status.INVALID)}


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_two_thousand_hostile_outcomes(make_batch, rate: float) -> None:
    """Nothing is lost, each fault has its status, and a group without a fault keeps every bit of its advantage."""
    count, members = 2000, 8
    batch, draw = make_batch(count, size=4), random.Random(7)
    scorer = RewardScorer([("test_hostile", 1.0, {}), ("pixel", 0.5, {})])
    group = torch.arange(count) // members
    clean_records = scorer.score(batch)
    clean, _ = group_advantage(*to_tensors(clean_records), group)
    for row in batch.rows:
        if draw.random() < rate:
            row["fault"] = draw.choice(sorted(FAULTS))
    records = scorer.score(batch)
    faults = [row.get("fault") for row in batch.rows]
    assert len(records) == count
    for record, before, fault in zip(records, clean_records, faults, strict=True):
        assert record.status is FAULTS.get(fault, Status.OK)
        assert record.value == (before.value if fault is None else None)
    advantage, stats = group_advantage(*to_tensors(records), group)
    dirty = torch.tensor([fault is not None for fault in faults]).view(-1, members).any(1)[group]
    assert dirty.any() and torch.equal(advantage[~dirty], clean[~dirty]) and torch.isfinite(advantage).all()
    assert stats.invalid == sum(fault is not None for fault in faults)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One batch of drawings for captioner and decoder; the trainer as a whole is run by tests/e2e/test_unified.py."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from verl.trainer.ppo.v1 import PPOTrainerSync

from tests.samples import caption, lost, picture, scored
from verl_uae.chain.records import CAPTION_FIELD, Envelope, Outcome, Sample
from verl_uae.stages.common.supervised import GoodStep
from verl_uae.stages.u4g.step import PolicyUpdate
from verl_uae.stages.unified import trainer as unified
from verl_uae.stages.unified.trainer import Joint, UnifiedTrainer, beside_captions

#: Two pictures of two captions, each drawn three times; None has no reward.
DRAWN = [(0.1, 0.2, 0.6), (0.5, None, 0.9), (None, None, None), (None, 0.4, None)]
PICTURES = ["a", "a", "b", "b"]


class Learner:
    """The policy's ranks: what they are asked, and outcomes that were written down."""

    ranks = 1

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[Any] = []

    def plan(self, iteration: int) -> Any:
        self.asked.append(("plan", iteration))
        return SimpleNamespace(window=(2, 3))

    def explore(self, samples: Sequence[Sample], layout: Any, plan: Any, step: int) -> Any:
        self.asked.append(("explore", len(samples), layout.members, step))
        return self.outcomes, {"draw": 1.0, "score": 0.5}

    def improve(self, advantages: Sequence[float], weights: Sequence[float], first_update: int) -> list[dict]:
        self.asked.append(("improve", first_update))
        return [{"loss": 2.0, "grad_norm": 3.0}]

    def evaluate(self, samples: Sequence[Sample], probes: int) -> list[Outcome]:
        self.asked.append(("evaluate", probes, [found.caption.text for found in samples]))
        return [scored(float(found.caption.text)) for found in samples]


@pytest.fixture
def trainer(compose: Any, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    made = object.__new__(UnifiedTrainer)
    words = ["uae.unified.schedule=joint", "uae.u4g.samples_per_caption=3", "uae.u4g.updates_per_rollout=1"]
    more = ["uae.u4g.advantage.std=group", "uae.supervision.max_invalid_fraction=0.6", "uae.panel.probes=2"]
    made.config = compose(*tiny_overrides, *words, *more, name="uae_unified")
    made.schedule, made.global_steps = Joint(), 5
    made.supervisor = SimpleNamespace(boundary=lambda what: None, progress=lambda what: None)
    rows = [[{"role": "user", "content": [{"type": "image", "image": picture(0)}]}]] * 4
    columns = {"raw_prompt": rows, "extra_info": [{"index": index} for index in (7, 1, 9, 0)]}
    monkeypatch.setattr(unified, "fetch", lambda batch, fields: columns)
    return made


def extras() -> list[dict[str, Any]]:
    return [{CAPTION_FIELD: Envelope(caption(f"0.{place}"))} for place in range(4)]


def drawn() -> list[Outcome]:
    return [lost() if value is None else scored(value) for row in DRAWN for value in row]


def test_both_are_done_in_every_step() -> None:
    joint = Joint()
    assert {joint.stage(step) for step in (1, 2, 9)} == {"joint"}
    assert joint.done("g4u", 7) == joint.done("u4g", 7) == 7


def test_a_caption_has_the_mean_of_its_drawings_and_drawings_compare_within_it(trainer: Any) -> None:
    trainer.learner = Learner(drawn())
    outcomes, seconds = trainer.redraw(None, extras(), PICTURES, validating=False)
    # Step 5 of the run is the policy's fifth, counted from 0; names of noise count from 1.
    assert trainer.learner.asked == [("plan", 4), ("explore", 4, 3, 5)] and seconds["draw"] == 1.0
    # Drawings without a reward are left out of the mean, and a caption without any has none.
    assert [outcome.record.value for outcome in outcomes] == [pytest.approx(0.3), pytest.approx(0.7), None, 0.4]
    assert "gone" in outcomes[2].record.reason
    update = trainer._policy_update
    # One drawing has nothing to be compared with, though it is its caption's reward.
    assert update.weights == [1, 1, 1, 1, 0, 1, *[0] * 6] and update.first_update == 4
    expected = []
    for row in DRAWN[:2]:
        values = [value for value in row if value is not None]
        mean, std = statistics.mean(values), statistics.stdev(values) + 1e-6
        expected += [0.0 if value is None else (value - mean) / std for value in row]
    assert update.advantages == pytest.approx([*expected, *[0.0] * 6], abs=1e-4)
    assert update.metrics["reward/groups"] == 4 and update.metrics["train/window_start"] == 2


def test_terms_of_groups_compare_a_captions_drawings_and_all_of_a_picture(trainer: Any) -> None:
    """A term that says by how much a drawing is above the mean of its group."""
    asked: list[list[str]] = []

    def above(outcomes: Sequence[Outcome], members: Sequence[Sample], groups: Sequence[str]) -> list[Outcome]:
        asked.append(list(groups))
        assert [member.caption.text for member in members] == [f"0.{place}" for place in range(4) for _ in range(3)]
        found = []
        for outcome, group in zip(outcomes, groups, strict=True):
            others = [
                other.record.value
                for other, name in zip(outcomes, groups, strict=True)
                if name == group and other.record.ok
            ]
            value = None if not outcome.record.ok else outcome.record.value - statistics.mean(others)
            found.append(outcome if value is None else replace(outcome, record=replace(outcome.record, value=value)))
        return found

    trainer.learner = Learner(drawn())
    trainer.__dict__["group_rewards"] = SimpleNamespace(active=True, add=above)
    outcomes, _ = trainer.redraw(None, extras(), PICTURES, validating=False)
    assert asked == [["a"] * 6 + ["b"] * 6, [str(number // 3) for number in range(12)]]
    mean = statistics.mean([0.1, 0.2, 0.6, 0.5, 0.9])
    assert outcomes[0].record.value == pytest.approx(0.3 - mean) and outcomes[1].record.value == pytest.approx(
        0.7 - mean
    )
    assert [outcome.record.ok for outcome in outcomes] == [True, True, False, True]


def test_validation_is_by_the_ranks_that_train_and_shows_the_first_rows(trainer: Any) -> None:
    trainer.learner = Learner()
    outcomes, _ = trainer.redraw(None, extras(), PICTURES, validating=True)
    # Rows 0 and 1 of the file, wherever they are in the batch; outcomes are in the batch's order.
    assert trainer.learner.asked == [("evaluate", 2, ["0.1", "0.3", "0.0", "0.2"])]
    assert [outcome.record.value for outcome in outcomes] == [0.0, 0.1, 0.2, 0.3]


def test_the_decoder_learns_before_the_captioner_in_one_update(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two the run holds no step that could be saved, and nobody may stop it there."""
    order: list[Any] = []

    def update_actor(self: Any, batch: Any, metrics: dict) -> str:
        order.append(("captioner", self._good))
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_update_actor", update_actor)
    monkeypatch.setattr(trainer.supervisor, "boundary", lambda what: order.append(what), raising=False)
    trainer.learner = Learner()
    trainer.learner.asked = order
    trainer.timing_raw = {}
    trainer._good = GoodStep(4, {"next": 16}, {})
    trainer.train_dataloader = SimpleNamespace(state_dict=lambda: {"next": 20})
    metrics = {"reward/score/mean": 0.5, "caption/words/mean": 4.0, "train/window_start": 2.0}
    trainer._policy_update = PolicyUpdate([1.0, -1.0], [1.0, 1.0], 8, metrics, {"draw": 3.0})
    assert trainer._update_actor("batch", metrics={}) == "batch"
    assert order == ["the update of step 5", ("improve", 8), ("captioner", None)]
    assert trainer._good.number == 5 and trainer._good.loader == {"next": 20}
    found = trainer._policy_metrics
    assert found["drawing/score/mean"] == 0.5 and found["train/loss"] == 2.0 and "caption/words/mean" not in found
    assert found["train/seconds_per_picture"] == pytest.approx((3.0 + trainer.timing_raw["update_policy"]) / 2)


def test_the_captioners_timer_is_without_the_decoders(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, metrics: dict, timing_raw: dict) -> str:
        timing_raw.update({"update_actor": 5.0, "update_policy": 3.0})
        self._policy_metrics = {"drawing/groups": 16.0}
        return "batch"

    monkeypatch.setattr(PPOTrainerSync, "step", step)
    metrics, timing = dict[str, float](), dict[str, float]()
    assert trainer.step(metrics, timing) == "batch"
    assert metrics == {"unified/stage": 2.0, "drawing/groups": 16.0}
    assert timing == {"update_actor": 2.0, "update_policy": 3.0}


def test_figures_of_drawings_have_a_name_of_their_own() -> None:
    found = beside_captions({"reward/score/mean": 1.0, "caption/words/mean": 2.0, "train/reward_gap/mean": 3.0})
    assert found == {"drawing/score/mean": 1.0, "train/reward_gap/mean": 3.0}


def test_no_decoder_workers_are_placed_or_asked(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(UnifiedTrainer, "create_pools", lambda self, manager: (manager, "pool"))
    monkeypatch.setattr(UnifiedTrainer, "start_policy", lambda self, pool, steps: started.append((pool, steps)))
    trainer.resource_pool_manager = SimpleNamespace(resource_pool_dict={"global_pool": "shared"})
    trainer.total_training_steps, trainer.learner = 6, SimpleNamespace(group=SimpleNamespace(workers=["learns"]))
    assert trainer._start_workers() == [trainer.learner] and started == [("shared", 6)]
    assert trainer.decoders is None and list(trainer.decoder_ranks()) == ["learns"]


def test_the_conditioner_follows_without_decoder_workers(trainer: Any) -> None:
    trainer.config.uae.conditioner.weights = "synced"
    actor = object()
    trainer.learner = SimpleNamespace(named_ranks=lambda: iter([("learner rank 0", actor)]))
    sent: list[Any] = []

    @contextlib.contextmanager
    def phase(*_: Any) -> Iterator[None]:
        yield

    trainer.supervisor.phase = phase
    trainer._send = lambda actors: sent.append(dict(actors)) or set()
    trainer._sync()
    assert sent == [{"learner rank 0": actor}] and trainer._synced_steps == 5

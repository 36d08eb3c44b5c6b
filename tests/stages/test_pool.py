# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates of the policy: which of them train, by ranks that answer at once, and what a real worker draws of them.

The trainer as a whole is run by tests/e2e/test_u4g.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.devices import tell
from tests.estimate import world
from tests.real_size.conftest import one_rank  # noqa: F401
from tests.samples import lost, sample, scored
from verl_uae.chain.records import Outcome, Sample
from verl_uae.errors import RewardError
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.stages.common.outcomes import Losses
from verl_uae.stages.u4g import worker as worker_module
from verl_uae.stages.u4g.pool import Explored, Explorer
from verl_uae.stages.u4g.step import PolicyMixin
from verl_uae.stages.u4g.worker import Layout, preview_plan, sampling_plan

PLAN = SamplingPlan.ode(sigma_schedule(6))
SIZES = ["data.train_batch_size=4", "uae.u4g.samples_per_caption=4", "uae.u4g.updates_per_rollout=2"]


class Learner:
    """Two ranks whose pictures are worth what ``reward`` says of sample and member; previews are worth 10 times it."""

    ranks = 2

    def __init__(self, reward: Any, steps: int | None) -> None:
        self.reward, self.steps = reward, steps
        self.candidates: list[tuple[str, int]] = []
        self.drawn: list[tuple[str, int]] = []
        self.adopted: list[tuple[str, int]] = []

    def plan(self, policy_step: int) -> SamplingPlan:
        return PLAN

    def preview_plan(self) -> SamplingPlan | None:
        return None if self.steps is None else SamplingPlan.ode(sigma_schedule(self.steps))

    def draw_candidates(
        self, samples: Sequence[Sample], pictures: Sequence[tuple[int, int]], plan: Any, step: int, keep: bool
    ) -> Any:
        assert step == 4 and keep == (self.steps is None) and plan.num_steps == (self.steps or 6)
        names = [(samples[source].caption.digest, member) for source, member in pictures]
        self.candidates += names
        scale = 1.0 if keep else 10.0
        return [self._outcome(name, scale) for name in names], {"draw": 2.0, "sample": 1.0}

    def explore(self, samples: Sequence[Sample], layout: Layout, plan: Any, step: int) -> Any:
        assert step == 4 and plan is PLAN
        numbers = range(layout.sources * layout.members)
        self.drawn = [(samples[n // layout.members].caption.digest, layout.member(n)) for n in numbers]
        return [self._outcome(name) for name in self.drawn], {"draw": 5.0}

    def adopt(self, samples: Sequence[Sample], layout: Layout, plan: Any, step: int, pictures: Any) -> None:
        assert step == 4 and plan is PLAN
        self.adopted = [(samples[n // layout.members].caption.digest, member) for n, (_, member) in enumerate(pictures)]

    def _outcome(self, name: tuple[str, int], scale: float = 1.0) -> Outcome:
        value = self.reward(*name)
        return lost() if value is None else scored(scale * value)


def explored(config: Any, reward: Any, more: Any = None, complete: Any = None) -> tuple[Learner, Explored]:
    learner: Any = Learner(reward, config.uae.u4g.pool.steps)
    complete = complete or (lambda outcomes, *_: outcomes)
    explorer = Explorer(config, learner, Losses(0.5), complete, lambda outcomes, groups: list(outcomes))
    samples = [sample(seed=number) for number in range(4)]
    return learner, explorer.explore([[{"number": n}] for n in range(4)], samples, 3, more)


def composed(compose: Any, tiny_overrides: list[str], *words: str) -> Any:
    return compose(*tiny_overrides, *SIZES, *words, name="uae_u4g")


def by_number(digest: str, member: int) -> float:
    """The further down the data and the pool, the more they differ."""
    return int(digest[1:]) * 0.1 * member


def test_without_a_pool_a_batch_is_what_it_was(compose: Any, tiny_overrides: list[str]) -> None:
    learner, found = explored(composed(compose, tiny_overrides), by_number)
    assert found.layout == Layout(4, 4, 2, 2) and not learner.candidates and not learner.adopted
    assert learner.drawn == [(f"d{n // 4}", n % 4) for n in range(16)]
    assert found.groups == [str(n // 4) for n in range(16)] and found.seconds == {"draw": 5.0}
    assert found.metrics == {"train/drawn_pictures": 16.0, "train/full_drawings": 16.0}


def test_the_best_and_the_worst_previews_are_drawn_again_as_the_members_they_are(
    compose: Any, tiny_overrides: list[str]
) -> None:
    config = composed(compose, tiny_overrides, "uae.u4g.pool.size=8", "uae.u4g.pool.steps=2")
    learner, found = explored(config, by_number)
    assert learner.candidates == [(f"d{n // 8}", n % 8) for n in range(32)] and not learner.adopted
    # Of the first, whose candidates are all worth nothing, the ends as well.
    assert learner.drawn == [(f"d{source}", member) for source in range(4) for member in (0, 1, 6, 7)]
    assert found.layout.candidates == (0, 1, 6, 7) * 4
    assert [outcome.record.value for outcome in found.outcomes] == [by_number(*name) for name in learner.drawn]
    assert found.seconds == {"draw": 7.0, "sample": 1.0}
    assert found.metrics["train/drawn_pictures"] == 48
    assert found.metrics["train/full_drawings"] == pytest.approx(16 + 32 * 2 / 6)
    agreement = found.agreement(found.outcomes)
    assert agreement == {"pool/rank_agreement": pytest.approx(3 / 4)}, "the first caption has no order"
    everything = torch.tensor([[10 * by_number(f"d{s}", m) for m in range(8)] for s in range(4)], dtype=torch.float64)
    assert found.metrics["pool/score/mean"] == pytest.approx(float(everything.mean()))
    assert found.metrics["pool/group_std"] == pytest.approx(float(everything.std(1).mean()))
    ends = everything[:, [0, 1, 6, 7]].std(1)
    assert found.metrics["pool/chosen_group_std"] == pytest.approx(float(ends.mean()), rel=1e-6)
    assert found.metrics["pool/tied_groups"] == 1 and found.metrics["pool/captions_left_out"] == 0


def test_candidates_that_are_drawn_as_they_train_are_drawn_once(compose: Any, tiny_overrides: list[str]) -> None:
    learner, found = explored(composed(compose, tiny_overrides, "uae.u4g.pool.size=8"), by_number)
    assert not learner.drawn and learner.adopted == [(f"d{s}", m) for s in range(4) for m in (0, 1, 6, 7)]
    assert [outcome.record.value for outcome in found.outcomes] == [by_number(*name) for name in learner.adopted]
    assert found.metrics["train/drawn_pictures"] == found.metrics["train/full_drawings"] == 32
    assert not found.agreement(found.outcomes)


def test_the_captions_that_spread_most_are_kept(compose: Any, tiny_overrides: list[str]) -> None:
    config = composed(compose, tiny_overrides, "uae.u4g.pool.keep_captions=2", "uae.u4g.pool.steps=1")
    learner, found = explored(config, by_number)
    assert learner.drawn == [(f"d{s}", m) for s in (2, 3) for m in range(4)]
    assert found.layout == Layout(2, 4, 2, 2, tuple(range(4)) * 2)
    assert [prompt[0]["number"] for prompt in found.prompts] == [2, 3]  # type: ignore[index]
    assert [one.caption.digest for one in found.samples] == ["d2", "d3"]
    assert found.metrics["pool/captions_left_out"] == 2 and found.metrics["train/drawn_pictures"] == 24


@pytest.mark.parametrize("steps", ["2", "null"], ids=["previews", "drawn once"])
def test_terms_of_groups_choose_candidates_and_are_not_in_what_is_chosen(
    compose: Any, tiny_overrides: list[str], steps: str
) -> None:
    """A term that turns the order around the middle: the ends are in the middle then. Those that train are compared
    among themselves, once they are known."""
    config = composed(compose, tiny_overrides, "uae.u4g.pool.size=8", f"uae.u4g.pool.steps={steps}")
    asked: list[list[str]] = []

    def turned(outcomes: Any, samples: Any, groups: Any, seconds: dict[str, float]) -> list[Outcome]:
        asked.append(list(groups))
        assert [f"d{group}" for group in groups] == [one.caption.digest for one in samples]
        seconds["score"] = 0.25
        values = [float(one.record.value) for one in outcomes]
        middles = {g: statistics.mean(v for v, of in zip(values, groups, strict=True) if of == g) for g in set(groups)}
        return [scored(-abs(value - middles[group])) for value, group in zip(values, groups, strict=True)]

    learner, found = explored(config, by_number, complete=turned)
    assert asked == [[str(number // 8) for number in range(32)]], "only candidates are compared here"
    # Of 0 to 7 the nearest to the middle are 3 and 4, the furthest 0 and 7.
    chosen = learner.adopted if steps == "null" else learner.drawn
    assert chosen[4:] == [(f"d{source}", member) for source in (1, 2, 3) for member in (0, 3, 4, 7)]
    assert [one.record.value for one in found.outcomes] == [by_number(*name) for name in chosen]
    assert found.seconds["score"] == 0.25
    agreement = found.agreement(turned(found.outcomes, found.members, found.groups, {}))
    assert agreement == ({} if steps == "null" else {"pool/rank_agreement": pytest.approx(3 / 4 * 4 / 6)})


def test_a_broken_chain_ends_the_run_before_anything_is_chosen(compose: Any, tiny_overrides: list[str]) -> None:
    config = composed(compose, tiny_overrides, "uae.u4g.pool.size=8", "uae.u4g.pool.steps=2")
    with pytest.raises(RewardError, match="20 of 32 samples have no reward"):
        explored(config, lambda digest, member: None if member > 2 else by_number(digest, member))


def test_what_has_no_reward_is_not_chosen(compose: Any, tiny_overrides: list[str]) -> None:
    config = composed(compose, tiny_overrides, "uae.u4g.pool.size=8", "uae.u4g.pool.steps=2")
    learner, _ = explored(config, lambda digest, member: None if member == 7 else by_number(digest, member))
    assert learner.drawn[-4:] == [("d3", 0), ("d3", 1), ("d3", 5), ("d3", 6)]


class Data:
    """Further pictures, numbered on; ``tied`` of each batch are worth the same whatever the member."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self) -> Any:
        self.batches += 1
        numbers = range(4 * self.batches, 4 * self.batches + 4)
        return [[{"number": n}] for n in numbers], [sample(seed=n) for n in numbers]


def tied_but(*numbers: int) -> Any:
    return lambda digest, member: by_number(digest, member) if int(digest[1:]) in numbers else 0.5


@pytest.mark.parametrize(
    ("signal", "batches", "kept"),
    [
        ((0, 1, 2, 3), 0, [0, 1, 2, 3]),
        ((1, 2, 3, 4, 5, 6, 7), 1, [1, 2, 3, 4]),
        ((1, 6, 9, 10, 11), 2, [1, 6, 9, 10]),
        ((1, 6), 2, [0, 1, 2, 6]),
    ],
    ids=["none", "one batch", "two batches", "not enough"],
)
def test_tied_groups_are_replaced_by_the_next_captions_of_the_data(
    compose: Any, tiny_overrides: list[str], signal: tuple[int, ...], batches: int, kept: list[int]
) -> None:
    """The oldest first; a number worth 0 for all members is tied too, so 0 is."""
    words = ["uae.u4g.ties=refill", "uae.u4g.refill_batches=2", "uae.u4g.advantage.min_std=1e-4"]
    config, data = composed(compose, tiny_overrides, *words), Data()
    reward = tied_but(*signal)
    of_first = lambda digest, member: member if digest == "d0" and 0 in signal else reward(digest, member)  # noqa: E731
    learner, found = explored(config, of_first, data)
    assert data.batches == batches == found.metrics["pool/refill_batches"]
    assert [one.caption.digest for one in found.samples] == [f"d{number}" for number in kept]
    assert learner.adopted == [(f"d{number}", member) for number in kept for member in range(4)]
    assert found.metrics["train/drawn_pictures"] == 16 * (1 + batches)
    assert len(found.prompts) == 4 and found.layout.sources == 4


def test_chance_chooses_by_name_alone(compose: Any, tiny_overrides: list[str]) -> None:
    """The same whatever came before, so also after a resume; others at another step and of another picture."""
    words = ["uae.u4g.pool.size=16", "uae.u4g.pool.steps=2", "uae.u4g.pool.choose=random"]
    first, again = (explored(composed(compose, tiny_overrides, *words), by_number)[0].drawn for _ in range(2))
    assert first == again
    members = [[member for _, member in first[4 * source : 4 * source + 4]] for source in range(4)]
    assert len({tuple(some) for some in members}) > 1


@pytest.mark.parametrize("ties", ["keep", "skip", "refill"])
def test_tied_groups_do_not_train_where_they_are_skipped(compose: Any, tiny_overrides: list[str], ties: str) -> None:
    mixin: Any = object.__new__(PolicyMixin)
    mixin.config = composed(compose, tiny_overrides, f"uae.u4g.ties={ties}")
    outcomes, groups = [scored(0.1), scored(0.3), scored(0.2), scored(0.2), lost()], ["a", "a", "b", "b", "b"]
    usable = [True, True, True, True, False]
    advantage, metrics = mixin._advantages(outcomes, usable, groups)
    weights = mixin._weights(usable, advantage, groups, metrics)
    assert weights == ([1.0] * 4 + [0.0] if ties == "keep" else [1.0, 1.0, 0.0, 0.0, 0.0])
    assert metrics.get("train/skipped_groups") == (None if ties == "keep" else 1.0)


# ------------------------------------------------------------ a real worker

WORDS = [
    "uae.u4g.samples_per_caption=4",
    "uae.u4g.updates_per_rollout=1",
    "uae.u4g.num_steps=6",
    "uae.u4g.window.size=2",
    "uae.train.micro_batch_size=2",
    "uae.u4g.captions.source=column",
    "uae.decoder.height=32",
    "uae.decoder.width=32",
    "uae.conditioner.length=20",
    "uae.train.lora.rank=2",
    "data.train_batch_size=2",
]
SAMPLES = [sample(seed=0), sample("a blue square on a green circle", seed=1)]
#: Of eight candidates each.
CHOSEN = (1, 2, 5, 6, 0, 3, 4, 7)
PICTURES = [(number // 4, member) for number, member in enumerate(CHOSEN)]
ALL = [(source, member) for source in range(2) for member in range(8)]


@pytest.fixture
def made(tiny_models: Path, one_rank: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: F811
    """A worker whose decoder draws more than noise, and its command."""
    tell(monkeypatch, "cpu")
    asked = world.asked("u4g", tiny_models, *WORDS, "uae.u4g.pool.size=8", "uae.u4g.pool.steps=2")

    def build() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            worker = world.policy_worker(asked)
            for weight in worker.engine.module.transformer.proj_out.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        return worker

    yield SimpleNamespace(build=build, config=asked.config)


def plan_of(made: Any, worker: Any) -> SamplingPlan:
    plan = sampling_plan(made.config, worker.family, 0)
    assert len(plan.window) == 2
    return plan


@pytest.mark.parametrize("how", ["redrawn", "adopted"])
def test_a_chosen_picture_is_bit_for_bit_that_of_a_batch_without_a_pool(made: Any, how: str) -> None:
    worker = made.build()
    plan = plan_of(made, worker)
    outcomes, _ = worker.explore(SAMPLES, Layout(2, 8, 1, 1), plan.to_dict(), 5)
    whole = worker._rollout
    layout = Layout(2, 4, 1, 1, CHOSEN)
    if how == "redrawn":
        preview = preview_plan(made.config, worker.family)
        assert preview is not None and preview.num_steps == 2 and not preview.window
        previews, _ = worker.draw_candidates(SAMPLES, ALL, preview.to_dict(), 5, False)
        assert [one.record.value for one in previews] != [one.record.value for one in outcomes]
        again, _ = worker.explore(SAMPLES, layout, plan.to_dict(), 5)
        assert not worker._candidates and not worker._rollout.regrouped
    else:
        candidates, _ = worker.draw_candidates(SAMPLES, ALL, plan.to_dict(), 5, True)
        assert len(worker._candidates) == 16
        worker.adopt(SAMPLES, layout, plan.to_dict(), 5, PICTURES)
        again = [candidates[8 * source + member] for source, member in PICTURES]
        assert not worker._candidates and worker._rollout.regrouped
    rows = [8 * source + member for source, member in PICTURES]
    assert [one.record.value for one in again] == [outcomes[row].record.value for row in rows]
    for name in ("final_BCHW", "x_BKCHW", "x_next_BKCHW", "mean_BKCHW", "log_prob_BK"):
        assert torch.equal(getattr(worker._rollout.trajectory, name), getattr(whole.trajectory, name)[rows]), name
    different = whole.trajectory.final_BCHW[rows].flatten(1)
    assert torch.pdist(different).min() > 0.1


def test_the_ratio_starts_at_one_on_candidates(made: Any) -> None:
    """In two updates: the second one's old values are computed before the first."""
    worker = made.build()
    plan = plan_of(made, worker)
    worker.draw_candidates(SAMPLES, ALL, plan.to_dict(), 5, True)
    worker.adopt(SAMPLES, Layout(2, 4, 2, 1, CHOSEN), plan.to_dict(), 5, PICTURES)
    updates = worker.improve([1.0, -1.0, 0.5, -0.5] * 2, [1.0] * 8, 0)
    assert updates[0]["ratio/max"] == updates[0]["ratio/min"] == [1.0] and updates[0]["valid"] == [4.0]
    assert 0 <= updates[1]["sampler_log_prob_difference/max"] < 1e-6


def test_a_shared_prefix_is_drawn_and_trained_once_and_the_ratio_stays_one(made: Any) -> None:
    """In two updates of two members of two captions; then with captions that are the same picture and text."""
    worker = made.build()
    plan, layout = plan_of(made, worker), Layout(2, 4, 2, 1)
    worker.run.uae.u4g.share_noise = True
    apart, _ = worker.explore(SAMPLES, layout, plan.to_dict(), 5)
    worker.run.uae.u4g.shared_prefix = True
    once, _ = worker.explore(SAMPLES, layout, plan.to_dict(), 5)
    for one, other in zip(once, apart, strict=True):
        assert one.record.value == pytest.approx(other.record.value, abs=1e-5)
    rows: list[int] = []
    hook = worker.engine.module.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    first, _ = worker.improve([1.0, -1.0, 0.5, -0.5] * 2, [1.0] * 8, 0)
    hook.remove()
    assert rows == [1, 2] * 4, "micro-batches of two members of one caption, by two steps"
    assert first["ratio/max"] == first["ratio/min"] == [1.0] and first["grad_norm"] > 0
    worker.explore([SAMPLES[0], SAMPLES[0]], Layout(2, 2, 1, 1), plan.to_dict(), 6)
    (same,) = worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 2)
    assert same["ratio/max"] == same["ratio/min"] == [1.0]


@pytest.mark.parametrize(
    ("kept", "sends"), [((1, 2), [[], [(1, 3), (1, 4)]]), ((0, 1), [[(1, 0), (1, 1)], []])], ids=["down", "up"]
)
def test_two_ranks_draw_as_much_and_send_each_other_what_they_train(
    made: Any, monkeypatch: pytest.MonkeyPatch, kept: tuple[int, int], sends: list[list[tuple[int, int]]]
) -> None:
    """Fifteen candidates of three captions in micro-batches of two: each rank draws eight, one of them a filler, and
    the middle caption has candidates on both."""
    samples = [*SAMPLES, sample("two red circles", seed=2)]
    everything = [(source, member) for source in range(3) for member in range(5)]
    members = (0, 1, 3, 4, 0, 1, 3, 4)
    pictures = [(kept[number // 4], member) for number, member in enumerate(members)]
    trained = [samples[source] for source in kept]
    alone = made.build()
    plan = plan_of(made, alone)
    alone.draw_candidates(samples, everything, plan.to_dict(), 5, True)
    alone.adopt(trained, Layout(2, 4, 1, 1, members), plan.to_dict(), 5, pictures)
    layout, workers, outcomes = Layout(2, 4, 1, 2, members), [made.build(), made.build()], []
    drawn: list[int] = []
    for rank, worker in enumerate(workers):
        worker.__class__ = type("Ranked", (type(worker),), {"rank": rank, "world_size": 2})
        draw = worker.painter.draw
        worker.painter.draw = lambda field, plan, draws, draw=draw, **more: (
            drawn.append(len(draws)) or draw(field, plan, draws, **more)
        )
        outcomes.append(worker.draw_candidates(samples, everything, plan.to_dict(), 5, True)[0])
    assert drawn == [8, 8] and [len(found) for found in outcomes] == [8, 7]
    sent: list[dict[Any, Any]] = []

    def stop(mine: dict[Any, Any]) -> Any:
        sent.append(mine)
        raise InterruptedError

    monkeypatch.setattr(worker_module, "of_all_ranks", stop)
    for worker in workers:
        own = worker._candidates
        with pytest.raises(InterruptedError):
            worker.adopt(trained, layout, plan.to_dict(), 5, pictures)
        worker._candidates = own
    assert [sorted(of_rank) for of_rank in sent] == sends
    assert all(part.final_BCHW.untyped_storage().nbytes() == part.final_BCHW.nbytes for _, part in _values(sent))
    monkeypatch.setattr(worker_module, "of_all_ranks", lambda mine: sent)
    for rank, worker in enumerate(workers):
        worker.adopt(trained, layout, plan.to_dict(), 5, pictures)
        whole, part, rows = alone._rollout, worker._rollout, layout.of_rank(rank)
        assert torch.equal(part.trajectory.x_next_BKCHW, whole.trajectory.x_next_BKCHW[rows])
        assert [c.lengths for c in part.conditions] == [whole.conditions[row].lengths for row in rows]


def _values(sent: list[dict[Any, Any]]) -> list[Any]:
    return [row for of_rank in sent for row in of_rank.values()]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A batch of the policy as it trains: drawn as it is, or chosen among candidates (``uae.u4g.pool``, ``uae.u4g.ties``).

Candidates are numbered within their caption, and their numbers name their noise. So the ones that are chosen are, drawn
again, the pictures that they would have been in a batch without a pool, and nothing of a choice outlives its step.

Shape legend: M candidates of a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig

from verl_uae.chain.records import Outcome, Sample
from verl_uae.flow.advantage import is_tied
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.pool import choose_groups, choose_members, rank_agreement
from verl_uae.reward.record import to_tensors
from verl_uae.seeding import generator
from verl_uae.stages.common.captions import Messages
from verl_uae.stages.common.outcomes import Losses
from verl_uae.stages.u4g.config import chooses, pool_size, trained_captions
from verl_uae.stages.u4g.group import PolicyGroup
from verl_uae.stages.u4g.worker import Layout

#: The next pictures of the data, with captions.
More = Callable[[], tuple[Sequence[Messages], Sequence[Sample]]]
#: Outcomes with groupwise terms too, given outcomes, the sample of each, the group of each, and seconds to add to.
Complete = Callable[[list[Outcome], Sequence[Sample], Sequence[str], dict[str, float]], list[Outcome]]
#: Outcomes with the values that they are compared by, given outcomes and the group of each.
Compared = Callable[[Sequence[Outcome], Sequence[str]], list[Outcome]]


@dataclass(frozen=True, slots=True)
class Explored:
    """A batch as it trains, drawn and scored."""

    prompts: Sequence[Messages]
    samples: Sequence[Sample]
    """One per prompt."""
    layout: Layout
    plan: SamplingPlan
    policy_step: int
    """Number of the policy's step in the run, from 0."""
    outcomes: list[Outcome]
    """By number of the layout, without groupwise terms."""
    seconds: dict[str, float]
    """Of the slowest rank by phase, of all that was drawn."""
    metrics: dict[str, float]
    previews: Sequence[Outcome] = ()
    """Those that these were chosen by, by number of the layout, with groupwise terms; none where there were none."""

    @property
    def members(self) -> list[Sample]:
        """What each picture was drawn from."""
        return [sample for sample in self.samples for _ in range(self.layout.members)]

    @property
    def groups(self) -> list[str]:
        """Group of each picture: the drawings of a caption."""
        return [str(number // self.layout.members) for number in range(len(self.outcomes))]

    def agreement(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """``pool/rank_agreement``: how previews and pictures rank the chosen ones of a caption, mean over the captions;
        empty without previews.

        Args:
            outcomes: of the pictures, with groupwise terms.
        """
        if not self.previews:
            return {}
        found, size = [], self.layout.members
        for first in range(0, len(outcomes), size):
            pairs = zip(self.previews[first : first + size], outcomes[first : first + size], strict=True)
            both = [pair for pair in pairs if all(outcome.record.ok for outcome in pair)]
            if len(both) > 1:
                found.append(rank_agreement(*(_rewards(side) for side in zip(*both, strict=True))))
        return {"pool/rank_agreement": sum(found) / max(1, len(found))}


@dataclass
class _Candidates:
    """Of all captions that were drawn so far."""

    size: int
    """M."""
    prompts: list[Messages] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """M of each sample, with groupwise terms."""
    chosen: list[tuple[int, ...]] = field(default_factory=list)
    """Members of each sample."""
    alone: list[list[Outcome]] = field(default_factory=list)
    """Outcomes of those without groupwise terms, of each sample."""
    spreads: list[float] = field(default_factory=list)
    """Standard deviation of the rewards of those, of each sample."""
    ties: list[bool] = field(default_factory=list)
    """Whether they are no signal."""

    def of(self, source: int) -> list[Outcome]:
        """Outcomes of a sample."""
        return self.outcomes[source * self.size : (source + 1) * self.size]


class Explorer:
    """Draws batches of the policy.

    Args:
        config: the whole composed configuration.
        learner: the policy's ranks.
        losses: told what has no reward.
        complete: see there.
        compared: see there.
    """

    def __init__(
        self, config: DictConfig, learner: PolicyGroup, losses: Losses, complete: Complete, compared: Compared
    ) -> None:
        self.config = config
        self.u4g = config.uae.u4g
        self.learner = learner
        self.losses = losses
        self._complete = complete
        self._compared = compared

    def explore(
        self, prompts: Sequence[Messages], samples: Sequence[Sample], policy_step: int, more: More | None = None
    ) -> Explored:
        """The pictures that train, on the ranks that train them, with their rewards.

        Args:
            prompts: of the captioner.
            samples: pictures with captions.
            policy_step: number of the policy's step in the run, from 0.
            more: asked for pictures where groups are tied and are to be replaced.

        Raises:
            RewardError: too few pictures have a reward.
        """
        plan = self.learner.plan(policy_step)
        if not chooses(self.config):
            return self._drawn(prompts, samples, plan, policy_step)
        preview = self.learner.preview_plan()
        pool, seconds, refills = self._candidates(prompts, samples, preview or plan, policy_step, more, preview is None)
        kept = choose_groups(
            pool.spreads, pool.ties, trained_captions(self.config), widest=self.u4g.pool.keep_captions is not None
        )
        prompts, samples = [pool.prompts[source] for source in kept], [pool.samples[source] for source in kept]
        pictures = [(source, member) for source in kept for member in pool.chosen[source]]
        members = tuple(member for _, member in pictures)
        if preview is None:
            layout = self._layout(len(samples), members)
            outcomes = [outcome for source in kept for outcome in pool.alone[source]]
            self.learner.adopt(samples, layout, plan, policy_step + 1, pictures)
            explored = Explored(prompts, samples, layout, plan, policy_step, outcomes, {}, _cost(0, 0.0))
        else:
            previews = [pool.of(source)[member] for source, member in pictures]
            explored = self._drawn(prompts, samples, plan, policy_step, members, previews)
        share = 1.0 if preview is None else preview.num_steps / plan.num_steps
        _add(explored.metrics, _cost(len(pool.outcomes), share))
        explored.metrics.update(_pool_metrics(pool, kept), **{"pool/refill_batches": float(refills)})
        _add(explored.seconds, seconds)
        return explored

    def _layout(self, sources: int, members: tuple[int, ...]) -> Layout:
        return Layout(sources, self.u4g.samples_per_caption, self.u4g.updates_per_rollout, self.learner.ranks, members)

    def _drawn(
        self,
        prompts: Sequence[Messages],
        samples: Sequence[Sample],
        plan: SamplingPlan,
        policy_step: int,
        members: tuple[int, ...] = (),
        previews: Sequence[Outcome] = (),
    ) -> Explored:
        """Draw what trains."""
        layout = self._layout(len(samples), members)
        outcomes, seconds = self.learner.explore(samples, layout, plan, policy_step + 1)
        self.losses.check(outcomes)
        cost = _cost(len(outcomes), 1.0)
        return Explored(prompts, samples, layout, plan, policy_step, outcomes, seconds, cost, previews)

    def _candidates(
        self,
        prompts: Sequence[Messages],
        samples: Sequence[Sample],
        plan: SamplingPlan,
        policy_step: int,
        more: More | None,
        keep: bool,
    ) -> tuple[_Candidates, dict[str, float], int]:
        """Candidates of a batch, and of further ones as long as too few groups are a signal and these are to be
        replaced; seconds by phase, and the number of further batches."""
        pool, wanted = _Candidates(pool_size(self.config)), trained_captions(self.config)
        seconds: dict[str, float] = {}
        allowed = int(self.u4g.refill_batches) if self.u4g.ties == "refill" and more is not None else 0
        for refills in range(allowed + 1):
            if refills:
                assert more is not None
                prompts, samples = more()
            first = len(pool.samples)
            pool.prompts += prompts
            pool.samples += samples
            pictures = [(source, member) for source in range(first, len(pool.samples)) for member in range(pool.size)]
            found, spent = self.learner.draw_candidates(pool.samples, pictures, plan, policy_step + 1, keep)
            self.losses.check(found)
            groups = [str(source) for source, _ in pictures]
            pool.outcomes += self._complete(found, [pool.samples[source] for source, _ in pictures], groups, spent)
            self._choose(pool, first, policy_step + 1)
            if keep:
                starts = range(0, len(found), pool.size)
                chosen = zip(starts, pool.chosen[first:], strict=True)
                pool.alone += [[found[start + member] for member in members] for start, members in chosen]
            _add(seconds, spent)
            if pool.ties.count(False) >= wanted:
                break
        return pool, seconds, refills

    def _choose(self, pool: _Candidates, first: int, step: int) -> None:
        """Choose among the candidates of the samples from ``first`` on."""
        numbers = range(first, len(pool.samples))
        groups = [str(source) for source in numbers for _ in range(pool.size)]
        compared = self._compared(pool.outcomes[first * pool.size :], groups)
        for place, source in enumerate(numbers):
            records = [outcome.record for outcome in compared[place * pool.size : (place + 1) * pool.size]]
            reward_M, valid_M = to_tensors(records)
            name = (self.config.uae.seed, "u4g pool", step, pool.samples[source].caption.digest)
            count, how = int(self.u4g.samples_per_caption), self.u4g.pool.choose
            members = choose_members(reward_M, valid_M, count, how, generator(*name))
            rewards = reward_M[[member for member in members if valid_M[member]]]
            tied = len(rewards) < 2 or is_tied(rewards, self.u4g.advantage.min_std)
            pool.chosen.append(members)
            pool.ties.append(tied)
            pool.spreads.append(float(rewards.std()) if len(rewards) > 1 else 0.0)


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Sums by name, in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def _cost(pictures: int, share: float) -> dict[str, float]:
    """What was drawn, each picture by this share of the training sampler's steps."""
    return {"train/drawn_pictures": float(pictures), "train/full_drawings": pictures * share}


def _rewards(outcomes: Sequence[Outcome]) -> torch.Tensor:
    """Of those that have one, fp64."""
    values = [outcome.record.value for outcome in outcomes if outcome.record.value is not None]
    return torch.tensor(values, dtype=torch.float64)


def _pool_metrics(pool: _Candidates, kept: Sequence[int]) -> dict[str, Any]:
    rewards = _rewards(pool.outcomes)
    spreads = [float(_rewards(pool.of(source)).std()) for source in kept if len(_rewards(pool.of(source))) > 1]
    return {
        "pool/score/mean": float(rewards.mean()),
        "pool/score/std": float(rewards.std(correction=0)),
        "pool/group_std": sum(spreads) / max(1, len(spreads)),
        "pool/chosen_group_std": sum(pool.spreads[source] for source in kept) / len(kept),
        "pool/captions_left_out": float(len(pool.samples) - len(kept)),
        "pool/tied_groups": float(sum(pool.ties)),
    }

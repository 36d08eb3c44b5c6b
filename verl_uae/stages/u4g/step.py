# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One step of the decoder policy, and its validation: what stage u4g and the unified stage share.

Shape legend: N samples.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from verl.single_controller.ray import RayResourcePool
from verl.utils.debug import marked_timer

from verl_uae.chain.records import Caption, Outcome, Sample, prompt_name, prompt_text
from verl_uae.checkpoints.record import DecoderCheckpoints
from verl_uae.engines.update_metrics import update_metrics
from verl_uae.errors import DataError
from verl_uae.flow.advantage import group_advantage
from verl_uae.reward.record import to_tensors
from verl_uae.stages.common.captions import CaptionCache, Messages, column_caption
from verl_uae.stages.common.outcomes import outcome_metrics, usable_members
from verl_uae.stages.common.signals import RewardSignals
from verl_uae.stages.common.supervised import SupervisedTrainer
from verl_uae.stages.u4g.group import PolicyGroup
from verl_uae.stages.u4g.pool import Explored, Explorer, More
from verl_uae.stages.u4g.servers import CaptionServers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """What an update of the policy takes beside the trajectories, which are on the ranks."""

    advantages: list[float]
    """By picture number."""
    weights: list[float]
    """1 for pictures that train, 0 for the others."""
    first_update: int
    """Updates of the policy before this batch."""
    metrics: dict[str, float]
    seconds: dict[str, float]
    """Of drawing and scoring, of the slowest rank by phase."""


class PolicyMixin(RewardSignals, DecoderCheckpoints, SupervisedTrainer):
    """Starts the policy's workers and runs its steps."""

    config: DictConfig
    global_steps: int
    _dump_generations: Callable[..., None]
    """verl's."""
    servers: CaptionServers | None = None
    """What writes captions in place of the policy's ranks."""
    _generations: list[dict[str, Any]]
    """Rows of the last batch, see :func:`~verl_uae.stages.u4g.step.generation_rows`."""

    def start_policy(self, pool: RayResourcePool, total_steps: int) -> None:
        """Start the workers beside whatever else loads; ``learner.wait_until_loaded()`` waits for them."""
        self.learner = PolicyGroup(self.config, pool, total_steps)
        self.captions = CaptionCache(self.config.uae.u4g.captions.cache_size)

    def frozen_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of stage u4g: from the dataset's column, or of the frozen captioner, once per image."""
        if self.config.uae.u4g.captions.source == "column":
            return [column_caption(prompt, info) for prompt, info in zip(prompts, infos, strict=True)]
        names = [kept_name(prompt, info) for prompt, info in zip(prompts, infos, strict=True)]
        kept = {name: self.captions.get(name) for name in names}
        missing = [position for position, name in enumerate(names) if kept[name] is None]
        if missing:
            written = (self.servers or self.learner).write_captions(
                [prompts[position] for position in missing], [infos[position] for position in missing]
            )
            for position, caption in zip(missing, written, strict=True):
                self.captions.put(names[position], caption)
                kept[names[position]] = caption
        return [caption for caption in (kept[name] for name in names) if caption is not None]

    def improve_policy(
        self, prompts: Sequence[Messages], samples: Sequence[Sample], policy_step: int, more: More | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Explore, score and update on one batch of pictures.

        Args:
            prompts: of the captioner, for the files of rollouts.
            samples: pictures with captions.
            policy_step: number of the policy's step in the run, from 0.
            more: the next pictures of the data, where tied groups may be replaced.

        Returns:
            metrics, and seconds by phase.

        Raises:
            RewardError: too few pictures have a reward.
        """
        update = self.judge_policy(self.explore_policy(prompts, samples, policy_step, more))
        found, seconds = self.update_policy(update)
        return {**update.metrics, **found}, {**update.seconds, **seconds}

    def explore_policy(
        self, prompts: Sequence[Messages], samples: Sequence[Sample], policy_step: int, more: More | None = None
    ) -> Explored:
        """Draw and score; see :meth:`improve_policy`."""
        compared = functools.partial(self.signals("u4g").recompose, remember=False)
        explorer = Explorer(self.config, self.learner, self.losses, self.compare, compared)
        return explorer.explore(prompts, samples, policy_step, more)

    def judge_policy(self, explored: Explored) -> PolicyUpdate:
        """Advantages of a batch within the drawings of each caption, and its metrics; see :meth:`improve_policy`."""
        samples, layout, plan, groups = explored.samples, explored.layout, explored.plan, explored.groups
        drawn = self.compare(explored.outcomes, explored.members, groups, explored.seconds)
        signals = self.signals("u4g")
        outcomes = signals.recompose(drawn, groups)
        self._generations = generation_rows(explored.prompts, samples, outcomes, layout.candidates)
        usable = usable_members(outcomes, groups)
        advantage_N, metrics = self._advantages(outcomes, usable, groups)
        metrics.update({**explored.metrics, **explored.agreement(drawn)})
        weights = self._weights(usable, advantage_N, groups, metrics)
        captions, min_std = [sample.caption for sample in samples], self.config.uae.u4g.advantage.min_std
        metrics.update(outcome_metrics(outcomes, captions, groups, min_std=min_std))
        metrics.update(signals.metrics(drawn, metrics))
        metrics["train/window_start"] = float(plan.window[0]) if plan.window else -1.0
        first_update = explored.policy_step * layout.updates
        return PolicyUpdate(advantage_N.tolist(), weights, first_update, metrics, explored.seconds)

    def compare(
        self,
        outcomes: list[Outcome],
        samples: Sequence[Sample],
        groups: Sequence[str],
        seconds: dict[str, float],
    ) -> list[Outcome]:
        """Outcomes with the terms that compare the pictures of a group, if there are any.

        Args:
            outcomes: without these terms.
            samples: what each was drawn from.
            groups: group of each.
            seconds: by phase; what it takes is added.

        Raises:
            RewardError: too few pictures have a reward then.
        """
        if not self.group_rewards.active:
            return outcomes
        with marked_timer("score", seconds), marked_timer("draw", seconds):
            outcomes = self.group_rewards.add(outcomes, samples, groups)
        self.losses.check(outcomes)
        return outcomes

    def update_policy(self, update: PolicyUpdate) -> tuple[dict[str, float], dict[str, float]]:
        """Update on the batch drawn last; metrics and seconds, see :meth:`improve_policy`."""
        seconds: dict[str, float] = {}
        with marked_timer("update_policy", seconds), self.updating():
            updates = self.learner.improve(update.advantages, update.weights, update.first_update)
        spent = update.seconds["draw"] + seconds["update_policy"]
        return {**update_metrics(updates), "train/seconds_per_picture": spent / len(update.weights)}, seconds

    def _weights(
        self, usable: Sequence[bool], advantage_N: torch.Tensor, groups: Sequence[str], metrics: dict[str, float]
    ) -> list[float]:
        """1 for what trains and 0 for the rest; a group that is no signal has advantages of 0."""
        if self.config.uae.u4g.ties == "keep":
            return [float(keep) for keep in usable]
        signal = {group for group, advantage in zip(groups, advantage_N.tolist(), strict=True) if advantage != 0.0}
        metrics["train/skipped_groups"] = float(len(set(groups) - signal))
        return [float(keep and group in signal) for keep, group in zip(usable, groups, strict=True)]

    def _advantages(
        self, outcomes: Sequence[Outcome], usable: Sequence[bool], groups: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        settings = self.config.uae.u4g.advantage
        reward_N, _ = to_tensors([outcome.record for outcome in outcomes])
        raw_N, _ = group_advantage(
            reward_N, torch.tensor(usable), list(groups), min_std=settings.min_std, std=settings.std
        )
        advantage_N = raw_N if settings.clamp is None else raw_N.clamp(-settings.clamp, settings.clamp)
        return advantage_N, {
            "train/advantage/abs_max": float(raw_N.abs().max()),
            "train/advantage/clamped_frac": float((raw_N != advantage_N).float().mean()),
        }

    def log_reconstructions(self, timing_raw: dict, folder: str) -> None:
        """Write what the last batch drew, as verl writes rollouts."""
        with marked_timer("dump_rollout_generations", timing_raw):
            self._dump_generations(**dump_arguments(self._generations), dump_path=folder)

    def evaluate_policy(
        self, samples: Sequence[Sample], policy_step: int, probes: int
    ) -> tuple[list[Outcome], list[bytes | None]]:
        """Outcomes of the evaluation sampler, and pictures of the training sampler for the first ``probes``."""
        probes = min(probes, len(samples))
        outcomes = self.learner.evaluate(samples, probes)
        explored: list[bytes | None] = [None] * len(samples)
        plan = self.learner.plan(policy_step)
        if probes and plan.window:
            explored[:probes] = [outcome.picture for outcome in self.learner.evaluate(samples[:probes], probes, plan)]
        return outcomes, explored


def kept_name(prompt: Messages, info: Mapping[str, Any]) -> Any:
    """What the caption of a prompt is kept under; None where a picture of it is damaged."""
    try:
        return prompt_name(prompt, info)
    except DataError:
        # Its caption fails, and failed ones are not kept.
        return None


def generation_rows(
    prompts: Sequence[Messages],
    samples: Sequence[Sample],
    outcomes: Sequence[Outcome],
    candidates: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
        prompts: of the captioner.
        samples: pictures with captions, one per prompt.
        outcomes: of equally many reconstructions of each sample, sample by sample.
        candidates: member of each, where they were chosen.
    """
    members = len(outcomes) // max(1, len(samples))
    rows = []
    for number, outcome in enumerate(outcomes):
        sample, record = samples[number // members], outcome.record
        rows.append(
            {
                "input": "\n".join(text.replace("\x1f", " ") for _, text in prompt_text(prompts[number // members])),
                "output": sample.caption.text,
                "gts": sample.row.get("ground_truth"),
                # A missing reward is not 0.
                "score": record.value,
                "digest": sample.caption.digest,
                "member": candidates[number] if candidates else number % members,
                "status": str(record.status),
                "reason": record.reason or "",
                **{f"term_{name}": value for name, value in record.terms.items()},
            }
        )
    return rows


def dump_arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of verl's ``_dump_generations``, but for the folder; a term that a row lacks is null there."""
    first = ("input", "output", "gts", "score")
    names = dict.fromkeys(name for row in rows for name in row if name not in first)
    return {
        "inputs": [row["input"] for row in rows],
        "outputs": [row["output"] for row in rows],
        "gts": [row["gts"] for row in rows],
        "scores": [row["score"] for row in rows],
        "reward_extra_infos_dict": {name: [row.get(name) for row in rows] for name in names},
    }

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""All ranks of the decoder policy, as the trainer calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from omegaconf import DictConfig
from verl.single_controller.ray import RayResourcePool

from verl_uae.chain.records import Caption, Outcome, Sample
from verl_uae.flow.plan import SamplingPlan
from verl_uae.stages.common.captions import Messages
from verl_uae.stages.common.group import DecoderTrainingGroup, interleave
from verl_uae.stages.u4g.worker import DecoderPolicyWorker, Layout, preview_plan, sampling_plan


class PolicyGroup(DecoderTrainingGroup):
    """All ranks of the decoder policy.

    Args:
        config: the whole composed configuration.
        pool: verl resource pool the ranks live in.
        total_steps: policy steps of the run.
    """

    def __init__(self, config: DictConfig, pool: RayResourcePool, total_steps: int) -> None:
        super().__init__(DecoderPolicyWorker, config, pool, total_steps)

    def plan(self, iteration: int) -> SamplingPlan:
        """The sampling plan of a policy batch, counted from 0."""
        return sampling_plan(self.config, self.family, iteration)

    def write_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of all prompts with the ``extra_info`` of their rows, in order."""
        return interleave(self.call("write_captions", ray.put(list(prompts)), ray.put(list(infos))), len(prompts))

    def explore(
        self, samples: Sequence[Sample], layout: Layout, plan: SamplingPlan, step: int
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score a batch; outcomes by picture number, and the seconds of the slowest rank by phase."""
        answers = self.call("explore", ray.put(list(samples)), layout, plan.to_dict(), step)
        outcomes: dict[int, Outcome] = {}
        for rank, (found, _) in enumerate(answers):
            outcomes.update(zip(layout.of_rank(rank), found, strict=True))
        return [outcomes[number] for number in range(len(outcomes))], _slowest(answers)

    def preview_plan(self) -> SamplingPlan | None:
        """The plan of candidates that are drawn for their rewards alone; None where they are drawn as they train."""
        return preview_plan(self.config, self.family)

    def draw_candidates(
        self, samples: Sequence[Sample], pictures: Sequence[tuple[int, int]], plan: SamplingPlan, step: int, keep: bool
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score candidates; outcomes in their order, and the seconds of the slowest rank by phase. See
        :meth:`DecoderPolicyWorker.draw_candidates`."""
        asked = ray.put(list(samples)), ray.put(list(pictures))
        answers = self.call("draw_candidates", *asked, plan.to_dict(), step, keep)
        return [outcome for found, _ in answers for outcome in found], _slowest(answers)

    def adopt(
        self, samples: Sequence[Sample], layout: Layout, plan: SamplingPlan, step: int, pictures: Sequence[Any]
    ) -> None:
        """Train on candidates; see :meth:`DecoderPolicyWorker.adopt`."""
        self.call("adopt", ray.put(list(samples)), layout, plan.to_dict(), step, list(pictures))

    def improve(self, advantages: Sequence[float], weights: Sequence[float], first_update: int) -> list[dict]:
        """Update the policy on the batch drawn last; verl's metrics of each update, equal on all ranks."""
        return self.call("improve", list(advantages), list(weights), first_update)[0]

    def state_ref(self) -> Any:
        """Ray reference to the averaged weights; they do not pass through the controller."""
        return self.call("decoder_state")[0][0]


def _slowest(answers: Sequence[tuple[Any, Mapping[str, float]]]) -> dict[str, float]:
    """Seconds by phase, given what each rank answers with its own."""
    seconds: dict[str, float] = {}
    for _, spent in answers:
        seconds = {phase: max(seconds.get(phase, 0.0), value) for phase, value in spent.items()}
    return seconds

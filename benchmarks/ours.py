# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One batch of stage U4G as the package does it: the parts PolicyRollout and DecoderEngine are made of.

Pictures are neither decoded nor scored: both sides of a comparison would do that alike.

Shape legend: N samples, B of a micro-batch, K steps of the window, L text positions, E language-model width,
C H W latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.engines import Engine
from benchmarks.work import Samples, Work
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.conditions import ConditionCache, stack_states
from verl_uae.flow.trajectory import Trajectory, sample_trajectory


class Ours:
    """Sampling and updates of the package.

    Args:
        engine: holds the policy, for sampling and training.
        conditioner: of captions.
        work: see there.
    """

    def __init__(self, engine: Engine, conditioner: Conditioner, work: Work) -> None:
        self.engine = engine
        self.conditioner = conditioner
        self.work = work

    def run(self, repetition: int) -> dict[str, float]:
        """One batch; seconds by part."""
        clock = self.work.clock()
        states = self.encode(repetition)
        clock.lap("condition")
        samples = self.sample(states, repetition)
        clock.lap("sampling")
        self.update(samples, self.work.advantages(repetition))
        clock.lap("update")
        return clock.seconds

    def encode(self, repetition: int) -> list[Tensor]:
        """N conditions, (L, E) each, in host memory; every caption is encoded once, and is new."""
        return ConditionCache(self.conditioner, 1024).get(self.work.captions(repetition)).states

    def sample(self, states: list[Tensor], repetition: int, micro: int = 0) -> Samples:
        """N trajectories in host memory.

        Args:
            states: conditions of all samples.
            repetition: part of every noise's name.
            micro: samples per forward pass, a divisor of the work's; 0 is the work's.
        """
        work, size = self.work, micro or self.work.micro
        parts: list[Trajectory] = []
        with self.engine.eval_mode(), torch.no_grad():
            for start in range(0, work.samples, work.micro):
                for at in range(0, work.micro, size):
                    field = self.engine.field(stack_states(states[start + at :][:size], work.device))

                    def step_noise(step: int, start: int = start, at: int = at) -> Tensor:
                        return work.noise(repetition, start, step)[at : at + size]

                    parts.append(_to_host(sample_trajectory(field, step_noise(-1), work.plan, step_noise)))
        fields = (torch.cat([getattr(part, name) for part in parts]) for name in Trajectory.__dataclass_fields__)
        return Samples(torch.stack(states), *fields)

    def update(self, samples: Samples, advantage_N: Tensor) -> None:
        """All optimiser updates of a batch; old log-probabilities are the sampler's."""
        work, share = self.work, self.work.samples // self.work.updates
        with self.engine.train_mode():
            for start in range(0, work.samples, share):
                rows = slice(start, start + share)
                self.engine.update(samples.rows(rows), advantage_N[rows], work.plan, work.micro)


def _to_host(part: Trajectory) -> Trajectory:
    return Trajectory(*(getattr(part, name).to("cpu") for name in Trajectory.__dataclass_fields__))

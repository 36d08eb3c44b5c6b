# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Do both sides compute the same? And does the trainer score what the sampler drew as the sampler did?

Shape legend: N samples, K steps of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baseline import Script
from benchmarks.ours import Ours, gradients_of
from benchmarks.work import Samples
from verl_uae.families.family import Condition
from verl_uae.flow.trajectory import Twins, score_step

#: Largest differences that count as the same result, by dtype that is computed in: latents (in standard deviations of
#: the noise), old log-probabilities (nats per dimension), loss, and gradient (norm of the difference over the norm).
TOLERANCES = {torch.float32: (1e-3, 1e-4, 1e-4, 1e-3), torch.bfloat16: (5e-2, 1e-3, 1e-3, 5e-2)}

#: Gate of rollout against trainer, |log-prob difference| in nats per dimension: p50, p99.
GATE = (5e-5, 5e-4)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences of the two sides on one batch."""

    latents: float
    old_log_probs: float
    loss: float
    gradient: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """|log-prob of the trainer - log-prob of the sampler| at one step."""

    step: int
    p50: float
    p99: float
    passed: bool


def check_agreement(ours: Ours, script: Script) -> Agreement:
    """Sample with the same noise on both sides, then the gradient of the first update on the same samples."""
    work, repetition = ours.work, -1
    conditions = ours.encode(repetition)
    mine = ours.sample(conditions, repetition)
    embeds_NLE = Condition.stack(conditions).states.to(work.device)
    theirs = script.sample(embeds_NLE, lambda start, step: work.noise(repetition, start, step))
    rows = slice(0, work.samples // work.updates)
    same = mine.to(work.device)
    old_NK, advantage_N = script.log_probs(same), work.advantages(repetition)
    with ours.engine.train_mode():
        loss = ours.engine.gradient(mine.rows(rows), advantage_N[rows], work.plan, work.micro)
        gradients = ours.engine.gradients()
    script.module.train()
    other_loss = script.gradient(same.rows(rows), old_NK[rows], advantage_N[rows].to(work.device))
    differences = (
        (mine.final_NCHW - theirs.final_NCHW.cpu()).abs().max().item(),
        (mine.log_prob_NK - old_NK.cpu()).abs().max().item(),
        abs(loss - other_loss),
        gradient_difference(gradients, gradients_of(script.module)),
    )
    limits = TOLERANCES[script.dtype]
    return Agreement(*differences, passed=all(d <= limit for d, limit in zip(differences, limits, strict=True)))


def gradient_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of ``b``.

    Raises:
        ValueError: other parameters have gradients, or none has.
    """
    if a.keys() != b.keys() or not any(gradient.any() for gradient in b.values()):
        raise ValueError(f"gradients of {len(a)} and {len(b)} parameters, or all zero")
    difference = sum((a[name].double() - b[name].double()).square().sum().item() for name in b)
    return (difference / sum(gradient.double().square().sum().item() for gradient in b.values())) ** 0.5


def log_prob_gate(ours: Ours, samples: Samples) -> list[Gate]:
    """Score samples as the trainer does, with gradient and in its micro-batches, and compare step by step."""
    work, found = ours.work, []
    with ours.engine.train_mode():
        for k, index in enumerate(work.plan.window):
            scored = []
            for start in range(0, work.samples, work.micro):
                part = samples.rows(slice(start, start + work.micro))
                twins = Twins.of(part.origin_N.tolist() if k == 0 else range(work.micro))
                field = twins.velocity(ours.engine.field(part.condition[twins.first].to(work.device)))
                x, x_next = (each[:, k].to(work.device) for each in (part.x_NKCHW, part.x_next_NKCHW))
                scored.append(score_step(field, x, x_next, work.plan, index).log_prob_B.detach().cpu())
            difference_N = (torch.cat(scored) - samples.log_prob_NK[:, k]).abs()
            p50, p99 = (difference_N.quantile(q).item() for q in (0.5, 0.99))
            found.append(Gate(index, p50, p99, p50 < GATE[0] and p99 < GATE[1]))
    return found

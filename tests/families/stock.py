# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a stock pipeline of diffusers computes inside, read where every pipeline passes: between its transformer and its
scheduler.

Pipelines keep latents in layouts, times and signs of their own, but all step with a velocity v = eps - x_0. The layout
is found from the noise, whose numbers all differ, so that nothing here is particular to a family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """One step of a stock pipeline."""

    sigma: float
    x_BCHW: Tensor
    velocity_BCHW: Tensor
    """With the graph to the parameters of the transformer."""


class _Watch:
    """In place of the scheduler's ``step``; remembers one call."""

    def __init__(self, scheduler: Any, noise_BCHW: Tensor, wanted: int) -> None:
        self.scheduler, self.noise_BCHW, self.wanted = scheduler, noise_BCHW, wanted
        self.step, self.count = scheduler.step, 0
        self.order: Tensor | None = None
        self.moment: Moment | None = None

    def __call__(self, velocity: Tensor, time: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.order is None:
            self.order = sample.flatten().argsort()[self.noise_BCHW.flatten().argsort().argsort()]
            assert torch.equal(self._ordered(sample), self.noise_BCHW)
        if self.count == self.wanted:
            sigma = float(self.scheduler.sigmas[self.count])
            # A step of the pipeline may be in a no_grad of its own.
            with torch.enable_grad():
                self.moment = Moment(sigma, self._ordered(sample.detach()), self._ordered(velocity))
        self.count += 1
        return self.step(velocity, time, sample, *args, **options)

    def _ordered(self, tensor: Tensor) -> Tensor:
        assert self.order is not None
        return tensor.float().flatten()[self.order].view_as(self.noise_BCHW)


def moment(pipe: Any, draw: Callable[[Tensor], Any], noise_BCHW: Tensor, step: int) -> Moment:
    """Step number ``step`` of a pipeline, counted from 0.

    Args:
        pipe: a stock pipeline.
        draw: calls it with the noise.
        noise_BCHW: all of its numbers differ.
        step: which step.
    """
    watch = _Watch(pipe.scheduler, noise_BCHW, step)
    # Pipelines leave their no_grad later than what they do with the velocity.
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(watch.count == step) and None)
    try:
        with mock.patch.object(pipe.scheduler, "step", watch), torch.no_grad():
            draw(noise_BCHW)
    finally:
        handle.remove()
    assert watch.moment is not None
    return watch.moment

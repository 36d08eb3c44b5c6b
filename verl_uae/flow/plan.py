# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""All that sampler and trainer must agree on for one batch, as one immutable value with a digest.

Which steps are stochastic and trained, the window, belongs to a batch, not to a sample: members of one group that
explore different steps are not comparable, and their rewards spread for no reason of the policy's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from verl_uae.flow.config import KERNELS, REDUCTIONS, Kernel, Reduction, WindowConfig
from verl_uae.flow.kernels import Coefficients, coefficients, gain


def trainable_steps(
    coefficients: Sequence[Coefficients], sigmas: Sequence[float], settings: WindowConfig
) -> tuple[int, ...]:
    """Steps that may be stochastic: noisy enough, and not so sharp that rounding decides.

    Args:
        coefficients: the stochastic transition of every step, S of them.
        sigmas: noise levels, S + 1 of them.
        settings: for ``min_sigma_next``, ``min_std`` and ``max_gain``.

    Returns:
        Indices in rising order; none where no step qualifies. Deterministic steps never do.

    Raises:
        ValueError: lengths do not fit.
    """
    if len(sigmas) != len(coefficients) + 1:
        raise ValueError(f"{len(coefficients)} transitions between {len(sigmas)} noise levels")
    return tuple(
        index
        for index, c in enumerate(coefficients)
        if c.std > 0.0
        and c.std >= settings.min_std
        and sigmas[index + 1] >= settings.min_sigma_next
        and gain(c) <= settings.max_gain
    )


def draw_window(
    settings: WindowConfig, allowed: Sequence[int], num_steps: int, *, iteration: int, seed: int
) -> tuple[int, ...]:
    """The window of one iteration, a function of the arguments alone: the same on every rank and after a resume.

    Args:
        settings: how to choose.
        allowed: steps that can be trained, from :func:`trainable_steps`.
        num_steps: S, all denoising steps.
        iteration: number of the batch, at least 0.
        seed: of the run; draws of different iterations are independent.

    Returns:
        Step indices in rising order; consecutive, unless the mode is ``all`` and a step in between is excluded.

    Raises:
        ValueError: no window fits.
    """
    if iteration < 0:
        raise ValueError(f"iteration must be at least 0, got {iteration}")
    high = num_steps // 2 if settings.high is None else settings.high
    starts = [
        start
        for start in range(settings.low, min(high, num_steps) - settings.size + 1)
        if set(range(start, start + settings.size)) <= set(allowed)
    ]
    if settings.mode == "fixed":
        starts = [start for start in starts if start == settings.low]
    if settings.mode == "all" and allowed:
        return tuple(sorted(allowed))
    if settings.mode == "all" or not starts:
        raise ValueError(_no_window(settings, allowed, num_steps, high))
    start = starts[_position(settings, len(starts), iteration, seed)]
    return tuple(range(start, start + settings.size))


def _position(settings: WindowConfig, count: int, iteration: int, seed: int) -> int:
    """Which of ``count`` starts; the hash in place of a generator leaves no state to save."""
    if settings.mode == "progressive":
        return min(iteration // settings.every * settings.stride, count - 1)
    digest = hashlib.sha256(f"window {seed} {iteration}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def _no_window(settings: WindowConfig, allowed: Sequence[int], num_steps: int, high: int) -> str:
    where = "at all" if settings.mode == "all" else f"of size {settings.size} from step {settings.low} to {high}"
    return (
        f"no window {where} fits (window.mode {settings.mode}): of {num_steps} steps, {list(allowed)} can be trained "
        f"under window.min_sigma_next {settings.min_sigma_next}, window.min_std {settings.min_std} and window.max_gain "
        f"{settings.max_gain}; change these, window.size, low or high, or the number of steps or the noise level"
    )


class PlanMismatch(ValueError):  # noqa: N818 - a fact, as in FileExistsError
    """Two sides hold different sampling plans, so their log-probabilities do not compare."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How a batch of latents is drawn: the same for all of its samples.

    Raises:
        ValueError: a field is impossible, naming it.
    """

    sigmas: tuple[float, ...]
    """Noise levels, S + 1 of them, strictly decreasing within [0, 1], each exactly an fp32 number."""
    kernel: Kernel
    """Transition inside the window; outside it every step is ``ode``."""
    noise_level: float
    """Of the kernel, see :func:`~verl_uae.flow.kernels.coefficients`."""
    window: tuple[int, ...]
    """Stochastic steps in rising order, each in [0, S); empty for plain ODE sampling."""
    guidance: float = 1.0
    """Scale of classifier-free guidance, at least 0; 1 is off."""
    reduction: Reduction = "mean"
    """Of log-probabilities, see :func:`~verl_uae.flow.kernels.gaussian_log_prob`."""

    def __post_init__(self) -> None:
        # 1 and 1.0 are the same plan and must have the same digest.
        for name, value in (
            ("sigmas", tuple(float(sigma) for sigma in self.sigmas)),
            ("window", tuple(int(index) for index in self.window)),
            ("noise_level", float(self.noise_level)),
            ("guidance", float(self.guidance)),
        ):
            object.__setattr__(self, name, value)
        self._check_sigmas()
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}")
        if not 0.0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0, got {self.guidance}")
        if list(self.window) != sorted(set(self.window) & set(range(self.num_steps))):
            raise ValueError(f"window {self.window} must be rising indices of {self.num_steps} steps")
        for index in self.window:
            if not self.coefficients(index).std > 0.0:
                raise ValueError(f"window: step {index} is deterministic with kernel {self.kernel}")

    def _check_sigmas(self) -> None:
        falling = all(sigma > sigma_next for sigma, sigma_next in itertools.pairwise(self.sigmas))
        if len(self.sigmas) < 2 or not falling or self.sigmas[0] > 1.0 or self.sigmas[-1] < 0.0:
            raise ValueError(f"sigmas must be two or more numbers that fall within [0, 1], got {self.sigmas}")
        for sigma in self.sigmas:
            if struct.unpack("f", struct.pack("f", sigma))[0] != sigma:
                raise ValueError(f"sigmas must be fp32 numbers, as sigma_schedule gives them, got {sigma}")

    @classmethod
    def ode(cls, sigmas: Tensor, guidance: float = 1.0) -> SamplingPlan:
        """Euler steps of the ODE through noise levels (S + 1,), see :func:`verl_uae.flow.ode.euler`."""
        return cls(tuple(sigmas.tolist()), "ode", 0.0, (), guidance)

    @property
    def num_steps(self) -> int:
        """S, number of denoising steps."""
        return len(self.sigmas) - 1

    def coefficients(self, index: int) -> Coefficients:
        """Transition of step ``index``: the kernel's inside the window, Euler's outside.

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} of {self.num_steps}")
        kernel: Kernel = self.kernel if index in self.window else "ode"
        return coefficients(kernel, self.sigmas[index], self.sigmas[index + 1], self.noise_level, self.sigmas[1])

    @property
    def noise_weights(self) -> tuple[float, ...]:
        """Weight of each window step in proportion to its standard deviation, their mean 1.

        TempFlow-GRPO (arXiv 2508.04324) weighs a step by s sqrt(D), the standard deviation of a ``flow_sde`` step; its
        code multiplies by 2.25, which makes the mean 1 over the nine trained steps of its table.
        """
        stds = [self.coefficients(index).std for index in self.window]
        return tuple(std * len(stds) / math.fsum(stds) for std in stds)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that identify all fields bit for bit."""
        text = json.dumps({name: _exact(value) for name, value in asdict(self).items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, digest: str) -> None:
        """Make sure that the other side holds this very plan.

        Raises:
            PlanMismatch: it does not.
        """
        if digest != self.digest:
            raise PlanMismatch(f"the samples were drawn with sampling plan {digest}, here it is {self.digest}: {self}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON without loss."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingPlan:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is missing, unknown or impossible.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"a sampling plan has the fields {sorted(names)}, got {sorted(values)}")
        return cls(**values)


def make_plan(
    sigmas: Tensor,
    kernel: Kernel,
    noise_level: float,
    window: WindowConfig,
    *,
    iteration: int,
    seed: int,
    guidance: float = 1.0,
    reduction: Reduction = "mean",
) -> SamplingPlan:
    """The plan of one iteration; call it once per batch and hand the result to sampler and trainer.

    Args:
        sigmas: noise levels, shape (S + 1,), fp32, from :func:`~verl_uae.flow.schedule.sigma_schedule`.
        kernel: transition inside the window; ``ode`` has no window.
        noise_level: of the kernel.
        window: which steps are stochastic.
        iteration: number of the batch, at least 0.
        seed: of the run, for windows that are drawn.
        guidance: scale of classifier-free guidance; 1 is off.
        reduction: of log-probabilities.

    Raises:
        TypeError: the table is not fp32: bf16 is wrong by up to 4 % of a step.
        ValueError: an argument is impossible, or no window fits.

    Example:
        >>> from verl_uae.flow.schedule import sigma_schedule
        >>> plan = make_plan(sigma_schedule(10, 3.0), "cps", 0.8, WindowConfig(size=2), iteration=0, seed=0)
        >>> plan.window
        (0, 1)
    """
    if sigmas.dtype != torch.float32 or sigmas.ndim != 1:
        raise TypeError(f"sigmas must be torch.float32 of shape (S + 1,), got {sigmas.dtype} {tuple(sigmas.shape)}")
    table = tuple(sigmas.tolist())
    chosen: tuple[int, ...] = ()
    if kernel != "ode":
        steps = [coefficients(kernel, *pair, noise_level, table[1]) for pair in itertools.pairwise(table)]
        allowed = trainable_steps(steps, table, window)
        chosen = draw_window(window, allowed, len(steps), iteration=iteration, seed=seed)
    return SamplingPlan(table, kernel, noise_level, chosen, guidance, reduction)


def _exact(value: Any) -> Any:
    """Floats as hexadecimal text, which loses no bit."""
    if isinstance(value, tuple | list):
        return [_exact(item) for item in value]
    return value.hex() if isinstance(value, float) else value

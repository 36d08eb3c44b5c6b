# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What of the mathematics is set by keys: the sections ``uae.u4g.window`` and ``uae.pretrain.density``, and choices.

Each section is also the argument of the functions that use it. Torch stays outside: the schema imports this file.

Sources: "Fast" is the windowed setting of the code of Flow-GRPO's authors (arXiv 2505.05470), "MixGRPO" 2507.21802,
"SD3" 2403.03206.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from verl_uae.errors import ConfigError
from verl_uae.settings import check_fields, key

Kernel = Literal["cps", "flow_sde", "dance", "ode"]
KERNELS: tuple[str, ...] = get_args(Kernel)

Reduction = Literal["mean", "sum", "raw"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

Table = Literal["even", "terminal", "double_shift"]
TABLES: tuple[str, ...] = get_args(Table)

Std = Literal["group", "global", "none"]
STDS: tuple[str, ...] = get_args(Std)

Choice = Literal["best_worst", "diverse", "random"]
CHOICES: tuple[str, ...] = get_args(Choice)

PenaltyForm = Literal["exact", "flow_grpo", "velocity", "x0"]
PENALTY_FORMS: tuple[str, ...] = get_args(PenaltyForm)
#: Those that need no transition.
FORWARD_FORMS = ("velocity", "x0")


@dataclass
class WindowConfig:
    """``uae.u4g.window``: which denoising steps are stochastic and trained; drawn once per batch.

    Raises:
        ConfigError: a field is impossible, naming it.
    """

    mode: str = key("random", choices=("random", "fixed", "progressive", "all"))
    """random: the start is drawn for every batch (Fast). fixed: it starts at ``low``. progressive: it moves from noise
    to data and stays at the last place (MixGRPO). all: every step that can be trained, whatever ``size``, ``low`` and
    ``high`` say (Flow-GRPO)."""

    size: int = key(3, at_least=1)
    """Consecutive stochastic steps, at least 1. Fast: 2 or 3; MixGRPO: 4 of 25."""

    low: int = key(0, at_least=0)
    """First step the window may start at, at least 0; 0 is pure noise. Fast: 0."""

    high: int | None = None
    """Step the window must end before, above ``low``, at most the number of steps; null is half of them. Fast: the
    high-noise half; MixGRPO: all steps."""

    stride: int = key(1, at_least=1)
    """progressive: steps the window moves at a time, at least 1. MixGRPO: 1."""

    every: int = key(25, at_least=1)
    """progressive: batches between two moves, at least 1. MixGRPO: 25."""

    min_sigma_next: float = key(0.05, at_least=0, at_most=1)
    """Steps that end below this noise level are never stochastic, in [0, 1]. Our choice: noise injected by a step to
    nearly 0 stays in the picture, as in the last two steps of the ``double_shift`` table."""

    min_std: float = key(0.05, at_least=0)
    """Steps whose transition std is below it are never stochastic, at least 0, in units of the latent. Our choice."""

    max_gain: float = key(2.0, above=0)
    """Steps whose ``|d mean / d velocity| / std`` is above it are never stochastic, above 0. Our choice: rounding in
    the model weighs as much as the policy there."""

    def __post_init__(self) -> None:
        check_fields(self, "window.")
        if self.high is not None and not self.high > self.low:
            raise ConfigError("window.high", f"must be above window.low ({self.low}), got {self.high}")


@dataclass
class DensityConfig:
    """``uae.pretrain.density``: which noise levels are trained.

    Raises:
        ConfigError: a field is impossible, naming it.
    """

    name: str = key("logit_normal", choices=("logit_normal", "mode", "cosmap", "sigma_sqrt", "uniform"))
    """logit_normal, mode or uniform: how levels are drawn. cosmap or sigma_sqrt: drawn uniformly and weighted. SD3:
    logit_normal."""

    logit_mean: float = key(0.0, number=True)
    """Mean of the logit of a level; above 0 trains more noise. SD3: 0."""

    logit_std: float = key(1.0, above=0)
    """Standard deviation of the logit, above 0. SD3: 1."""

    # Above 2 / (pi - 2), levels are not in order any more (SD3, equation 20).
    mode_scale: float = key(1.29, at_least=-1, at_most=2.0 / (math.pi - 2.0))
    """Scale of ``mode``, in [-1, 1.752]; 0 is uniform. SD3: 1.29."""

    def __post_init__(self) -> None:
        check_fields(self, "density.")

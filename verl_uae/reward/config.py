# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.reward``. Sources: "paper" is arXiv 2509.09666."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig

from verl_uae.errors import ConfigError
from verl_uae.flow.config import STDS
from verl_uae.settings import CAPTIONING, REWARDED, key

#: How a term enters the sum in training.
NORMALIZATIONS = ("none", "running", "rank")


@dataclass
class TermConfig:
    """One entry of ``uae.reward.terms``."""

    name: str = MISSING
    """Registered name of the reward term, e.g. pixel, ssim, clip."""

    label: str | None = None
    """Name in metrics and panels; null takes ``name``. Needed when one term is used twice."""

    weight: float = 1.0
    """Weight in the sum; a held-out term has weight 0."""

    held_out: bool = False
    """True: measured and logged, can never enter the reward."""

    normalize: str = key("none", choices=NORMALIZATIONS)
    """How the term enters the sum in training. none: as it is. running: minus the mean and divided by the standard
    deviation of all its valid values of the run so far, kept in checkpoints. rank: as the share of the other members of
    its group that are worse, in [0, 1]. Validation has the plain sum."""

    tie: float = key(0.0, at_least=0)
    """With normalize=rank, values that differ by no more count as equal, units of the term, at least 0. Without it, a
    difference of rounding is worth as much as any other."""

    floor: float | None = None
    """A sample whose value of this term is worse (below, or above where lower is better) counts as invalid; null: no
    gate. Not for held-out terms. Mind max_invalid_fraction."""

    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the term."""


@dataclass
class RewardConfig:
    """``uae.reward``: similarity of source and reconstruction, and how groups turn it into advantages."""

    terms: list[TermConfig] = key(factory=list, entries=TermConfig)
    """Reward terms. A function given as reward.custom_reward_function.path is one more, of weight custom_weight."""

    files: list[str] = field(default_factory=list)
    """Python files whose ``@register_reward`` terms can be named in terms: paths, ``pkg://`` or dotted modules. They
    run with your rights in every process that scores; path and SHA-256 are logged."""

    custom_weight: float = key(1.0, number=True)
    """Weight of verl's reward.custom_reward_function, used only when its path is set."""

    timeout_s: float = key(60.0, above=0)
    """Longest time one batch may spend in one term, seconds, above 0; then the samples are marked timeout."""

    min_std: float = key(1e-3, at_least=0, stages=CAPTIONING)
    """Groups whose reward std is below it give no signal, in units of the reward, at least 0. Cosine rewards live
    in a narrow band, so rounding noise would otherwise become advantage. Our choice."""

    advantage_std: str = key("group", choices=STDS, stages=CAPTIONING)
    """What advantages are divided by: group (GRPO, paper), global (std of the batch) or none."""

    source_cache_mib: int = key(256, at_least=0)
    """Host memory of each rank for features of source pictures, MiB, at least 0; 0 encodes them anew for every sample.
    Our choice: 256, which holds the pooled vectors of 87 000 pictures or the patch tokens of 256, of CLIP ViT-L/14."""

    tripwire_window: int = key(20, at_least=0, stages=REWARDED)
    """Steps over which a held-out term that gets worse while the reward rises is flagged, at least 3; 0: never.
    Our choice."""


def validate(config: DictConfig) -> None:
    """Check the terms, without models.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.reward.scorer import check_specs, term_specs

    for index, term in enumerate(config.uae.reward.terms):
        name = f"uae.reward.terms[{index}]"
        if term.held_out and term.normalize != "none":
            raise ConfigError(f"{name}.normalize", "a held-out term is in no sum; leave it at none")
        if term.tie and term.normalize != "rank":
            raise ConfigError(f"{name}.tie", f"needs normalize=rank, got {term.tie}")
    if 0 < config.uae.reward.tripwire_window < 3:
        raise ConfigError("uae.reward.tripwire_window", "a trend needs at least 3 steps; 0 switches it off")
    summed, watched = term_specs(config)
    check_specs(summed, watched, "uae.reward", config.uae.reward.timeout_s)
    if all(spec.groupwise for spec in summed):
        raise ConfigError(
            "uae.reward.terms",
            "needs a term that is not groupwise: in validation a picture has one reconstruction, and nothing to prefer",
        )

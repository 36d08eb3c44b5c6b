# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From outcomes of samples to masks, metrics and validation records.

Shape legend: N samples.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from verl_uae.chain.records import Caption, Outcome
from verl_uae.errors import RewardError
from verl_uae.flow.advantage import group_advantage
from verl_uae.reward.record import Status, to_tensors

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Why a sample may have no reward.
FAILURES = tuple(status for status in Status if status is not Status.OK)

#: Kinds of reasons that are named in the log of a run.
MOST_KINDS = 50


def usable_members(outcomes: Sequence[Outcome], groups: Sequence[str]) -> list[bool]:
    """Which samples train: those with a value, in groups that have at least two of them."""
    valid = Counter(group for outcome, group in zip(outcomes, groups, strict=True) if outcome.record.ok)
    return [outcome.record.ok and valid[group] >= 2 for outcome, group in zip(outcomes, groups, strict=True)]


class Losses:
    """What samples were lost to: each kind of reason is named once in the log, and a broken chain ends the run.

    Args:
        max_invalid_fraction: largest share of a batch that may have no reward, in [0, 1].
    """

    def __init__(self, max_invalid_fraction: float) -> None:
        self.max_invalid_fraction = max_invalid_fraction
        self._named: set[str] = set()

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Log every reason that differs from the earlier ones in more than its numbers, up to :data:`MOST_KINDS`."""
        bad = [_reason(outcome) for outcome in outcomes if not outcome.record.ok]
        for reason in dict.fromkeys(bad):
            kind = _kind(reason)
            if kind in self._named or len(self._named) >= MOST_KINDS:
                continue
            self._named.add(kind)
            count = sum(_kind(other) == kind for other in bad)
            logger.warning(
                "%d of %d samples have no reward: %s (further ones of this kind are counted in the metrics "
                "reward/status/... and not named again)",
                *(count, len(outcomes), reason),
            )

    def check(self, outcomes: Sequence[Outcome]) -> None:
        """Name what is new, and stop the run when the chain is broken rather than a sample.

        Raises:
            RewardError: if more than ``max_invalid_fraction`` of the samples, or all of them, have no reward; with
                the most frequent reasons.
        """
        self.tell(outcomes)
        bad = [_reason(outcome) for outcome in outcomes if not outcome.record.ok]
        if len(bad) < len(outcomes) and len(bad) <= self.max_invalid_fraction * len(outcomes):
            return
        kinds = Counter(map(_kind, bad)).most_common(3)
        firsts = {_kind(reason): reason for reason in reversed(bad)}
        listed = "; ".join(f"{count} x {firsts[kind]}" for kind, count in kinds)
        raise RewardError(
            "batch",
            f"{len(bad)} of {len(outcomes)} samples have no reward, more than "
            f"uae.supervision.max_invalid_fraction={self.max_invalid_fraction}: {listed}",
        )


def _kind(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"\d+", "#", reason)


class LosingSamples:
    """Mixin of trainers whose samples may have no reward."""

    config: DictConfig

    @functools.cached_property
    def losses(self) -> Losses:
        """What becomes of them, the same for every stage."""
        return Losses(self.config.uae.supervision.max_invalid_fraction)


def outcome_metrics(
    outcomes: Sequence[Outcome],
    captions: Sequence[Caption],
    groups: Sequence[str],
    *,
    min_std: float,
) -> dict[str, float]:
    """Metrics of a batch: reward and every term over valid samples, captions over all that exist."""
    statuses = [outcome.record.status for outcome in outcomes]
    metrics = {f"reward/status/{failure}": _share(status is failure for status in statuses) for failure in FAILURES}
    metrics["reward/invalid_frac"] = _share(not outcome.record.ok for outcome in outcomes)
    columns: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.record.value is not None:
            columns["score"].append(outcome.record.value)
            for term, value in outcome.record.terms.items():
                columns[term].append(value)
    for name, values in columns.items():
        metrics[f"reward/{name}/mean"], metrics[f"reward/{name}/std"] = _moments(values)
    written = [caption for caption in captions if caption.ok]
    if written:
        metrics["caption/words/mean"] = sum(len(caption.text.split()) for caption in written) / len(written)
        metrics["caption/tokens/mean"] = sum(caption.tokens for caption in written) / len(written)
        metrics["caption/cut_frac"] = _share(caption.cut for caption in written)
        metrics["caption/empty_frac"] = _share(not caption.text for caption in written)
    metrics["caption/condition_truncated_frac"] = _share(outcome.truncated for outcome in outcomes)
    metrics.update(group_metrics(outcomes, groups, min_std=min_std))
    return metrics


def group_metrics(outcomes: Sequence[Outcome], groups: Sequence[str], *, min_std: float) -> dict[str, float]:
    """How many groups give a signal."""
    reward_N, valid_N = to_tensors([outcome.record for outcome in outcomes])
    _, stats = group_advantage(reward_N, valid_N, list(groups), min_std=min_std)
    return {
        "reward/groups": float(stats.groups),
        "reward/dropped_groups": float(stats.dropped_groups),
        "reward/dropped_samples": float(stats.dropped_samples),
        "reward/zero_std_groups": float(stats.zero_std_groups),
        "reward/zero_std_frac": stats.zero_std_groups / max(1, stats.groups),
    }


def validation_info(outcome: Outcome, caption: Caption) -> dict[str, Any]:
    """What verl's validation reports about a sample, besides the reward itself."""
    return {
        **{f"term_{name}": value for name, value in outcome.record.terms.items()},
        "caption_words": float(len(caption.text.split())),
        "caption_cut": float(caption.cut),
        "caption": caption.text,
        "status": str(outcome.record.status),
    }


def _reason(outcome: Outcome) -> str:
    return f"{outcome.record.status}: {outcome.record.reason}"


def _share(flags: Any) -> float:
    values = [bool(flag) for flag in flags]
    return sum(values) / max(1, len(values))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    column = torch.tensor(values, dtype=torch.float64)
    return float(column.mean()), float(column.std(unbiased=False))

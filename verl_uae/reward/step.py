# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainer does with the values of a step, which a rank's scorer cannot: it has only its own part of the batch.

* Normalised terms. A term that lives in a narrow band, like a cosine of pooled features, hardly counts beside one that
  does not. With ``normalize: running`` a term enters the sum as (value - mean) / std, mean and standard deviation over
  all valid values of the run so far, this batch included. With ``normalize: rank`` it enters as the share of the other
  members of its group that have a smaller value: only the order counts, so no single outlier rules a group.
* Groupwise terms, whose value is relative to the group. They are scored once per step, over whole groups, from
  reconstructions that the ranks send along as 8-bit pictures, and added to what is there.
* A warning when the reward rises and a held-out term falls. A picture that suits the network of the reward better and
  everything else worse is the mark of an over-optimised reward (Gao et al. 2023). This looks at means per step, so it
  costs nothing and proves nothing: it says when to look.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from omegaconf import DictConfig

from verl_uae.reward.record import RewardBatch, RewardRecord
from verl_uae.reward.scorer import RewardScorer, TermSpec, term_specs, warn_of_held_out

logger = logging.getLogger(__name__)

#: Smallest divisor: a term that never differs has nothing to say, and rounding must not become a reward.
MIN_STD = 1e-6

#: A trend counts when its slope is this many standard errors from 0. Our choice: of steady series of independent noise
#: about one window of 20 in 1000 then has both trends by chance.
THRESHOLD = 2.0


@dataclass(slots=True)
class RunningMoments:
    """Mean and population standard deviation of a stream, in fp64 (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def update(self, values: Sequence[float]) -> None:
        """Take in finite values; the order within one call does not matter."""
        if not values:
            return
        count = len(values)
        mean = math.fsum(values) / count
        squares = math.fsum((value - mean) ** 2 for value in values)
        total, distance = self.count + count, mean - self.mean
        self.squares += squares + distance**2 * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    @property
    def std(self) -> float:
        """0 before the first value."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One summed term; ``factor`` is its weight, negated where lower is better. See :class:`TermSpec`."""

    label: str
    factor: float
    normalize: str = "none"
    tie: float = 0.0


@dataclass(slots=True)
class Composition:
    """The sum, with the moments of the terms that are normalised."""

    parts: Sequence[Part]
    moments: dict[str, RunningMoments] = field(init=False)

    def __post_init__(self) -> None:
        self.moments = {part.label: RunningMoments() for part in self.parts if part.normalize == "running"}

    @property
    def active(self) -> bool:
        """Whether any term is normalised; without one the scorer's own sum stands."""
        return any(part.normalize != "none" for part in self.parts)

    def learn(self, samples: Iterable[Mapping[str, float]]) -> None:
        """Take in the terms of all valid samples of a step."""
        rows = list(samples)
        for label, moments in self.moments.items():
            moments.update([row[label] for row in rows])

    def values(self, samples: Sequence[Mapping[str, float]], groups: Sequence[str]) -> list[float]:
        """The sums of the valid samples of a step, given the terms of each by label, and its group."""
        columns = [self._column(part, [sample[part.label] for sample in samples], groups) for part in self.parts]
        factors = [part.factor for part in self.parts]
        return [math.fsum(f * v for f, v in zip(factors, row, strict=True)) for row in zip(*columns, strict=True)]

    def _column(self, part: Part, values: Sequence[float], groups: Sequence[str]) -> Sequence[float]:
        if part.normalize == "rank":
            return group_ranks(values, groups, part.tie)
        if part.normalize == "none":
            return values
        moments = self.moments[part.label]
        return [(value - moments.mean) / max(moments.std, MIN_STD) for value in values]

    def state_dict(self) -> dict[str, Any]:
        """Moments by label, as plain data."""
        return {label: asdict(moments) for label, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Inverse of :meth:`state_dict`; a term that was not normalised before starts afresh."""
        for label in self.moments:
            self.moments[label] = RunningMoments(**state[label]) if label in state else RunningMoments()


def build_composition(config: DictConfig) -> Composition:
    """The sum of ``uae.reward.terms`` with the terms that are normalised; loads no model."""
    summed, _ = term_specs(config)
    return Composition([Part(spec.label, spec.factor, spec.normalize, spec.tie) for spec in summed])


def group_ranks(values: Sequence[float], groups: Sequence[str], tie: float = 0.0) -> list[float]:
    """Share of the other members of a value's group that are smaller; those that differ by at most ``tie`` count half.

    Returns:
        Numbers in [0, 1] whose mean over a group is 1/2; 1/2 for a value that is alone in its group.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    ranks = [0.5] * len(values)
    for indices in members.values():
        for index in indices:
            apart = [values[index] - values[other] for other in indices if other != index]
            if apart:
                ranks[index] = math.fsum(1.0 if d > tie else 0.5 if d >= -tie else 0.0 for d in apart) / len(apart)
    return ranks


class _GroupTerm(NamedTuple):
    label: str
    factor: float | None
    """Weight, negated where lower is better; None where held out."""
    scorer: RewardScorer


class GroupScorer:
    """Adds groupwise terms, summed and held out, to the records of a step; each call of one has ``timeout_s``."""

    def __init__(self, summed: Sequence[TermSpec], watched: Sequence[TermSpec], timeout_s: float) -> None:
        factors = [*((spec, spec.factor) for spec in summed), *((spec, None) for spec in watched)]
        self._terms = [
            _GroupTerm(spec.label, factor, RewardScorer([replace(spec, weight=1.0)], timeout_s=timeout_s))
            for spec, factor in factors
        ]

    def score(self, batch: RewardBatch, records: Sequence[RewardRecord]) -> list[RewardRecord]:
        """Records with the groupwise terms in ``terms``, and added to ``value`` where they are part of the sum.

        A sample that had no value keeps its record and takes part in no comparison. One that gets no value from a
        summed term fails with that term's status; a held-out term costs nothing. A sample of the batch without a value
        may hold any picture.
        """
        found = list(records)
        for term in self._terms:
            alive = [index for index, record in enumerate(found) if record.ok]
            if not alive:
                break
            scored = term.scorer.score(batch.take(alive))
            if term.factor is None:
                warn_of_held_out(scored)
            for index, record in zip(alive, scored, strict=True):
                found[index] = _add(found[index], record, term)
        return found


def has_groupwise(config: DictConfig) -> bool:
    """Whether a term compares the members of a group."""
    return any(spec.groupwise for specs in term_specs(config) for spec in specs)


def build_group_scorer(config: DictConfig) -> GroupScorer | None:
    """The scorer of the groupwise terms; None where there are none."""
    summed, watched = ([spec for spec in specs if spec.groupwise] for specs in term_specs(config))
    return GroupScorer(summed, watched, config.uae.reward.timeout_s) if summed or watched else None


def _add(record: RewardRecord, found: RewardRecord, term: _GroupTerm) -> RewardRecord:
    seconds = record.seconds + found.seconds
    terms: Mapping[str, float] = {**record.terms, **found.terms}
    if found.ok:
        assert record.value is not None
        value = record.value + (term.factor or 0.0) * found.terms[term.label]
        return RewardRecord(value, record.status, terms, seconds)
    if term.factor is None:
        return record
    return RewardRecord(None, found.status, record.terms, seconds, found.reason)


def trend(values: Sequence[float]) -> float:
    """Slope of the least-squares line over its standard error (Student's t), for evenly spaced finite values.

    Returns:
        The statistic: above 0 rising, below 0 falling, 0 for equal values; infinite for a perfect line.

    Raises:
        ValueError: fewer than 3 values.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"a trend needs at least 3 values, got {count}")
    middle, mean = (count - 1) / 2.0, math.fsum(values) / count
    spread = math.fsum((place - middle) ** 2 for place in range(count))
    slope = math.fsum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    rest = math.fsum((value - mean - slope * (place - middle)) ** 2 for place, value in enumerate(values))
    error = math.sqrt(rest / (count - 2) / spread)
    # Equal values, and lines up to rounding: their rest is not exactly 0.
    tiny = 1e-12 * max(abs(value) for value in values)
    if abs(slope) * count <= tiny:
        return 0.0
    return math.copysign(math.inf, slope) if error * count <= tiny else slope / error


class Tripwire:
    """Watches the means of the reward and of held-out terms.

    Args:
        held_out: labels of the held-out terms, and whether higher is better for each.
        window: steps looked at, at least 3. Until that many were seen there is no flag.
        threshold: see :data:`THRESHOLD`, above 0.
    """

    def __init__(self, held_out: Mapping[str, bool], window: int, threshold: float = THRESHOLD) -> None:
        self.window, self.threshold = window, threshold
        self._higher = dict(held_out)
        # Steps without a mean of a label leave that label's history alone, so each keeps its reward beside it.
        self._pairs: dict[str, deque[tuple[float, float]]] = {label: deque(maxlen=window) for label in held_out}
        self._warned: set[str] = set()

    def update(self, reward: float | None, means: Mapping[str, float]) -> dict[str, float]:
        """Take a step's means.

        Args:
            reward: mean of the reward; None where no sample had one.
            means: mean by label; labels that are not held out are ignored.

        Returns:
            By held-out label 1.0 where over the window the reward rises and the term gets worse, else 0.0.
        """
        flags = {}
        for label, pairs in self._pairs.items():
            value = means.get(label)
            if reward is not None and value is not None and math.isfinite(reward) and math.isfinite(value):
                pairs.append((reward, value if self._higher[label] else -value))
            flags[label] = float(len(pairs) == self.window and self._trips(list(pairs)))
            if flags[label] and label not in self._warned:
                self._warned.add(label)
                logger.warning(
                    "over the last %d steps the reward rises while the held-out term %s gets worse: look at the "
                    "panels; the run may be adapting to the reward",
                    self.window,
                    label,
                )
        return flags

    def _trips(self, pairs: Sequence[tuple[float, float]]) -> bool:
        rewards, values = zip(*pairs, strict=True)
        return trend(rewards) >= self.threshold and trend(values) <= -self.threshold

    def state_dict(self) -> dict[str, Any]:
        """History and what was warned of, as plain data."""
        return {
            "pairs": {label: [list(pair) for pair in pairs] for label, pairs in self._pairs.items()},
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; labels that are no longer held out are left out."""
        for label, pairs in self._pairs.items():
            pairs.clear()
            pairs.extend((float(reward), float(value)) for reward, value in state["pairs"].get(label, []))
        self._warned = set(state["warned"]) & set(self._pairs)


def build_tripwire(config: DictConfig) -> Tripwire | None:
    """The watch over the held-out terms; None where it is switched off."""
    window = config.uae.reward.tripwire_window
    _, watched = term_specs(config)
    return Tripwire({spec.label: spec.higher_is_better for spec in watched}, window) if window else None

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From pictures to reward records."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from verl_uae.devices import FittingBatch
from verl_uae.errors import ConfigError, RewardError
from verl_uae.reward.deadline import Guard
from verl_uae.reward.encodings import Counters, Encodings
from verl_uae.reward.isolate import Slots, fill_failed, samples_per_call, score_isolated
from verl_uae.reward.record import LARGEST, Origin, RewardBatch, RewardRecord, Scoring, Status
from verl_uae.reward.registry import get_reward, load_reward_file
from verl_uae.reward.term import RewardTerm, TermContext
from verl_uae.visits import arrive

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TermSpec:
    """One term as the configuration names it."""

    name: str
    """Registered name."""
    weight: float = 1.0
    """Factor in the sum, unitless. Ignored for held-out terms."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the term's class."""
    label: str = ""
    """Name in records and logs; the registered name by default. Needed to use one term twice."""
    floor: float | None = None
    """A sample whose value is worse is INVALID: below it, or above it where lower is better. None: no gate."""
    normalize: str = "none"
    """One of :data:`verl_uae.reward.config.NORMALIZATIONS`; the trainer's business, not the scorer's."""
    tie: float = 0.0
    """For ``rank``: values that differ by no more are equal; in units of the term."""
    key: str = ""
    """Configuration key of the term, for errors; by default its place in the scorer's own list."""
    params_key: str = ""
    """Configuration key of ``params``, for errors; by default ``params`` below the term's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def groupwise(self) -> bool:
        """Whether the trainer scores the term, over whole groups, rather than a rank."""
        return self._term_class().groupwise

    @property
    def higher_is_better(self) -> bool:
        """False where the term is subtracted."""
        return self._term_class().value_scale(self.params).higher_is_better

    @property
    def factor(self) -> float:
        """Weight, negated where lower is better."""
        return self.weight if self.higher_is_better else -self.weight

    def _term_class(self) -> type[RewardTerm]:
        return get_reward(self.name, f"{self.key}.name" if self.key else "uae.reward.terms")


def term_specs(config: DictConfig) -> tuple[list[TermSpec], list[TermSpec]]:
    """Terms of a run that are summed, verl's custom reward function with them, and terms that are only measured.

    Loads no model; loads ``uae.reward.files`` first.

    Raises:
        ConfigError: a file is refused, or claims a name that is taken.
    """
    reward = config.uae.reward
    for index, path in enumerate(reward.files):
        load_reward_file(path, f"uae.reward.files[{index}]")
    summed: list[TermSpec] = []
    watched: list[TermSpec] = []
    for index, term in enumerate(reward.terms):
        entry: Any = OmegaConf.to_container(term, resolve=True)
        (watched if term.held_out else summed).append(spec_of(entry, f"uae.reward.terms[{index}]"))
    custom = config.reward.custom_reward_function
    if custom.path:
        kwargs = OmegaConf.to_container(custom.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
        params = {"path": custom.path, "name": custom.name, "reward_kwargs": kwargs}
        key = "reward.custom_reward_function"
        summed.append(TermSpec(name="custom", weight=reward.custom_weight, params=params, key=key, params_key=key))
    return summed, watched


def spec_of(entry: Mapping[str, Any], key: str) -> TermSpec:
    """An entry of ``uae.reward.terms``, by the keys of :class:`~verl_uae.reward.config.TermConfig`."""
    same = {name: entry[name] for name in ("name", "params", "floor", "normalize", "tie")}
    return TermSpec(**same, weight=0.0 if entry["held_out"] else entry["weight"], label=entry["label"] or "", key=key)


@dataclass(frozen=True, slots=True)
class _Entry:
    label: str
    term: RewardTerm
    factor: float
    """Weight, negated where lower is better. Not used for held-out terms."""
    floor: float | None
    chunk: FittingBatch
    """Samples per call, where the term looks at each by itself."""
    smaller: dict[int, FittingBatch] = field(default_factory=dict)
    """The same for larger pictures, by the size to start with."""

    def chunk_for(self, batch: RewardBatch) -> FittingBatch:
        """Samples per call for pictures of this size; as many as the term says, where it does."""
        if self.term.chunk_size is not None:
            return self.chunk
        size = samples_per_call(self.chunk.size, *batch.source_B3HW.shape[-2:])
        if size == self.chunk.size:
            return self.chunk
        return self.smaller.setdefault(size, FittingBatch(size, self.chunk.what))


class RewardScorer:
    """Weighted sum of reward terms, one fault costing one sample.

    For every sample ``value = sum_i weight_i * s_i * term_i`` with ``s_i`` = -1 for a term where lower is better, so
    that a positive weight always rewards the better picture. The sum is not divided by the weights. A sample with any
    term missing has no value, never a partial sum.

    What goes wrong stays with its sample: a picture with unusable pixels and a term's NaN, None, text or wrong length
    become INVALID, an exception ERROR, and all other samples keep the bits they have in a run without it
    (:mod:`verl_uae.reward.isolate`). A held-out term is recorded in ``terms`` and touches neither value nor status.

    Each term runs in a daemon thread and has ``timeout_s`` for the whole batch (a term that isolates samples itself,
    like ``custom``: for each sample). Samples not scored by then are TIMEOUT. A thread cannot be killed, only
    abandoned; what that does not cover is listed in :mod:`verl_uae.reward.deadline`.

    Args:
        terms: what is summed; ``(name, weight, params)`` or :class:`TermSpec`.
        held_out: what is only recorded; ``(name, params)`` or :class:`TermSpec`.
        device: where the models of the terms live; batches must be there too.
        timeout_s: seconds per term, see above.
        max_abandoned: hung threads that may be alive before :class:`~verl_uae.errors.RewardError` ends the run.
        chunk_size: samples per call of a pointwise term, fewer of large pictures
            (:func:`~verl_uae.reward.isolate.samples_per_call`). Part of the result's last bits: keep it fixed in a run.
        source_cache_bytes: host memory for features of source pictures, see :mod:`verl_uae.reward.encodings`.
        key: configuration key of all this, for errors.

    Raises:
        ConfigError: unknown term, impossible parameters, weights that sum to 0.

    Example:
        >>> import torch
        >>> from verl_uae.reward import RewardBatch
        >>> pictures = torch.full((2, 3, 16, 16), 0.5)
        >>> drawn = torch.stack([pictures[0], pictures[1] * torch.nan])
        >>> batch = RewardBatch(pictures, drawn, captions=["gray", "gray"], rows=[{}, {}])
        >>> [(str(record.status), record.value) for record in RewardScorer([("pixel", 1.0, {})]).score(batch)]
        [('ok', 1.0), ('invalid', None)]
    """

    def __init__(
        self,
        terms: Sequence[TermSpec | tuple[str, float, Mapping[str, Any]]],
        *,
        held_out: Sequence[TermSpec | tuple[str, Mapping[str, Any]]] = (),
        device: torch.device | str = "cpu",
        timeout_s: float = 60.0,
        max_abandoned: int = 16,
        chunk_size: int = 16,
        source_cache_bytes: int = 0,
        key: str = "uae.reward",
    ) -> None:
        for name, number in (("timeout_s", timeout_s), ("max_abandoned", max_abandoned), ("chunk_size", chunk_size)):
            if not number > 0:
                raise ConfigError(f"{key}.{name}", f"must be above 0, got {number}")
        summed, watched = check_specs(
            [t if isinstance(t, TermSpec) else TermSpec(name=t[0], weight=t[1], params=t[2]) for t in terms],
            [t if isinstance(t, TermSpec) else TermSpec(name=t[0], params=t[1]) for t in held_out],
            key,
            timeout_s,
        )
        self.device = torch.device(device)
        self.guard = Guard(timeout_s, max_abandoned)
        self.chunk_size = chunk_size
        self._encodings = Encodings(source_cache_bytes)
        self._summed, self._watched = [self._build(spec) for spec in summed], [self._build(spec) for spec in watched]

    @property
    def labels(self) -> list[str]:
        """Labels of the terms that are summed."""
        return [entry.label for entry in self._summed]

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must have for one of the terms."""
        return frozenset().union(*(entry.term.needs for entry in (*self._summed, *self._watched)))

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest possible reward."""
        ends = [sorted(entry.factor * bound for bound in entry.term.bounds) for entry in self._summed]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    @property
    def counters(self) -> Counters:
        """Forward passes and cached features of the feature terms so far."""
        return self._encodings.counters

    def networks(self) -> list[nn.Module]:
        """Models of the terms; one that several share is there as often."""
        return [module for entry in (*self._summed, *self._watched) for module in entry.term.networks()]

    def to(self, device: torch.device | str) -> None:
        """Move the models of all terms; batches must be on that device from now on."""
        self.device = torch.device(device)
        for entry in (*self._summed, *self._watched):
            entry.term.to(self.device)

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """Score every sample.

        Args:
            batch: B samples on ``self.device``.

        Returns:
            B records, in order; for the samples in ``batch.failed`` the very records given there.

        Raises:
            RewardError: a term asks for captions or rows the batch lacks, or too many calls hang.
        """
        arrive(*self.networks())
        scoring = Scoring()
        batch = replace(batch, origin=Origin(scoring, tuple(range(len(batch)))))
        settled = dict(batch.failed)
        for index, reason in batch.unusable().items():
            settled.setdefault(index, RewardRecord.failed(Status.INVALID, reason))
        parts: dict[int, dict[str, RewardRecord]] = {i: {} for i in range(len(batch)) if i not in settled}
        healthy = list(parts)
        try:
            for entry in self._summed:
                self._run(entry, batch, parts, healthy)
                healthy = [index for index in healthy if parts[index][entry.label].ok]
            for entry in self._watched:
                self._run(entry, batch, parts, healthy)
                warn_of_held_out(parts[index][entry.label] for index in healthy)
        finally:
            scoring.finish()
        return [settled[i] if i in settled else self._combine(parts[i]) for i in range(len(batch))]

    def _build(self, spec: TermSpec) -> _Entry:
        term = get_reward(spec.name, f"{spec.key}.name")(**spec.params)
        term.setup(TermContext(self.device, self.guard, self._encodings, spec.label))
        sign = 1.0 if term.higher_is_better else -1.0
        chunk = FittingBatch(term.chunk_size or self.chunk_size, f"pictures of reward term {spec.label!r}")
        return _Entry(spec.label, term, sign * spec.weight, spec.floor, chunk)

    def _run(
        self, entry: _Entry, batch: RewardBatch, parts: dict[int, dict[str, RewardRecord]], active: Sequence[int]
    ) -> None:
        """Score ``active`` with one term and file the outcomes under its label."""
        for need, values in (("caption", batch.captions), ("row", batch.rows), ("group", batch.groups)):
            if need in entry.term.needs and values is None:
                raise RewardError(entry.label, f"needs a {need} for every sample, and this batch has none")
        if not active:
            return
        slots: Slots = [None] * len(batch)
        chunk = entry.chunk_for(batch)
        score = functools.partial(score_isolated, entry.term, entry.label, batch, active, chunk, slots)
        if entry.term.guarded:
            score()
        else:
            call = self.guard.run(entry.label, score)
            # A copy: an abandoned thread may go on writing to the original.
            slots = list(slots)
            if isinstance(call.error, RewardError):
                raise call.error
            fill_failed(slots, active, call.failure(entry.label, self.guard.timeout_s))
        for index in active:
            record = slots[index]
            if record is None:
                raise RewardError(entry.label, f"sample {index} was not scored")
            parts[index][entry.label] = _gate(entry, record)

    def _combine(self, found: Mapping[str, RewardRecord]) -> RewardRecord:
        """One record from a sample's outcomes by label."""
        seconds = sum(record.seconds for record in found.values())
        terms: dict[str, float] = {}
        for label, record in found.items():
            if record.value is not None:
                terms[label] = record.value
                terms.update({f"{label}/{name}": value for name, value in record.terms.items()})
        value = 0.0
        for entry in self._summed:
            outcome = found.get(entry.label)
            if outcome is None or outcome.value is None:
                failed = next(record for record in found.values() if not record.ok)
                return RewardRecord(None, failed.status, terms, seconds, failed.reason)
            value += entry.factor * outcome.value
        if not abs(value) <= LARGEST:
            reason = f"the weighted sum of the terms is {value:g}, of a magnitude above {LARGEST:g}"
            return RewardRecord(None, Status.INVALID, terms, seconds, reason)
        return RewardRecord(value, Status.OK, terms, seconds)


def build_scorer(config: DictConfig, device: str | torch.device) -> RewardScorer:
    """The scorer of a run, without the groupwise terms."""
    summed, watched = ([spec for spec in specs if not spec.groupwise] for specs in term_specs(config))
    reward = config.uae.reward
    cache = reward.source_cache_mib * 1024 * 1024
    return RewardScorer(summed, held_out=watched, device=device, timeout_s=reward.timeout_s, source_cache_bytes=cache)


def warn_of_held_out(records: Iterable[RewardRecord]) -> None:
    """Log for how many samples a held-out term has no value, and the commonest reasons; nothing else tells of it."""
    lost = Counter(f"{record.status}: {record.reason}" for record in records if not record.ok)
    if lost:
        reasons = "; ".join(f"{count} x {text}" for text, count in lost.most_common(3))
        logger.warning("a held-out reward is missing for %d samples (%s)", lost.total(), reasons)


def check_specs(
    summed: Sequence[TermSpec], watched: Sequence[TermSpec], key: str = "uae.reward", timeout_s: float = math.inf
) -> tuple[list[TermSpec], list[TermSpec]]:
    """Refuse terms that cannot make a reward; loads no model, so it can run before anything starts.

    Args:
        summed: terms of the sum.
        watched: held-out terms.
        key: configuration key of all this, for the error.
        timeout_s: seconds the scorer will give a term.

    Returns:
        The same, each with its ``key``.

    Raises:
        ConfigError: no term, weights that sum to 0, a label used twice or with a slash, an unknown name, impossible
            parameters.
    """
    _check_weights(summed, key)
    labels = [spec.label for spec in (*summed, *watched)]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise ConfigError(key, f"labels {doubled} are used twice; give each use of a term a label of its own")
    divided = sorted(label for label in labels if "/" in label)
    if divided:
        # Such a label could be that of a number which another term logs beside its value.
        raise ConfigError(key, f"labels {divided} contain '/', which divides a term from what it logs")
    placed = {
        part: [spec if spec.key else replace(spec, key=f"{key}.{part}[{index}]") for index, spec in enumerate(specs)]
        for part, specs in (("terms", summed), ("held_out", watched))
    }
    for part, specs in placed.items():
        for spec in specs:
            term_class = get_reward(spec.name, f"{spec.key}.name")
            params_key = spec.params_key or f"{spec.key}.params"
            term_class.check_params(spec.params, params_key)
            term_class.check_timeout(spec.params, timeout_s, params_key)
            if spec.floor is not None:
                _check_floor(spec, term_class, held_out=part == "held_out")
    return placed["terms"], placed["held_out"]


def _check_floor(spec: TermSpec, term_class: type[RewardTerm], *, held_out: bool) -> None:
    assert spec.floor is not None
    if held_out:
        raise ConfigError(f"{spec.key}.floor", "a held-out term touches no sample's status; give it no floor")
    low, high = term_class.value_scale(spec.params).bounds
    if not low <= spec.floor <= high or not math.isfinite(spec.floor):
        message = f"must be a value of {spec.name}, in [{low:g}, {high:g}], got {spec.floor}"
        raise ConfigError(f"{spec.key}.floor", message)


def _gate(entry: _Entry, record: RewardRecord) -> RewardRecord:
    """The record, or INVALID where its value is worse than the term's floor."""
    if entry.floor is None or record.value is None:
        return record
    higher = entry.term.higher_is_better
    if record.value >= entry.floor if higher else record.value <= entry.floor:
        return record
    side = "below" if higher else "above"
    reason = f"{entry.label}: {record.value:g} is {side} its floor {entry.floor:g}"
    return RewardRecord.failed(Status.INVALID, reason, record.seconds)


def _check_weights(summed: Sequence[TermSpec], key: str) -> None:
    if not summed:
        raise ConfigError(f"{key}.terms", "needs at least one term")
    weights = [float(spec.weight) for spec in summed]
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"{key}.terms", f"weights must be finite, got {weights}")
    if 0.0 in weights:
        raise ConfigError(
            f"{key}.terms", f"a weight is 0 in {weights}; to record a term without rewarding it, hold it out"
        )
    if abs(math.fsum(weights)) <= 1e-12 * math.fsum(abs(weight) for weight in weights):
        raise ConfigError(f"{key}.terms", f"weights {weights} sum to 0: terms that agree would give no reward")

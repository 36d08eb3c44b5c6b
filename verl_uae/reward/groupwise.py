# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Terms whose value is relative to the group: scored once per step, over whole groups, and added to what is there.

A rank that draws holds whatever part of a group it was given, so these terms are scored by the trainer, from
reconstructions that the ranks send along as 8-bit pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_uae.reward.record import RewardRecord
from verl_uae.reward.registry import get_reward
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.scorer import RewardScorer, TermSpec, warn_of_held_out


def is_groupwise(spec: TermSpec) -> bool:
    """Whether a term is scored here rather than by the ranks.

    Raises:
        ConfigError: the term is not known.
    """
    return get_reward(spec.name, f"{spec.key}.name" if spec.key else "uae.reward.terms").groupwise


@dataclass(frozen=True, slots=True)
class _Part:
    label: str
    factor: float
    """Weight, negated where lower is better; 0 where held out."""
    held_out: bool
    scorer: RewardScorer


class GroupScorer:
    """Adds groupwise terms to the records of a step.

    Args:
        summed: groupwise terms of the sum.
        watched: held-out groupwise terms.
        timeout_s: seconds for each call of a term.
    """

    def __init__(self, summed: Sequence[TermSpec], watched: Sequence[TermSpec], timeout_s: float) -> None:
        self._parts = [
            self._build(spec, held, timeout_s) for specs, held in ((summed, False), (watched, True)) for spec in specs
        ]

    @staticmethod
    def _build(spec: TermSpec, held_out: bool, timeout_s: float) -> _Part:
        label = spec.label or spec.name
        alone = TermSpec(name=spec.name, params=spec.params, label=label, floor=spec.floor, key=spec.key)
        sign = 1.0 if get_reward(spec.name, spec.key).value_scale(spec.params).higher_is_better else -1.0
        return _Part(
            label, 0.0 if held_out else sign * spec.weight, held_out, RewardScorer([alone], timeout_s=timeout_s)
        )

    def score(self, batch: RewardBatch, records: Sequence[RewardRecord]) -> list[RewardRecord]:
        """Records with the groupwise terms in ``terms``, and added to ``value`` where they are part of the sum.

        A sample that had no value keeps its record and takes part in no comparison. One that gets no value from a
        summed term fails with that term's status; a held-out term costs nothing.

        Args:
            batch: samples in order, with groups; those without a value may hold any picture.
            records: what the other terms gave.
        """
        found = list(records)
        for part in self._parts:
            alive = [index for index, record in enumerate(found) if record.ok]
            if not alive:
                break
            scored = part.scorer.score(batch.take(alive))
            if part.held_out:
                warn_of_held_out(scored)
            for index, record in zip(alive, scored, strict=True):
                found[index] = _add(found[index], record, part)
        return found


def _add(record: RewardRecord, found: RewardRecord, part: _Part) -> RewardRecord:
    seconds = record.seconds + found.seconds
    terms: Mapping[str, float] = {**record.terms, **found.terms}
    if found.ok:
        assert record.value is not None
        value = record.value + part.factor * found.terms[part.label]
        return RewardRecord(value, record.status, terms, seconds)
    if part.held_out:
        return record
    return RewardRecord(None, found.status, record.terms, seconds, found.reason)

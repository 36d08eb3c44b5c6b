# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairwise preference: how often a judge prefers a reconstruction to the others of its group.

A judge that compares is often surer than one that gives marks. Within a group every member is compared with others, and
its value is the mean probability of being preferred, so the values of a fully compared group have the mean 1/2.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from verl_uae.data.images import to_pil
from verl_uae.errors import ConfigError
from verl_uae.reward.deadline import Call
from verl_uae.reward.function import CallingTerm, announce, check_call, own_copy
from verl_uae.reward.record import RewardBatch, RewardRecord, Status, as_number, describe
from verl_uae.reward.term import KNOWN_NEEDS
from verl_uae.settings import Rule
from verl_uae.user_code import load_source

#: The arguments of a comparison, all by keyword.
ARGUMENTS = ("source", "first", "second", "first_caption", "second_caption", "row")


class Comparison(NamedTuple):
    """One question: is the reconstruction at ``first`` better than the one at ``second``?"""

    first: int
    second: int


class Preference(CallingTerm):
    """Calls ``prefer(source, first, second, first_caption, second_caption, row, **params)`` for pairs of a group.

    ``source``, ``first`` and ``second`` are :class:`PIL.Image.Image` (RGB, 8 bit); ``row`` is the data row. The
    function returns the probability in [0, 1] that ``first`` is the better reconstruction of ``source`` (``True`` and
    ``False`` are 1 and 0; 0.5 is a tie). It may be a coroutine function; each call has an event loop of its own.

    The value of a sample is the mean over its comparisons that could be made; without any it fails with the reason of
    the first. With ``uae.decoder.seeds_per_caption`` above 1 the first picture of a caption is compared.

    Args:
        path: file, ``pkg://`` module or dotted module; see :func:`verl_uae.user_code.load_source`.
        name: function in it.
        params: extra keyword arguments, passed on unchanged.
        opponents: pairs for each member: with this many after it, around the group, so that each is compared with twice
            as many at most; None: all pairs.
        both_orders: ask about every pair in both orders, so that a preference for the first place cancels. Twice the
            calls: n (n - 1) for a whole group of n.
        num_threads: calls in flight. 1 for a function that is not thread-safe.

    Raises:
        ConfigError: where the file is refused, the function is missing, or it cannot be called as above.
    """

    needs = KNOWN_NEEDS
    bounds = (0.0, 1.0)
    pointwise = False
    groupwise = True

    def __init__(
        self,
        path: str,
        name: str = "prefer",
        params: Mapping[str, Any] | None = None,
        opponents: Annotated[int | None, Rule(at_least=1, why="null asks for all others")] = None,
        both_orders: bool = True,
        num_threads: Annotated[int, Rule(at_least=1)] = 8,
    ) -> None:
        key = "uae.reward.preference"
        source = load_source(path, f"{key}.path")
        function = getattr(source.module, name, None)
        if not callable(function):
            raise ConfigError(f"{key}.name", f"{source.path} has no function {name!r}")
        super().__init__(function, params or {}, "preference")
        clash = sorted(set(self._params).intersection(ARGUMENTS))
        if clash:
            raise ConfigError(f"{key}.params", f"{clash} are passed for every comparison and cannot be fixed here")
        try:
            check_call(function, ARGUMENTS, self._params)
        except TypeError as error:
            raise ConfigError(f"{key}.name", f"{source.path}: {error}") from error
        self.opponents, self.both_orders, self.num_threads = opponents, both_orders, num_threads
        announce(function, source.path, source.sha256)

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """Compare within every group; never raises for a sample.

        Raises:
            RewardError: too many abandoned calls are still running.
        """
        assert batch.groups is not None
        asked = comparisons(batch.groups, self.opponents, self.both_orders)
        calls = [functools.partial(self._call, batch, comparison) for comparison in asked]
        answers = [self._probability(call) for call in self.guard.map(self.label, calls, self.num_threads)]
        won: list[list[float]] = [[] for _ in range(len(batch))]
        lost: list[RewardRecord | None] = [None] * len(batch)
        for comparison, answer in zip(asked, answers, strict=True):
            for index, flip in ((comparison.first, False), (comparison.second, True)):
                if isinstance(answer, RewardRecord):
                    lost[index] = lost[index] or answer
                else:
                    won[index].append(1.0 - answer if flip else answer)
        return [self._value(*found) for found in zip(won, lost, strict=True)]

    def _call(self, batch: RewardBatch, comparison: Comparison) -> object:
        assert batch.captions is not None and batch.rows is not None
        first, second = comparison
        pair = {
            "source": to_pil(batch.source_B3HW[first]),
            "first": to_pil(batch.reconstruction_B3HW[first]),
            "second": to_pil(batch.reconstruction_B3HW[second]),
            "first_caption": batch.captions[first],
            "second_caption": batch.captions[second],
            "row": own_copy(batch.rows[first]),
        }
        return self.call(pair)

    def _probability(self, call: Call[object]) -> float | RewardRecord:
        failure = call.failure(self.label, self.guard.timeout_s)
        if failure is not None:
            return failure
        number = as_number(call.value)
        if number is not None and 0.0 <= number <= 1.0:
            return number
        return RewardRecord.failed(Status.INVALID, f"{self.label}: {describe(call.value)} is no probability in [0, 1]")

    def _value(self, won: Sequence[float], lost: RewardRecord | None) -> RewardRecord:
        if won:
            return RewardRecord(math.fsum(won) / len(won), Status.OK)
        return lost or RewardRecord.failed(Status.INVALID, f"{self.label}: no other member of the group has a picture")


def comparisons(groups: Sequence[str], opponents: int | None, both_orders: bool) -> list[Comparison]:
    """The questions of a batch, given the group of each sample; see :class:`Preference`."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    asked: list[Comparison] = []
    for indices in members.values():
        count = len(indices)
        reach = count - 1 if opponents is None else min(opponents, count - 1)
        pairs = {
            tuple(sorted((place, (place + step) % count))) for place in range(count) for step in range(1, reach + 1)
        }
        for number, (one, other) in enumerate(sorted(pairs)):
            # Asked about once, a pair is asked about in turns: no member stands first in all of its questions.
            first, second = (one, other) if both_orders or number % 2 == 0 else (other, one)
            asked.append(Comparison(indices[first], indices[second]))
            if both_orders:
                asked.append(Comparison(indices[second], indices[first]))
    return asked

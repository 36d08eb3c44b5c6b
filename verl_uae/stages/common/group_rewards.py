# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Groupwise rewards of a step: from the reconstructions that the ranks sent along to outcomes.

Shape legend: N samples, H W pixels.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from verl_uae.chain.records import Outcome
from verl_uae.data.images import to_tensor
from verl_uae.reward.build import build_group_scorer
from verl_uae.reward.isolate import CALL_PIXELS
from verl_uae.reward.record import RewardBatch, RewardRecord, Status


@dataclass(frozen=True, slots=True)
class Member:
    """What a comparison sees of a sample, beside its reconstruction."""

    group: str
    source: Image.Image
    """RGB."""
    caption: str
    row: Mapping[str, Any]


class GroupRewards:
    """Adds the groupwise terms of ``uae.reward.terms`` to outcomes, in the process of the trainer.

    Args:
        config: the composed configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        self.scorer = build_group_scorer(config)
        self.size = (config.uae.decoder.height, config.uae.decoder.width)

    @property
    def active(self) -> bool:
        """Whether there is a groupwise term, so that ranks must send their reconstructions."""
        return self.scorer is not None

    def add(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> list[Outcome]:
        """Outcomes with the groupwise terms, and without the reconstructions, which are needed no more.

        Pictures are decoded for as many groups at a time as a call may hold, one at least: those of a whole step may
        take more memory than the machine has.

        Args:
            outcomes: of all N samples of a step.
            members: the samples, in the same order.
        """
        found = list(outcomes)
        for places in _together([member.group for member in members], self.size):
            scored = self._add([outcomes[place] for place in places], [members[place] for place in places])
            for place, outcome in zip(places, scored, strict=True):
                found[place] = outcome
        return found

    def _add(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> list[Outcome]:
        """The same for whole groups."""
        assert self.scorer is not None
        records = [_record(entry) for entry in outcomes]
        size = (len(outcomes), 3, *self.size)
        source_N3HW, drawn_N3HW = torch.zeros(size), torch.zeros(size)
        for index, (entry, member) in enumerate(zip(outcomes, members, strict=True)):
            if not records[index].ok:
                continue
            if entry["reconstruction"] is None:
                records[index] = RewardRecord.failed(Status.ERROR, "the reconstruction was not sent to be compared")
                continue
            # Both were made by this run: the source has been drawn from, the reconstruction is its own PNG.
            source_N3HW[index] = to_tensor([member.source], self.size)[0]
            drawn_N3HW[index] = to_tensor([Image.open(io.BytesIO(entry["reconstruction"]))], self.size)[0]
        batch = RewardBatch(
            source_B3HW=source_N3HW,
            reconstruction_B3HW=drawn_N3HW,
            captions=[member.caption for member in members],
            rows=[member.row for member in members],
            groups=[member.group for member in members],
        )
        found = self.scorer.score(batch, records)
        return [_outcome(entry, record) for entry, record in zip(outcomes, found, strict=True)]


def _together(groups: Sequence[str], size: tuple[int, int]) -> list[list[int]]:
    """Places of samples, those of a group together, in parts of whole groups of :data:`CALL_PIXELS` or of one group."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    parts: list[list[int]] = [[]]
    for places in members.values():
        if parts[-1] and (len(parts[-1]) + len(places)) * size[0] * size[1] > CALL_PIXELS:
            parts.append([])
        parts[-1] += places
    return parts


def _record(entry: Outcome) -> RewardRecord:
    reason = None if entry["status"] == "ok" else entry["reason"] or entry["status"]
    return RewardRecord(entry["value"], Status(entry["status"]), entry["terms"], entry["seconds"], reason)


def _outcome(entry: Outcome, record: RewardRecord) -> Outcome:
    return {
        **entry,
        "value": record.value,
        "status": str(record.status),
        "reason": record.reason or "",
        "terms": dict(record.terms),
        "seconds": record.seconds,
        "reconstruction": None,
    }

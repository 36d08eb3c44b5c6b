# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Groupwise rewards of a step: from the reconstructions that the ranks sent along to outcomes.

Shape legend: N samples, H W pixels.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig
from PIL import Image

from verl_uae.chain.records import Outcome, Sample
from verl_uae.data.images import rgb, to_tensor
from verl_uae.reward.isolate import CALL_PIXELS
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.step import build_group_scorer


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

    def add(self, outcomes: Sequence[Outcome], samples: Sequence[Sample], groups: Sequence[str]) -> list[Outcome]:
        """Outcomes with the groupwise terms, and without the reconstructions, which are needed no more.

        Pictures are decoded for as many groups at a time as a call may hold, one at least: those of a whole step may
        take more memory than the machine has.

        Args:
            outcomes: of all N pictures of a step.
            samples: what each was drawn from.
            groups: group of each.
        """
        found = list(outcomes)
        for places in _together(groups, self.size):
            scored = self._add(
                [outcomes[place] for place in places],
                [samples[place] for place in places],
                [groups[place] for place in places],
            )
            for place, outcome in zip(places, scored, strict=True):
                found[place] = outcome
        return found

    def _add(self, outcomes: Sequence[Outcome], samples: Sequence[Sample], groups: Sequence[str]) -> list[Outcome]:
        """The same for whole groups."""
        assert self.scorer is not None
        records = [outcome.record for outcome in outcomes]
        size = (len(outcomes), 3, *self.size)
        source_N3HW, drawn_N3HW = torch.zeros(size), torch.zeros(size)
        for index, (outcome, sample) in enumerate(zip(outcomes, samples, strict=True)):
            if not outcome.record.ok:
                continue
            if outcome.reconstruction is None:
                records[index] = RewardRecord.failed(Status.ERROR, "the reconstruction was not sent to be compared")
                continue
            # Both were made by this run: the source has been drawn from, the reconstruction is its own PNG.
            source_N3HW[index] = to_tensor([rgb(sample.image)], self.size)[0]
            drawn_N3HW[index] = to_tensor([Image.open(io.BytesIO(outcome.reconstruction))], self.size)[0]
        batch = RewardBatch(
            source_B3HW=source_N3HW,
            reconstruction_B3HW=drawn_N3HW,
            captions=[sample.caption.text for sample in samples],
            rows=[sample.row for sample in samples],
            groups=list(groups),
        )
        found = self.scorer.score(batch, records)
        return [
            replace(outcome, record=record, reconstruction=None)
            for outcome, record in zip(outcomes, found, strict=True)
        ]


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

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a trainer makes of its rewards: groupwise terms, normalised terms, and the watch over the held-out ones.

Shape legend: N samples, H W pixels.
"""

from __future__ import annotations

import copy
import functools
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from verl_uae.chain.records import Outcome, Sample
from verl_uae.checkpoints.names import SIGNALS_FILE
from verl_uae.data.images import rgb, to_tensor
from verl_uae.errors import CheckpointError
from verl_uae.reward.isolate import CALL_PIXELS
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.step import build_composition, build_group_scorer, build_tripwire
from verl_uae.stages.common.outcomes import LosingSamples


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


class StageSignals:
    """Running statistics of the rewards of one stage.

    Args:
        config: the composed configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        self.composition = build_composition(config)
        self.tripwire = build_tripwire(config)

    def recompose(self, outcomes: Sequence[Outcome], groups: Sequence[str], *, remember: bool = True) -> list[Outcome]:
        """The outcomes with the value that trains: the same ones where no term is normalised.

        Takes the batch into the running statistics first.

        Args:
            outcomes: of all samples of a step.
            groups: group of each sample.
            remember: keep these statistics; else they are as before afterwards.
        """
        if not self.composition.active:
            return list(outcomes)
        composition = self.composition if remember else copy.deepcopy(self.composition)
        valid = [
            (outcome.record.terms, group) for outcome, group in zip(outcomes, groups, strict=True) if outcome.record.ok
        ]
        composition.learn([terms for terms, _ in valid])
        values = iter(composition.values([terms for terms, _ in valid], [group for _, group in valid]))
        return [
            replace(outcome, record=replace(outcome.record, value=next(values))) if outcome.record.ok else outcome
            for outcome in outcomes
        ]

    def metrics(self, outcomes: Sequence[Outcome], logged: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a step, and the tripwire's look at it.

        Args:
            outcomes: as the scorer gave them, before :meth:`recompose`.
            logged: metrics of the step so far, with the means of the terms.
        """
        values = [outcome.record.value for outcome in outcomes if outcome.record.value is not None]
        mean = sum(values) / len(values) if values else None
        found = {} if mean is None or not self.composition.active else {"reward/plain_sum/mean": mean}
        if self.tripwire is not None:
            means = {
                name.removeprefix("reward/").removesuffix("/mean"): value
                for name, value in logged.items()
                if name.startswith("reward/") and name.endswith("/mean")
            }
            flags = self.tripwire.update(mean, means)
            found.update({f"reward/tripwire/{label}": flag for label, flag in flags.items()})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        watch = None if self.tripwire is None else self.tripwire.state_dict()
        return {"moments": self.composition.state_dict(), "tripwire": watch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.composition.load_state_dict(state["moments"])
        if self.tripwire is not None and state["tripwire"] is not None:
            self.tripwire.load_state_dict(state["tripwire"])


class RewardSignals(LosingSamples):
    """Mixin of trainers that reward: groupwise terms, and one :class:`StageSignals` per stage, kept in checkpoints."""

    config: DictConfig
    _stages: dict[str, StageSignals] | None = None

    @functools.cached_property
    def group_rewards(self) -> GroupRewards:
        """The groupwise terms, the same for every stage."""
        return GroupRewards(self.config)

    def signals(self, stage: str) -> StageSignals:
        """Those of a stage, built at the first question; g4u and u4g draw differently and are not mixed."""
        if self._stages is None:
            self._stages = {}
        if stage not in self._stages:
            self._stages[stage] = StageSignals(self.config)
        return self._stages[stage]

    def side_state(self) -> dict:
        """The statistics, as plain data of its own."""
        return json.loads(json.dumps({stage: signals.state_dict() for stage, signals in (self._stages or {}).items()}))

    def restore_side_state(self, state: dict) -> None:
        """Inverse of :meth:`side_state`."""
        self._stages = None
        for stage, found in state.items():
            self.signals(stage).load_state_dict(found)

    def save_signals(self, folder: Path) -> None:
        """Write the statistics into a step folder."""
        (folder / SIGNALS_FILE).write_text(json.dumps(self.side_state(), allow_nan=False), encoding="utf-8")

    def load_signals(self, folder: Path) -> None:
        """Inverse of :meth:`save_signals`; a folder without the file leaves them fresh.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / SIGNALS_FILE
        if not path.is_file():
            return
        try:
            for stage, state in json.loads(path.read_text(encoding="utf-8")).items():
                self.signals(stage).load_state_dict(state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error

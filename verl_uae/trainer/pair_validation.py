# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Validation pictures of the supervised stages: given captions, drawn by the evaluation sampler and scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig
from PIL import Image

from verl_uae.data.images import to_tensor
from verl_uae.data.pairs import Pair
from verl_uae.errors import DataError
from verl_uae.rollout.chain import encode_jpeg
from verl_uae.rollout.policy import PolicySource
from verl_uae.trainer.outcomes import LosingSamples
from verl_uae.trainer.panel import PanelRow, PanelWriter
from verl_uae.trainer.supervisor import Supervisor

#: Micro-batches that every rank gets at once, between two moments at which a validation can be stopped.
MICRO_BATCHES = 8

_Item = TypeVar("_Item")


class PairValidation(LosingSamples):
    """Mixin of trainers with decoder workers."""

    config: DictConfig
    global_steps: int
    panels: PanelWriter
    policy: Any
    logger: Any
    supervisor: Supervisor

    def in_parts(self, items: Sequence[_Item]) -> Iterator[tuple[int, Sequence[_Item]]]:
        """Number of the first, and items, of what the ranks get at once: whole micro-batches of each, but at the end.

        Raises:
            StoppedError: the run was asked to stop.
        """
        size = MICRO_BATCHES * self.policy.ranks * self.config.uae.policy.micro_batch_size
        for first in range(0, len(items), size):
            self.supervisor.boundary(f"validation, pair {first} of {len(items)}")
            yield first, items[first : first + size]

    def validate_pictures(self, sources: Sequence[PolicySource]) -> dict[str, float]:
        """Mean reward and terms of the pictures that have one, share without, and a panel of the first."""
        probes = min(self.config.uae.panel.probes, len(sources))
        outcomes: list[dict[str, Any]] = []
        for first, part in self.in_parts(sources):
            outcomes += self.policy.evaluate(part, max(0, probes - first))
        self.losses.tell(outcomes)
        columns: dict[str, list[float]] = defaultdict(list)
        for entry in outcomes:
            if entry["status"] == "ok":
                columns["reward"].append(entry["value"])
                for term, value in entry["terms"].items():
                    columns[f"term_{term}"].append(value)
        metrics = {f"val-aux/{name}/mean": sum(values) / len(values) for name, values in columns.items()}
        if "reward" in columns:
            metrics["val-core/reward/mean"] = metrics.pop("val-aux/reward/mean")
        metrics["val-aux/uae/invalid_frac"] = sum(entry["status"] != "ok" for entry in outcomes) / len(outcomes)
        decoder = self.config.uae.decoder
        rows = [
            PanelRow(
                encode_jpeg(to_tensor([source.image], (decoder.height, decoder.width))[0]),
                source.caption,
                entry["picture"],
                entry["value"],
                dict(entry["terms"]),
            )
            for source, entry in zip(sources, outcomes, strict=True)
            if entry["picture"]
        ]
        if rows:
            self.panels.write(self.global_steps, rows, self.logger)
        return metrics


def policy_sources_of_pairs(pairs: Sequence[Pair]) -> list[PolicySource]:
    """Pairs as what the decoder's workers draw and score; one that does not decode has no score."""
    sources = []
    for pair in pairs:
        row = {"data_source": "pairs", "ground_truth": None, "extra_info": {"caption": pair.caption}}
        try:
            sources.append(PolicySource(pair.decode(), pair.identity, pair.caption, row=row))
        except DataError as error:
            blank = Image.new("RGB", (1, 1))
            sources.append(PolicySource(blank, pair.identity, pair.caption, str(error), "error", row))
    return sources

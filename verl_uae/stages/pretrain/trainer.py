# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training of the decoder: flow matching on pairs of picture and long caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from verl.trainer.ppo.v1 import register_trainer

from verl_uae.data.pairs import Pair
from verl_uae.stages.common.pairs import PairTrainer, samples_of_pairs
from verl_uae.stages.pretrain.worker import PretrainWorker


@register_trainer("uae_pretrain")
class PretrainTrainer(PairTrainer):
    """verl's training loop around flow matching."""

    worker = PretrainWorker

    @property
    def prefetched(self) -> int:
        """Batches that the workers get before their step."""
        return int(self.config.uae.pretrain.prefetch)

    def _validate(self) -> dict[str, float]:
        pairs = self.held_out_pairs()
        metrics = self.validate_pictures(samples_of_pairs(pairs)) | self._held_out_losses(pairs)
        self.note_validation(metrics)
        return metrics

    def _held_out_losses(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Mean loss, and the loss per noise level, at the base size."""
        decoder = self.config.uae.decoder
        size, rows = (decoder.height, decoder.width), []
        for first, part in self.in_parts(pairs):
            answers = self.learner.call("held_out_losses", ray.put(list(part)), size, first)
            rows += [row for answer in answers for row in answer if row is not None]
        if not rows:
            return {}
        levels: list[Any] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        count = len(levels)
        named = {f"val-aux/flow_loss/sigma_{(i + 0.5) / count:.3f}": value for i, value in enumerate(levels)}
        return {"val-core/flow_loss": sum(levels) / count, **named}

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cold start: captioner and decoder learn together from the semantic reconstruction loss."""

from __future__ import annotations

from pathlib import Path

from verl.trainer.ppo.v1 import register_trainer

from verl_uae.checkpoints.names import CAPTIONER, CAPTIONER_STATE
from verl_uae.stages.cold_start.worker import ColdStartWorker
from verl_uae.stages.common.pairs import PairTrainer, samples_of_pairs


@register_trainer("uae_cold_start")
class ColdStartTrainer(PairTrainer):
    """verl's training loop around the differentiable sampler."""

    worker = ColdStartWorker

    def save_decoder(self, folder: Path) -> None:
        """The decoder's part, the captioner's, and the captioner as a transformers folder."""
        super().save_decoder(folder)
        self.learner.call("save_captioner", str(folder / CAPTIONER_STATE), self.global_steps)
        self.learner.call("export_captioner", str(folder / CAPTIONER))

    def load_decoder(self, folder: Path) -> None:
        """Inverse of :meth:`save_decoder`."""
        super().load_decoder(folder)
        self.learner.call("load_captioner", str(folder / CAPTIONER_STATE))

    def _validate(self) -> dict[str, float]:
        metrics = self.validate_pictures(samples_of_pairs(self.held_out_pairs()))
        self.note_validation(metrics)
        return metrics

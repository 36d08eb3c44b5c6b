# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Controls of the tests with vLLM: workers with one fault each, which nothing but those tests would notice."""

from __future__ import annotations

from typing import Any

from verl_uae.caption_server.vllm_cpu import CpuWorkerExtension


class DiscardWeights(CpuWorkerExtension):
    """Goes through the whole transfer; vLLM keeps sampling from the weights it read from disk."""

    def _update_weights(self, weights: Any, *args: Any, **kwargs: Any) -> None: ...


class BlindPictures(CpuWorkerExtension):
    """Loads every weight, but sees every picture as one colour.

    What verl's default ``load_format=dummy`` comes to, which the plugin refuses: vLLM's image mean and std are in no
    checkpoint, so no update would mend them.
    """

    def _update_weights(self, *args: Any, **kwargs: Any) -> None:
        super()._update_weights(*args, **kwargs)
        for buffer in self.model_runner.model.visual.input_norm.buffers():
            buffer.zero_()

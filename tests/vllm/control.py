# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Control of the weight-transfer test: a vLLM worker that receives every weight and loads none."""

from __future__ import annotations

from typing import Any

from verl_uae.rollout.vllm_cpu import CpuWorkerExtension


class DiscardWeights(CpuWorkerExtension):
    """Goes through the whole transfer; vLLM keeps sampling from the weights it read from disk."""

    def _update_weights(self, weights: Any, *args: Any, **kwargs: Any) -> None: ...

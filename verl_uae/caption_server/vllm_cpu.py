# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Worker extension that lets vLLM's CPU backend receive new weights.

Runs inside vLLM's worker processes; named by ``actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls``
(``hardware=cpu_vllm`` sets it). Importing this module needs vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils as layer_utils
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """verl's worker extension, with the weights of linear layers kept as they are."""

    def __new__(cls, **kwargs: Any) -> CpuWorkerExtension:
        # Before the model is built: verl makes the extension together with the worker.
        layer_utils.dispatch_cpu_unquantized_gemm = keep_plain_weight
        return super().__new__(cls, **kwargs)


def keep_plain_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Compute ``layer`` with its own weight; stands in for ``dispatch_cpu_unquantized_gemm`` of vLLM 0.30.

    vLLM packs the weight for oneDNN and leaves an empty tensor in its place (``remove_weight``), so the first weight
    update fails with "Attempted to load weight ... into parameter [0]"; where it keeps the tensor (the output
    layer), an update would change a copy that nobody reads.
    """
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

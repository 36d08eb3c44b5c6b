# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Worker extension that lets vLLM's CPU backend receive new weights, and sleep.

Runs inside vLLM's worker processes; named by ``actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls``
(``hardware=cpu_vllm`` sets it). Importing this module needs vLLM.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import vllm.model_executor.layers.utils as layer_utils
import vllm.v1.worker.cpu_worker as worker_module
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """verl's worker extension, with the weights of linear layers kept as they are, and a sleep that frees the cache."""

    def __new__(cls, **kwargs: Any) -> CpuWorkerExtension:
        # Before the model is built: verl makes the extension together with the worker.
        layer_utils.dispatch_cpu_unquantized_gemm = keep_plain_weight
        # An extension may not have methods of the worker's names itself.
        worker_module.CPUWorker.sleep = free_cache
        worker_module.CPUWorker.wake_up = restore_cache
        return super().__new__(cls, **kwargs)


def keep_plain_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Compute ``layer`` with its own weight; stands in for ``dispatch_cpu_unquantized_gemm`` of vLLM 0.30.

    vLLM packs the weight for oneDNN and leaves an empty tensor in its place (``remove_weight``), so the first weight
    update fails with "Attempted to load weight ... into parameter [0]"; where it keeps the tensor (the output
    layer), an update would change a copy that nobody reads.
    """
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]


def free_cache(worker: Any, level: int = 1) -> None:
    """Free the cache of keys and values; stands in for ``CPUWorker.sleep`` of vLLM 0.30, which does nothing.

    The weights stay where they are at any level: sleep brings them to host memory.
    """
    storages = [cache.untyped_storage() for cache in worker.model_runner.kv_caches]
    worker.uae_cache_bytes = [storage.nbytes() for storage in storages]
    for storage in storages:
        storage.resize_(0)


def restore_cache(worker: Any, tags: Collection[str] | None = None) -> None:
    """Undo :func:`free_cache`, without what was in the cache; stands in for ``CPUWorker.wake_up``.

    Args:
        worker: vLLM's.
        tags: what is woken, ``weights`` and ``kv_cache``; None is all.
    """
    if tags is None or "kv_cache" in tags:
        for cache, size in zip(worker.model_runner.kv_caches, worker.uae_cache_bytes, strict=True):
            cache.untyped_storage().resize_(size)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that hold what trains: frozen weights are those of the model the run started from.

With adapters that is less than a hundredth of the model. verl saves all weights, or with ``save_lora_only`` adapters
alone, without a projector that is trained beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.distributed.tensor import DTensor
from verl.base_config import BaseConfig
from verl.utils.fsdp_utils import get_fsdp_state_ctx, load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from verl_uae.checkpoints.decoder import Base
from verl_uae.checkpoints.names import BASE_FILE
from verl_uae.checkpoints.shards import load_tensors, model_file, plain_name
from verl_uae.engines.shadow import local_shards, reshard
from verl_uae.engines.together import together
from verl_uae.errors import CheckpointError

_MODEL = "model"


@dataclass
class TrainedModelConfig(BaseConfig):
    """Model section of an engine of ours; verl's own ``HFModelConfig`` would load a tokenizer."""

    _mutable_fields = BaseConfig._mutable_fields | {"model_type"}

    path: str = ""
    """Folder or hub id."""
    model_type: str = ""
    """Selects the engine."""
    lora_rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    lora_alpha: int = 64
    lora_target_modules: list[str] = field(default_factory=list)
    """Endings of module names that get an adapter."""
    lora_seed: int = 0
    """Names the adapters' initial values."""
    enable_gradient_checkpointing: bool = False

    # Read by verl's engine; they mean nothing here.
    use_remove_padding: bool = False
    use_fused_kernels: bool = False
    enable_activation_offload: bool = False
    trust_remote_code: bool = False
    lora: dict[str, Any] = field(default_factory=dict)

    def get_processor(self) -> None:
        """Nothing for verl to save beside the weights."""
        return None


class TrainedWeightsEngine(FSDPEngine):
    """verl's engine; of the weights its checkpoints hold the trained ones and what base the others are of, and of
    optimiser and schedule what verl writes."""

    model_config: Any

    def initialize(self) -> None:
        """Build module and optimiser."""
        super().initialize()
        manager = self.checkpoint_manager
        self._saves, self._loads = manager.should_save_model, manager.should_load_model
        for name in ("checkpoint_save_contents", "checkpoint_load_contents"):
            setattr(manager, name, [part for part in getattr(manager, name) if part != _MODEL])

    @property
    def base_parts(self) -> tuple[str, ...]:
        """Subfolders of the base that hold its weights."""
        return (".",)

    @functools.cached_property
    def base(self) -> Base | None:
        """The model that the run started from, read once for its digest; None where all of its weights train."""
        if all(weight.requires_grad for weight in self.module.parameters()):
            return None
        return Base.of(self.model_config.path, self.base_parts)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's checkpoint, and this rank's shards of the trained weights as verl names and lays them out."""
        reshard(self.module)
        super().save_checkpoint(local_path, *args, **kwargs)
        if not self._saves:
            return
        with self._sharded_state() as state:
            trained = _trained_names(self.module)
            chosen = {name: tensor.cpu() for name, tensor in state.items() if plain_name(name) in trained}
            with together(lambda text: CheckpointError(local_path, text)):
                torch.save(chosen, self._model_file(local_path))
                if self.rank == 0 and self.base is not None:
                    self.base.write(Path(local_path))

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Inverse of :meth:`save_checkpoint`, on as many ranks. Frozen weights beside the trained ones, as verl's own
        checkpoints hold them, have to be the module's.

        Raises:
            CheckpointError: weights are missing, of another shape or layout, or of another base.
        """
        with together(lambda text: CheckpointError(local_path, text)):
            recorded = Base.read(Path(local_path)) if self.rank == 0 and self._loads else None
            if recorded is not None and self.base is not None:
                recorded.check(self.base, Path(local_path))
        reshard(self.module)
        super().load_checkpoint(local_path, *args, **kwargs)
        if self._loads:
            fsdp1 = isinstance(self.module, FullyShardedDataParallel)
            with together(lambda text: CheckpointError(local_path, text)):
                # Rank 0 alone writes and reads what the checkpoint says of its base.
                path = self._model_file(local_path)
                saved, trained = self._read_trained(path, knows_base=self.rank != 0 or recorded is not None)
                if not fsdp1:
                    self._load_shards({plain_name(name): tensor for name, tensor in saved.items()}, trained, path)
            if fsdp1:
                # Ranks gather here: one whose file is bad would leave the others waiting.
                self._load_fsdp1(saved, path)

    def _read_trained(self, path: Path, *, knows_base: bool) -> tuple[dict[str, Any], set[str]]:
        """What this rank's file holds, by the names in it, and the names of the trained weights."""
        saved = load_tensors(path)
        trained, names = _trained_names(self.module), {plain_name(name) for name in saved}
        missing = sorted(trained - names)
        if missing:
            raise CheckpointError(path, f"{len(missing)} trained weights are missing: {missing[:4]}")
        frozen = {plain_name(name) for name, _ in self.module.named_parameters()} - trained
        if not knows_base and not frozen <= names:
            raise CheckpointError(
                path.parent / BASE_FILE,
                f"missing: {len(frozen - names)} frozen weights are not in the checkpoint, and nothing says of which "
                "model they are; take another step folder, or a whole copy of this one",
            )
        return saved, trained

    @torch.no_grad()
    def _load_shards(self, saved: dict[str, Any], trained: set[str], path: Path) -> None:
        held = {plain_name(name): tensor for name, tensor in self.module.state_dict().items()}
        unknown = sorted(set(saved) - set(held))
        if unknown:
            raise CheckpointError(path, f"{len(unknown)} weights have no place in the model: {unknown[:4]}")
        for name, tensor in saved.items():
            if _layout(tensor) != _layout(held[name]):
                raise CheckpointError(path, f"{name} is laid out as {_layout(tensor)}, not {_layout(held[name])}")
            if name not in trained and not torch.equal(_local(held[name]).cpu(), _local(tensor)):
                raise CheckpointError(path, f"{name} is frozen and another than the model's: it is of another base")
        for name, local in local_shards(self.module).items():
            local.copy_(_local(saved[name]))

    def _load_fsdp1(self, saved: dict[str, Any], path: Path) -> None:
        with self._sharded_state():
            unknown = self.module.load_state_dict(saved, strict=False).unexpected_keys
        if unknown:
            raise CheckpointError(path, f"{len(unknown)} weights have no place in the model: {unknown[:4]}")

    @contextmanager
    def _sharded_state(self) -> Iterator[dict[str, Tensor]]:
        """State of the module in shards; FSDP1 wants its weights on the device for that."""
        first = isinstance(self.module, FullyShardedDataParallel)
        if first and self.is_param_offload_enabled:
            load_fsdp_model_to_gpu(self.module)
        settings = ShardedStateDictConfig(offload_to_cpu=True), ShardedOptimStateDictConfig(offload_to_cpu=True)
        with get_fsdp_state_ctx(self.module, StateDictType.SHARDED_STATE_DICT, *settings):
            reshard(self.module)
            yield self.module.state_dict()
        if first and self.is_param_offload_enabled:
            offload_fsdp_model_to_cpu(self.module)

    def _model_file(self, folder: str) -> Path:
        return model_file(Path(folder), torch.distributed.get_world_size(), torch.distributed.get_rank())


def _trained_names(module: torch.nn.Module) -> set[str]:
    return {plain_name(name) for name, weight in module.named_parameters() if weight.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """What has to be the same for shards to be exchanged."""
    if not isinstance(tensor, DTensor):
        return tuple(tensor.shape), tensor.dtype
    return tuple(tensor.shape), tensor.dtype, tuple(tensor.placements), tuple(tensor.device_mesh.shape)

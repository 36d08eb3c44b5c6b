# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What verl's FSDP engine wants to know about the decoder as a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.base_config import BaseConfig

from verl_uae.engines.lora import DEFAULT_TARGETS

#: Value of a training worker's ``model_type`` that selects the decoder's engine.
MODEL_TYPE = "uae_decoder"


@dataclass
class PolicyModelConfig(BaseConfig):
    """Model section of the decoder's engine; verl's own ``HFModelConfig`` would load a tokenizer."""

    _mutable_fields = BaseConfig._mutable_fields | {"model_type"}

    path: str = ""
    """Decoder folder."""
    model_type: str = MODEL_TYPE
    lora_rank: int = 0
    """Rank of the adapters; 0 trains all weights of the transformer."""
    lora_alpha: int = 64
    lora_target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """Endings of module names of the transformer that get an adapter."""
    lora_seed: int = 0
    """Names the adapters' initial values."""
    train_transformer: bool = True
    """Train the transformer: its adapters, or all of it at rank 0."""
    train_projector: bool = False
    """Train the projector too, all of its weights."""
    enable_gradient_checkpointing: bool = False
    shadows: list[str] = field(default_factory=list)
    """Names of weight copies to keep, such as ``ema`` and ``old``; all start as the initial weights."""
    keep_reference: bool = False
    """Keep what ``reference()`` needs: a copy of the weights where switching the adapters off is not enough."""

    # Read by verl's engine; they mean nothing here.
    use_remove_padding: bool = False
    use_fused_kernels: bool = False
    enable_activation_offload: bool = False
    trust_remote_code: bool = False
    lora: dict[str, Any] = field(default_factory=dict)

    def get_processor(self) -> None:
        """Nothing to save beside the weights."""
        return None

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Projector from language-model states to the cross-stream text width of the MM-DiT.

Shape legend: B samples, L text positions, E language-model width, F text width of the MM-DiT, P pooled width.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class Projector(ModelMixin, ConfigMixin):
    """Linear - GELU - Linear, plus the constant pooled vector.

    The layout is the released model's (2048 -> 8192 -> 4096 for Qwen2.5-VL-3B and SD3.5-Large). SD3 also wants
    a pooled CLIP vector; the method uses the one of the empty prompt for every picture, so it is stored here as
    a buffer and no CLIP or T5 is loaded.

    Args:
        in_dim: E, hidden size of the language model.
        hidden_dim: width between the two layers.
        out_dim: F, ``joint_attention_dim`` of the transformer.
        pooled_dim: P, ``pooled_projection_dim`` of the transformer.
    """

    pooled: Tensor

    @register_to_config
    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
        self.register_buffer("pooled", torch.zeros(pooled_dim))

    def forward(self, states_BLE: Tensor) -> Tensor:
        """Project states of shape (B, L, E) to (B, L, F)."""
        return self.layers(states_BLE)

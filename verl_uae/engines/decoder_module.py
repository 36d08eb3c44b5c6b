# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's trainable half, transformer and what stands in front of it, as one module with one forward, for FSDP.

Shape legend: B samples, C H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import CONFIG
from verl_uae.engines.trained import TrainedModelConfig
from verl_uae.families import family_of
from verl_uae.families.family import Condition, DecoderFamily

#: Value of a training worker's ``model_type`` that selects the decoder's engine.
MODEL_TYPE = "uae_decoder"


@dataclass
class DecoderModelConfig(TrainedModelConfig):
    """Model section of the decoder's engine."""

    model_type: str = MODEL_TYPE
    lora_target_modules: list[str] | None = None  # type: ignore[assignment]
    """Endings of module names of the transformer that get an adapter; None are those of the family."""
    compile_blocks: bool = False
    """Compile the blocks of the transformer."""
    train_transformer: bool = True
    """Train the transformer: its adapters, or all of it at rank 0."""
    train_projector: bool = False
    """Train the projector too, all of its weights."""
    shadows: list[str] = field(default_factory=list)
    """Names of weight copies to keep, such as ``ema`` and ``old``; all start as the initial weights."""
    keep_reference: bool = False
    """Keep what ``reference()`` needs: a copy of the weights where switching the adapters off is not enough."""


class Uncast:
    """Carries a tensor through FSDP, which casts every floating-point argument it sees to its compute dtype.

    FSDP looks into tuples, dicts and dataclasses, so this is none of them. In bf16, 1000 * sigma is off by up to 2.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedConfig:
    """The module's ``config`` as verl's checkpoint manager knows it: something that can be written to a folder."""

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._texts = {name: module.to_json_string() for name, module in modules.items()}

    def save_pretrained(self, folder: str) -> None:
        """Write ``config.json`` of every part into its subfolder."""
        for name, text in self._texts.items():
            part = Path(folder) / name
            part.mkdir(parents=True, exist_ok=True)
            (part / CONFIG).write_text(text, encoding="utf-8")


class DecoderModule(nn.Module):
    """The velocity model, as one unit for FSDP.

    Args:
        family: of the decoder.
        modules: every component that its :attr:`~verl_uae.families.family.DecoderFamily.trained` names, by its folder.
    """

    transformer: Any

    def __init__(self, family: DecoderFamily, modules: Mapping[str, Any]) -> None:
        super().__init__()
        self.family = family
        for part, name in family.trained.items():
            setattr(self, part, modules[name])
        self.config = SavedConfig(modules)
        # The units FSDP shards and gathers one by one.
        self._no_split_modules = family.wrap_blocks(self.transformer)

    @classmethod
    def from_pretrained(
        cls, path: str, *, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False, empty: bool = False
    ) -> DecoderModule:
        """Load from a decoder folder what trains of it.

        Args:
            path: the folder or hub id.
            dtype: of the weights.
            gradient_checkpointing: recompute the activations of every block in the backward pass.
            empty: build it on the device ``meta`` from the configurations alone, for ranks that are sent the weights.

        Raises:
            CheckpointError: the folder is not a decoder's.
        """
        family = family_of(path)
        family.check(path)
        kinds = {name: family.components[name] for name in family.trained.values()}
        if empty:
            # Not torch.device("meta"): what a module computes once, such as rotary frequencies, is no weight that would
            # be sent.
            with init_empty_weights(include_buffers=False):
                modules = {name: _from_config(kind, path, name) for name, kind in kinds.items()}
            if dtype != torch.float32:
                modules = {name: module.to(dtype) for name, module in modules.items()}
        else:
            modules = {name: load_model(kind, path, subfolder=name, dtype=dtype) for name, kind in kinds.items()}
        module = cls(family, modules)
        if gradient_checkpointing:
            module.transformer.enable_gradient_checkpointing()
        return module

    def can_generate(self) -> bool:
        """Asked by verl's checkpoint manager; this is no language model."""
        return False

    def train_parts(self, *, transformer: bool, projector: bool) -> None:
        """Say which weights are trained; never those that no velocity passes through.

        Args:
            transformer: all weights of the transformer.
            projector: all weights of what stands in front of it.
        """
        for part in self.family.trained:
            getattr(self, part).requires_grad_(transformer if part == "transformer" else projector)
        for name, weight in self.transformer.named_parameters():
            if name.startswith(self.family.frozen):
                weight.requires_grad_(False)

    def forward(
        self,
        x_BCHW: Tensor,
        sigma_B: Tensor | Uncast,
        condition: Condition,
        negative: Condition | None = None,
        guidance: float = 1.0,
        calls: int = 1,
    ) -> Tensor:
        """Velocity at noise level sigma, see :meth:`~verl_uae.families.family.DecoderFamily.field`.

        Args:
            x_BCHW: latents of B pictures, or of K * B rows at K places.
            sigma_B: noise levels in (0, 1], fp32; in :class:`Uncast` where FSDP computes in another dtype.
            condition: of B pictures.
            negative: condition of the unconditional branch, 1 or B rows; needed if guidance != 1.
            guidance: scale; 1 is off.
            calls: least number of calls of the transformer.

        Returns:
            Shape of ``x_BCHW``, fp32.

        Raises:
            TypeError: sigma is not fp32.
            ValueError: guidance without a negative condition.
        """
        sigma_B = sigma_B.tensor if isinstance(sigma_B, Uncast) else sigma_B
        if sigma_B.dtype != torch.float32:
            raise TypeError(f"sigma must be torch.float32, got {sigma_B.dtype} (wrap it in Uncast)")
        return self.family.field(self, condition, negative, guidance, calls)(x_BCHW, sigma_B)


def _from_config(kind: Any, path: str, subfolder: str) -> Any:
    return kind.from_config(kind.load_config(path, subfolder=subfolder))

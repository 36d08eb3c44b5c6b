# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's trainable half: projector and MM-DiT as one module with one forward, for FSDP.

Shape legend: B samples, L text positions, E language-model width, C H W latents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from verl_uae.chain.decoder import Decoder, velocity, with_negative
from verl_uae.checkpoints.names import CONDITIONER, CONFIG, TRANSFORMER
from verl_uae.engines.trained import TrainedModelConfig
from verl_uae.families.sd3 import Projector
from verl_uae.flow.ode import guided
from verl_uae.stages.common.config import DEFAULT_TARGETS

#: Value of a training worker's ``model_type`` that selects the decoder's engine.
MODEL_TYPE = "uae_decoder"


@dataclass
class DecoderModelConfig(TrainedModelConfig):
    """Model section of the decoder's engine."""

    model_type: str = MODEL_TYPE
    lora_target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """Endings of module names of the transformer that get an adapter."""
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

    def __init__(self, transformer: SD3Transformer2DModel, projector: Projector) -> None:
        self._texts = {TRANSFORMER: transformer.to_json_string(), CONDITIONER: projector.to_json_string()}

    def save_pretrained(self, folder: str) -> None:
        """Write ``config.json`` of transformer and projector into their subfolders."""
        for name, text in self._texts.items():
            part = Path(folder) / name
            part.mkdir(parents=True, exist_ok=True)
            (part / CONFIG).write_text(text, encoding="utf-8")


class DecoderModule(nn.Module):
    """The velocity model, as one unit for FSDP.

    Args:
        transformer: MM-DiT, v = eps - x_0.
        projector: condition states -> text stream of the transformer.
    """

    def __init__(self, transformer: SD3Transformer2DModel, projector: Projector) -> None:
        super().__init__()
        self.transformer = transformer
        self.projector = projector
        self.config = SavedConfig(transformer, projector)
        # The units FSDP shards and gathers one by one.
        self._no_split_modules = list(transformer._no_split_modules)

    @classmethod
    def from_pretrained(
        cls, path: str, *, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False, empty: bool = False
    ) -> DecoderModule:
        """Load from a decoder folder as :meth:`verl_uae.chain.decoder.Decoder.from_pretrained` does, without VAE.

        Args:
            path: the folder.
            dtype: of the weights.
            gradient_checkpointing: recompute the activations of every block in the backward pass.
            empty: build it on the device ``meta`` from the configurations alone, for ranks that are sent the weights.

        Raises:
            CheckpointError: the folder is not a decoder's.
        """
        if empty:
            with torch.device("meta"):
                transformer = _from_config(SD3Transformer2DModel, path, TRANSFORMER).to(dtype)
                projector = _from_config(Projector, path, CONDITIONER).to(dtype)
        else:
            decoder = Decoder.from_pretrained(path, dtype=dtype)
            transformer, projector = decoder.transformer, decoder.projector
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        return cls(transformer, projector)

    def can_generate(self) -> bool:
        """Asked by verl's checkpoint manager; this is no language model."""
        return False

    def forward(
        self,
        x_BCHW: Tensor,
        sigma_B: Tensor | Uncast,
        states_BLE: Tensor,
        negative_BLE: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Velocity at noise level sigma, with classifier-free guidance v_u + guidance (v_c - v_u) if asked for.

        Both branches run as one batch of 2B rows, and the gradient goes through both.

        Args:
            x_BCHW: latents.
            sigma_B: noise levels in (0, 1], fp32; in :class:`Uncast` where FSDP computes in another dtype.
            states_BLE: condition.
            negative_BLE: condition of the unconditional branch, shape (1 or B, L, E); needed if guidance != 1.
            guidance: scale; 1 is off.

        Returns:
            Shape of ``x_BCHW``, fp32.

        Raises:
            TypeError: sigma is not fp32.
            ValueError: guidance without a negative condition.
        """
        sigma_B = sigma_B.tensor if isinstance(sigma_B, Uncast) else sigma_B
        if sigma_B.dtype != torch.float32:
            raise TypeError(f"sigma must be torch.float32, got {sigma_B.dtype} (wrap it in Uncast)")
        both = with_negative(states_BLE, negative_BLE, guidance)

        def field(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            # The projector's weights are gathered by now, in the dtype that is computed in.
            text_BLF = self.projector(both.to(self.transformer.pos_embed.proj.weight.dtype))
            return velocity(self.transformer, self.projector.pooled, x_BCHW, sigma_B, text_BLF)

        return guided(field, guidance)(x_BCHW, sigma_B)


def _from_config(kind: Any, path: str, subfolder: str) -> Any:
    return kind.from_config(kind.load_config(path, subfolder=subfolder))

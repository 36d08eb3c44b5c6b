# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of an SD3 transformer, by formula from its diffusers config.

A multiply-add counts as two. Counted are matrix products and attention; norms, activations and modulations are not.

Shape legend: I image tokens, T text tokens, d width of the transformer, R rank of the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Width of the sinusoidal time embedding of diffusers' SD3 transformer.
TIME_WIDTH = 256


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward pass of one sample, by what a backward pass does with them."""

    tokens: float
    """Linear layers that every token of their stream visits, inside the blocks and at the output."""
    attention: float
    """Both products of every attention."""
    embedding: float
    """Patch and text embedding: nothing before them takes a gradient."""
    sample: float
    """Modulations (adaLN) and time embedding: once per sample, whatever its number of tokens."""
    adapters: float
    """LoRA."""

    @property
    def forward(self) -> float:
        """One forward pass of one sample."""
        return self.tokens + self.attention + self.embedding + self.sample + self.adapters

    def backward(self, *, all_weights: bool) -> float:
        """The backward pass without recomputation.

        Args:
            all_weights: every weight takes a gradient, twice the forward pass; else the adapters alone do, and frozen
                layers only pass the gradient on. The first block is counted in full, which is a little too much.
        """
        if all_weights:
            return 2.0 * (self.forward - self.embedding) + self.embedding
        return self.tokens + 2.0 * self.attention + 2.0 * self.adapters


def count_flops(config: Mapping[str, Any], latent_size: int, text_tokens: int, lora_rank: int = 0) -> Flops:
    """Operations for a square latent of ``latent_size`` a side and a text of fixed length.

    Args:
        config: of an SD3Transformer2DModel.
        latent_size: side of the latent, a multiple of the patch size.
        text_tokens: T.
        lora_rank: R of adapters on the eight attention projections; 0 for none.
    """
    d = config["num_attention_heads"] * config["attention_head_dim"]
    patch, layers = config["patch_size"], config["num_layers"]
    image, text = (latent_size // patch) ** 2, text_tokens
    dual = len([index for index in config["dual_attention_layers"] if index < layers])
    # The last block has neither an output projection nor an MLP for the text.
    text_ways = 4 * layers - 1
    linear = image * (4 * layers + 4 * dual) + text * text_ways
    mlp = 8 * image * layers + 8 * text * (layers - 1)
    output = image * patch**2 * config["out_channels"] / d
    modulation = (6 * layers + 3 * dual) + 6 * (layers - 1) + 2 + 2
    time_text = TIME_WIDTH + d + config["pooled_projection_dim"] + d
    return Flops(
        tokens=2.0 * d**2 * (linear + mlp + output),
        attention=4.0 * d * (layers * (image + text) ** 2 + dual * image**2),
        embedding=2.0 * d * (image * patch**2 * config["in_channels"] + text * config["joint_attention_dim"]),
        sample=2.0 * d * (modulation * d + time_text),
        adapters=4.0 * d * lora_rank * (4 * image * layers + text * text_ways),
    )


def policy_flops(flops: Flops, *, steps: int, window: int, all_weights: bool) -> tuple[float, float]:
    """(sampling, update) of one picture without guidance: what must be computed, recomputation left out.

    Args:
        flops: of one forward pass.
        steps: denoising steps.
        window: trained steps.
        all_weights: see :meth:`Flops.backward`.
    """
    return steps * flops.forward, window * (flops.forward + flops.backward(all_weights=all_weights))

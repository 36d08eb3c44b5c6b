# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures to latents and back, with the VAE's own scale and shift.

Shape legend: B samples, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode_image(vae: Any, image_B3HW: Tensor) -> Tensor:
    """Pictures in [0, 1] to scaled latents (mean of the posterior), shape (B, C, H, W), fp32."""
    posterior = vae.encode(image_B3HW.to(vae.dtype) * 2.0 - 1.0).latent_dist
    return (posterior.mean.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode_latent(vae: Any, latent_BCHW: Tensor) -> Tensor:
    """Scaled latents to pictures in [0, 1], shape (B, 3, H, W), fp32; no gradient."""
    return differentiable_decode(vae, latent_BCHW)


def differentiable_decode(vae: Any, latent_BCHW: Tensor) -> Tensor:
    """As :func:`decode_latent`, with the gradient to the latents; none where the picture is cut to [0, 1]."""
    latent = latent_BCHW.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return (vae.decode(latent, return_dict=False)[0].float() * 0.5 + 0.5).clamp(0.0, 1.0)


def latent_shape(vae_config: Any, transformer_config: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of a picture of the given size in pixels.

    Raises:
        ValueError: if a side is not a multiple of the VAE factor times the patch size, or the decoder has no position
            for all of its patches.
    """
    factor = 2 ** (len(vae_config.block_out_channels) - 1)
    multiple = factor * transformer_config.patch_size
    if height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height}x{width}")
    # Without a table of positions they are computed, for any number of patches.
    positions = transformer_config.pos_embed_max_size
    if positions and max(height, width) > positions * multiple:
        raise ValueError(f"height and width may be {positions * multiple} at most, got {height}x{width}")
    return transformer_config.in_channels, height // factor, width // factor

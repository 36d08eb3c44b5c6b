# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A VAE that decodes in less than fp32, if nobody sees it.

Shape legend: C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.families.family import DecoderFamily
from verl_uae.seeding import normal

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Largest mean absolute difference of a picture on [0, 1]: a level of the eight bits that it is kept with.
LIMIT = 1.0 / 255.0


@torch.no_grad()
def lower_precision(
    vae: Any, family: DecoderFamily, dtype: torch.dtype, size: tuple[int, int], device: str | torch.device
) -> None:
    """Give a VAE another dtype, and on a GPU the layout that convolutions of such numbers are fast in, in place.

    A drawn picture of soft areas and fine grain is encoded in fp32 and decoded both ways: the same on every rank, and
    the same in every run.

    Args:
        vae: in fp32; stays on its device.
        family: of the decoder.
        dtype: fp32 changes nothing.
        size: (height, width) of a picture, pixels.
        device: where it will decode, and is compared.

    Raises:
        ConfigError: pictures differ by more than :data:`LIMIT` on average; the VAE is back in fp32.
    """
    if dtype == torch.float32:
        return
    home = next(vae.parameters()).device
    vae.to(device)
    latent_BCHW = family.encode_image(vae, _picture(size).to(device))
    wanted_B3HW = family.decode_latent(vae, latent_BCHW)
    kept = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    vae.to(dtype)
    difference = float((family.decode_latent(vae, latent_BCHW) - wanted_B3HW).abs().mean())
    if not difference <= LIMIT:
        vae.to(torch.float32).load_state_dict(kept)
        vae.to(home)
        raise ConfigError(
            "uae.decoder.vae_dtype",
            f"{str(dtype).removeprefix('torch.')}: pictures differ by {difference:.4f} on average from those in fp32, "
            f"and {LIMIT:.4f} is allowed; use float32",
        )
    logger.info("the VAE decodes in %s; its pictures differ by %.5f on average", dtype, difference)
    flat = all(weight.dim() < 5 for weight in vae.parameters())
    if torch.device(device).type != "cpu" and flat:
        vae.to(memory_format=torch.channels_last)
    vae.to(home)


def _picture(size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) in [0, 1]: soft areas, where bands would be seen, with fine grain on the right half."""
    coarse = normal((1, 3, 8, 8), "VAE in another precision", "areas")
    soft_B3HW = nn.functional.interpolate(coarse, size=size, mode="bicubic")
    grain_B3HW = normal((1, 3, *size), "VAE in another precision", "grain")
    grain_B3HW[..., : size[1] // 2] = 0.0
    return (soft_B3HW + 0.3 * grain_B3HW).sigmoid()

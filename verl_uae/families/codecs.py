# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How latents are laid out: as tokens of transformers, and by the statistics of codecs that several families have.

Shape legend: B samples, C H W latents, N tokens, D numbers of a token, 3 H W pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from verl_uae.checkpoints.names import VAE


def flat(x_BCHW: Tensor) -> Tensor:
    """One token per position of a latent, (B, N, C)."""
    return x_BCHW.flatten(2).transpose(1, 2)


def unflat(tokens_BNC: Tensor, height: int, width: int) -> Tensor:
    """Inverse of :func:`flat` for latents of that height and width."""
    return tokens_BNC.transpose(1, 2).unflatten(2, (height, width))


def pack(x_BCHW: Tensor) -> Tensor:
    """One token per 2x2 patch of a latent, channel first within it, (B, N, D), D = 4 C."""
    return flat(F.pixel_unshuffle(x_BCHW, 2))


def unpack(tokens_BND: Tensor, height: int, width: int) -> Tensor:
    """Inverse of :func:`pack` for latents of that height and width."""
    return F.pixel_shuffle(unflat(tokens_BND, height // 2, width // 2), 2)


def grid_ids(*sizes: int, device: torch.device) -> Tensor:
    """Coordinates of the points of a grid, in its order, fp32, shape (number of points, number of axes)."""
    return torch.cartesian_prod(*(torch.arange(size, device=device, dtype=torch.float32) for size in sizes))


class PatchedCodec:
    """Of FLUX.2: 2x2 patches of the codec's latents are channels, scaled by the statistics of a batch norm."""

    vae_config: Any
    positive: ClassVar[Mapping[str, tuple[str, ...]]] = {VAE: ("batch_norm_eps",)}
    latent_factor = 16
    patch = 1

    @property
    def vae_channels(self) -> int:
        """Of 2x2 patches."""
        return int(self.vae_config.latent_channels) * 4

    def encode(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to latents, mode of the posterior."""
        mean, std = self._statistics(vae)
        return (F.pixel_unshuffle(vae.encode(image_B3HW).latent_dist.mode().float(), 2) - mean) / std

    def decode(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """Latents to pictures in about [-1, 1]; differentiable."""
        mean, std = self._statistics(vae)
        return vae.decode(F.pixel_shuffle(latent_BCHW * std + mean, 2).to(vae.dtype), return_dict=False)[0]

    @staticmethod
    def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
        mean, variance = (value.float().view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


class FrameCodec:
    """Of Qwen's: a codec of videos, here of one frame, with a mean and a standard deviation per channel."""

    vae_config: Any
    has_statistics = True

    @property
    def vae_channels(self) -> int:
        """Of the one frame."""
        return int(self.vae_config.z_dim)

    def encode(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to latents, mode of the posterior."""
        latent = vae.encode(image_B3HW.unsqueeze(2)).latent_dist.mode()[:, :, 0].float()
        mean, std = self._statistics(vae, latent)
        return (latent - mean) / std

    def decode(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """Latents to pictures in about [-1, 1]; differentiable."""
        mean, std = self._statistics(vae, latent_BCHW)
        return vae.decode((latent_BCHW * std + mean).to(vae.dtype).unsqueeze(2), return_dict=False)[0][:, :, 0]

    @staticmethod
    def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        names = ("latents_mean", "latents_std")
        mean, std = (like.new_tensor(getattr(vae.config, name)).view(1, -1, 1, 1) for name in names)
        return mean, std

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The latent codec of the built-in world: a real `diffusers.AutoencoderKL`, trained in seconds.

Its encoder is not trained but *written*: a whitened principal component analysis (PCA) of 8x8 pixel patches, expressed
in the convolutions of the KL encoder. Whitening makes a small shape detail worth as much as the background in the flow
matching loss, which is what lets a tiny transformer learn shapes at all. Only the convolutional decoder is trained, as
a regression on noisy latents; from random values the pair needs ten times as long.

How a linear map fits in the KL encoder (all channel counts equal, no resnet before the middle block):
  1. `conv_in` copies the pixels; each strided convolution turns 2x2 blocks of the level below into channels and keeps
     the principal directions (all 12 numbers of 2x2 pixels, then 32 of 48, then C of 128).
  2. The resnets of the middle block add zero.
  3. The final group norm sees two more channels with the huge constants M and -M, hence it divides by nearly the same
     number (M / 4) for every picture; the mean it takes away is carried by channel M and put back by `conv_out`.
  4. SiLU(x + b) = x + b to fp32 precision for a bias b well above the size of x.

Shapes: B batch, C latent channels, h = w = 4 latent positions, P patches, D numbers of a patch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from verl_uae.scenes.render import IMAGE_SIZE, POSITIONS, render_float, sample_scene
from verl_uae.seeding import derive_seed, generator

DOWNSAMPLING = 8
LATENT_SIZE = IMAGE_SIZE // DOWNSAMPLING
LATENT_CHANNELS = 30

_WIDTH = 32
_LEVELS = 4
_NORM_CONSTANT = 3000.0
_SILU_BIAS = 60.0
_LOG_VARIANCE = -12.0
_SMALLEST_VARIANCE = 1e-6

_BATCH_SIZE = 12
_POOL_SIZE = 2048
_LEARNING_RATE = 4e-3
_LATENT_NOISE = 0.1
_ABSOLUTE_WEIGHT = 0.3
_LATENT_WEIGHT = 0.3


def build_codec(seed: int, *, fit_scenes: int = 1500, pictures: torch.Tensor | None = None) -> AutoencoderKL:
    """An `AutoencoderKL` with a written encoder and a random decoder, 8x downsampling, fp32.

    Args:
        seed: names the initial decoder and the scenes the PCA is fitted to.
        fit_scenes: number of training scenes the PCA is fitted to.
        pictures: what it is fitted to instead, (B, 3, H, W) in [-1, 1].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scenes-codec"))
        vae: Any = AutoencoderKL(
            block_out_channels=(_WIDTH,) * _LEVELS,
            down_block_types=("DownEncoderBlock2D",) * _LEVELS,
            up_block_types=("UpDecoderBlock2D",) * _LEVELS,
            layers_per_block=0,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=1,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=IMAGE_SIZE,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
    if pictures is None:
        rng = random.Random(derive_seed(seed, "scenes-codec-fit"))
        pictures = render_float([sample_scene(rng) for _ in range(fit_scenes)]) * 2 - 1
    _write_encoder(vae, pictures)
    return vae.eval()


def train_codec(
    vae: Any,
    seed: int,
    *,
    steps: int = 400,
    on_step: Callable[[int, float], None] | None = None,
    pictures: torch.Tensor | None = None,
) -> None:
    """Train the decoder of a codec in place, on scenes of the training split with 1 to 4 objects by default.

    The loss is mean squared plus absolute pixel error plus squared error of the whitened patch components: without the
    last term the small circle and the small square, which differ by some corner pixels, are drawn alike.

    Args:
        vae: the `AutoencoderKL` of `build_codec`.
        seed: names scenes and noise.
        steps: gradient steps of 12 pictures, about 60 ms each on one core.
        on_step: called with (step, loss) after every step.
        pictures: what it is trained on instead, (B, 3, H, W) in [-1, 1].
    """
    noise = generator(seed, "scenes-codec-noise")
    patch_map = _patch_map(vae)
    parameters = list(vae.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step / steps, step))
    pool = _training_pictures(seed) if pictures is None else pictures
    with torch.no_grad():
        # The encoder is fixed, so it runs once for all steps.
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pool.split(64)])
    for step in range(steps):
        index = torch.randint(len(pool), (_BATCH_SIZE,), generator=noise)
        image, latent = pool[index], latents[index]
        latent = latent + _LATENT_NOISE * torch.randn(latent.shape, generator=noise)
        error = vae.decode(latent, return_dict=False)[0] - image
        components = F.conv2d(error, patch_map, stride=DOWNSAMPLING)
        loss = (
            error.square().mean() + _ABSOLUTE_WEIGHT * error.abs().mean() + _LATENT_WEIGHT * components.square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, float(loss.detach()))


def _training_pictures(seed: int) -> torch.Tensor:
    rng = random.Random(derive_seed(seed, "scenes-codec-train"))
    counts = range(1, len(POSITIONS) + 1)
    return render_float([sample_scene(rng, object_counts=counts) for _ in range(_POOL_SIZE)]) * 2 - 1


def _learning_rate(progress: float, step: int) -> float:
    """Warm-up of 20 steps, constant to the half, then linear to 2 %."""
    return min(1.0, (step + 1) / 20) * max(0.02, min(1.0, 2 * (1 - progress)))


@torch.no_grad()
def _write_encoder(vae: Any, image_B3HW: torch.Tensor) -> None:
    """Write the whitened PCA of 8x8 patches of pictures in [-1, 1] into the encoder, and set scale and shift."""
    encoder = vae.encoder
    _write_copy(encoder.conv_in)
    level = encoder.conv_in(image_B3HW)[:, :3]
    blocks = encoder.down_blocks[:-1]
    for block in blocks[:-1]:
        level = _write_pca(block.downsamplers[0].conv, level, min(4 * level.shape[1], _WIDTH), whiten=False)
    last = blocks[-1].downsamplers[0].conv
    _write_pca(last, level, LATENT_CHANNELS, whiten=True)
    last.bias[LATENT_CHANNELS:] = torch.tensor([_NORM_CONSTANT, -_NORM_CONSTANT])
    for resnet in encoder.mid_block.resnets:
        _zeroed(resnet.conv2)
    encoder.conv_norm_out.weight.fill_(_NORM_CONSTANT * math.sqrt(2 / _WIDTH))
    encoder.conv_norm_out.bias.fill_(_SILU_BIAS)
    _write_output(encoder.conv_out)
    latent = vae.encode(image_B3HW).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / latent.std()), shift_factor=float(latent.mean()))
    vae.encoder.requires_grad_(False)


def _write_copy(conv: nn.Conv2d) -> None:
    weight, _ = _zeroed(conv)
    for channel in range(conv.in_channels):
        weight[channel, channel, 1, 1] = 1.0


def _write_pca(conv: nn.Conv2d, level: torch.Tensor, keep: int, *, whiten: bool) -> torch.Tensor:
    """Write the first components of 2x2 blocks of `level` (B, c, H, W) into a strided convolution; returns them.

    diffusers pads the strided convolution on the right and below only, so its taps 0 and 1 are the block.
    """
    channels = level.shape[1]
    blocks_PD = F.unfold(level, 2, stride=2).transpose(1, 2).reshape(-1, 4 * channels).double()
    mean_D = blocks_PD.mean(0)
    variance_D, basis_DD = torch.linalg.eigh((blocks_PD - mean_D).T.cov(correction=0))
    # eigh sorts upwards.
    basis_KD = _fixed_signs(basis_DD.T.flip(0)[:keep])
    if whiten:
        variance_K = variance_D.flip(0)[:keep]
        # Pictures with fewer directions than latent channels leave the last channels at zero.
        scale_K = torch.where(variance_K > _SMALLEST_VARIANCE, variance_K.clamp_min(_SMALLEST_VARIANCE).rsqrt(), 0.0)
        basis_KD = scale_K[:, None] * basis_KD
    weight, bias = _zeroed(conv)
    weight[:keep, :channels, :2, :2] = basis_KD.view(keep, channels, 2, 2).float()
    bias[:keep] = -(basis_KD @ mean_D).float()
    return F.conv2d(F.pad(level, (0, 1, 0, 1)), weight[:keep, :channels], bias[:keep], stride=2)


def _zeroed(conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution, set to zero."""
    if conv.bias is None:
        raise TypeError("a convolution of the codec has no bias")
    return nn.init.zeros_(conv.weight), nn.init.zeros_(conv.bias)


def _fixed_signs(basis_KD: torch.Tensor) -> torch.Tensor:
    """Make the largest entry of every direction positive: the sign a decomposition returns is arbitrary."""
    largest = basis_KD.gather(1, basis_KD.abs().argmax(1, keepdim=True))
    return basis_KD * largest.sign()


def _write_output(conv: nn.Conv2d) -> None:
    """Latent mean = component minus channel M plus (M + bias) - bias; log variance = a small constant."""
    weight, bias = _zeroed(conv)
    for channel in range(LATENT_CHANNELS):
        weight[channel, channel, 1, 1] = 1.0
        weight[channel, LATENT_CHANNELS, 1, 1] = -1.0
    bias[:LATENT_CHANNELS] = _NORM_CONSTANT
    bias[LATENT_CHANNELS:] = _LOG_VARIANCE


@torch.no_grad()
def _patch_map(vae: Any) -> torch.Tensor:
    """The linear part of the written encoder as one kernel (C, 3, 8, 8), read off from unit patches."""
    size = (3, DOWNSAMPLING, DOWNSAMPLING)
    unit = torch.cat([torch.zeros(1, *size), torch.eye(math.prod(size)).view(-1, *size)])
    level = vae.encoder.conv_in(unit)
    for block in vae.encoder.down_blocks[:-1]:
        level = block(level)
    columns = level[:, :LATENT_CHANNELS, 0, 0]
    return (columns[1:] - columns[:1]).T.reshape(LATENT_CHANNELS, *size)

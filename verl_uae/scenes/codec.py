# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The latent codec of the built-in world: a real `diffusers.AutoencoderKL`, trained in seconds.

Its encoder is not trained but *written*: a whitened principal component analysis (PCA) of 8x8 pixel patches, expressed
in the convolutions of the KL encoder. Whitening makes a small shape detail worth as much as the background in the flow
matching loss, which is what lets a tiny transformer learn shapes at all. Only the convolutional decoder is trained, as a
regression on noisy latents; from random values the pair needs ten times as long.

How a linear map fits in the KL encoder (all channel counts equal, no resnet before the middle block):
  1. `conv_in` copies the pixels; each strided convolution turns 2x2 blocks of the level below into channels and keeps
     the principal directions (12 exact numbers of 2x2 pixels, then 31 of 48, then C of 124).
  2. The resnets of the middle block add zero.
  3. The final group norm sees one more channel with the huge constant M, hence it divides by nearly the same number for
     every picture; the mean it takes away is carried by that channel and put back by `conv_out`.
  4. SiLU(x + b) = x + b up to 1e-8 for a bias b that is larger than any value.

Shapes: B batch, C latent channels, h = w = 4 latent positions, P patches, D numbers of a patch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from verl_uae.scenes.render import BACKGROUNDS, IMAGE_SIZE, OBJECTS, render_codes, render_float, sample_scene
from verl_uae.seeding import derive_seed, generator

DOWNSAMPLING = 8
LATENT_SIZE = IMAGE_SIZE // DOWNSAMPLING
LATENT_CHANNELS = 30

_WIDTH = 32
_LEVELS = 4
_NORM_CONSTANT = 1000.0
_SILU_BIAS = 60.0
_LOG_VARIANCE = -12.0

_BATCH_SIZE = 12
_LEARNING_RATE = 4e-3
_LATENT_NOISE = 0.1
_ABSOLUTE_WEIGHT = 0.3
_LATENT_WEIGHT = 0.3
_OCCUPANCY = 0.5


def build_codec(seed: int, *, fit_scenes: int = 1500) -> AutoencoderKL:
    """An `AutoencoderKL` with a written encoder and a random decoder, 8x downsampling, fp32.

    Args:
        seed: names the initial decoder and the scenes the PCA is fitted to.
        fit_scenes: number of training scenes the PCA is fitted to.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scenes-codec"))
        vae = AutoencoderKL(
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
    rng = random.Random(derive_seed(seed, "scenes-codec-fit"))
    pictures = render_float([sample_scene(rng) for _ in range(fit_scenes)]) * 2 - 1
    _write_encoder(vae, pictures)
    return vae.eval()

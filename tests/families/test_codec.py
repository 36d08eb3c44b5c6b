# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from verl_uae.families.sd3 import SD3
from verl_uae.seeding import normal

FAMILY = SD3({}, {})
encode_image, decode_latent = FAMILY.encode_image, FAMILY.decode_latent


@pytest.fixture(scope="module")
def vae(tiny_models: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(tiny_models / "decoder", subfolder="vae").eval()


@pytest.fixture(scope="module")
def rescaled(tiny_models: Path) -> AutoencoderKL:
    """The same weights with a scale and a shift that cannot be mistaken for each other."""
    made = AutoencoderKL.from_pretrained(tiny_models / "decoder", subfolder="vae").eval()
    made.register_to_config(scaling_factor=4.0, shift_factor=0.5)
    return made


@pytest.fixture(scope="module")
def picture(vae: AutoencoderKL) -> torch.Tensor:
    return normal((3, 3, 32, 32), "picture").sigmoid()


@torch.no_grad()
def test_encoding_is_the_mean_of_the_posterior_shifted_then_scaled(rescaled, picture) -> None:
    mean = rescaled.encode(2.0 * picture - 1.0).latent_dist.mean
    assert torch.equal(encode_image(rescaled, picture), (mean - 0.5) * 4.0)


@torch.no_grad()
def test_decoding_undoes_scale_and_shift_and_maps_to_unit_range(rescaled) -> None:
    latent = normal((2, 30, 4, 4), "latent")
    raw = rescaled.decode(latent / 4.0 + 0.5).sample
    expected = (raw + 1.0) / 2.0
    assert torch.allclose(decode_latent(rescaled, latent), expected.clamp(0.0, 1.0), atol=1e-6)
    assert expected.min() < 0.0 or expected.max() > 1.0, "clamping would go unnoticed"


def test_scale_and_shift_cancel_out(vae, rescaled, picture) -> None:
    ours, theirs = (decode_latent(codec, encode_image(codec, picture)) for codec in (vae, rescaled))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_codec_without_shift(tiny_models: Path, picture) -> None:
    plain = AutoencoderKL.from_pretrained(tiny_models / "decoder", subfolder="vae").eval()
    plain.register_to_config(scaling_factor=1.0, shift_factor=None)
    with torch.no_grad():
        mean = plain.encode(picture * 2 - 1).latent_dist.mean
    assert torch.equal(encode_image(plain, picture), mean)


def test_results_are_fp32_and_without_gradient(tiny_models: Path, picture) -> None:
    half = AutoencoderKL.from_pretrained(tiny_models / "decoder", subfolder="vae", torch_dtype=torch.bfloat16).eval()
    latent = encode_image(half, picture.requires_grad_(True))
    drawn = decode_latent(half, latent)
    picture.requires_grad_(False)
    for tensor in (latent, drawn):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad


def test_latent_shape_follows_codec_and_patch(tiny_models: Path, vae, picture) -> None:
    config = SD3Transformer2DModel.load_config(tiny_models / "decoder", subfolder="transformer")
    transformer = SD3Transformer2DModel.from_config(config).config
    latent_shape = SD3({"transformer": transformer, "vae": vae.config}, {}).latent_shape
    assert latent_shape(32, 32) == tuple(encode_image(vae, picture).shape[1:])
    multiple = 8 * transformer.patch_size
    assert latent_shape(32, multiple) == (30, 4, multiple // 8)
    # The decoder knows that many positions to a side.
    largest = transformer.pos_embed_max_size * multiple
    assert latent_shape(largest, largest) == (30, largest // 8, largest // 8)
    with pytest.raises(ValueError, match=f"may be {largest} at most, got 32x{largest + multiple}"):
        latent_shape(32, largest + multiple)
    for height, width in ((32 + multiple // 2, 32), (32, 32 + 1)):
        with pytest.raises(ValueError, match=f"multiples of {multiple}, got {height}x{width}"):
            latent_shape(height, width)

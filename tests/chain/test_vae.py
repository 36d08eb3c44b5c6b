# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

import verl_uae.chain.vae as subject
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.vae import LIMIT, lower_precision
from verl_uae.errors import ConfigError

SIZE = (32, 32)


@pytest.fixture
def decoder(tiny_models: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_models / "decoder"))


def test_a_vae_decodes_in_less_where_pictures_stay(decoder: Decoder) -> None:
    family, latent_BCHW = decoder.family, torch.randn(2, *decoder.latent_shape(*SIZE))
    wanted = family.decode_latent(decoder.vae, latent_BCHW)
    lower_precision(decoder.vae, family, torch.bfloat16, SIZE, "cpu")
    found = family.decode_latent(decoder.vae, latent_BCHW)
    assert {weight.dtype for weight in decoder.vae.parameters()} == {torch.bfloat16}
    assert found.dtype == torch.float32 and 0.0 < float((found - wanted).abs().mean()) < 2 * LIMIT


def test_a_vae_that_shows_it_is_refused_and_left_as_it_was(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.vae.state_dict().items()}
    monkeypatch.setattr(subject, "LIMIT", 1e-7)
    with pytest.raises(ConfigError, match=r"uae\.decoder\.vae_dtype: bfloat16: pictures differ by 0\.\d+ on average"):
        lower_precision(decoder.vae, decoder.family, torch.bfloat16, SIZE, "cpu")
    after = decoder.vae.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_numbers_that_overflow_are_no_picture(decoder: Decoder) -> None:
    with torch.no_grad():
        # Within fp32 and beyond fp16.
        decoder.vae.decoder.conv_in.weight.mul_(1e8)
    with pytest.raises(ConfigError, match=r"uae\.decoder\.vae_dtype: float16"):
        lower_precision(decoder.vae, decoder.family, torch.float16, SIZE, "cpu")


def test_fp32_is_left_alone(decoder: Decoder) -> None:
    weight = next(decoder.vae.parameters())
    lower_precision(decoder.vae, decoder.family, torch.float32, SIZE, "cpu")
    assert next(decoder.vae.parameters()) is weight

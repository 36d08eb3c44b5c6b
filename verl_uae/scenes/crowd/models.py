# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Models of crowds: the tiny models of `verl_uae.scenes.tiny_models` with more words and a larger picture."""

from __future__ import annotations

import random
from typing import Any

import torch
from diffusers import AutoencoderKL

from verl_uae.compat import ensure_torchvision
from verl_uae.decoder.conditioner import Conditioner
from verl_uae.decoder.decoder import Decoder
from verl_uae.scenes.codec import build_codec, train_codec
from verl_uae.scenes.crowd.world import CELLS, GRID, SENTENCE_WORDS, WORDS, render, sample_crowd
from verl_uae.scenes.tiny_models import build_decoder, encoder_config
from verl_uae.scenes.tokenizer import NEWLINE, PROMPT, ROLES, SPECIAL_TOKENS, build_tokenizer
from verl_uae.seeding import derive_seed, normal

VOCABULARY: tuple[str, ...] = (*SPECIAL_TOKENS, NEWLINE, *ROLES, PROMPT, *WORDS)
TEMPLATE_TOKENS = 5
"""Tokens of the chat template around a caption."""
_PICTURES = 1024


def condition_length(objects: int) -> int:
    """Condition length that holds a caption of so many objects."""
    return TEMPLATE_TOKENS + SENTENCE_WORDS * objects


def build_language_model(seed: int) -> Any:
    """A `Qwen2_5_VLTextModel` in fp32: the text half of the tiny encoder, with the words of crowds."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLTextModel

    config = encoder_config().text_config
    config.vocab_size = len(VOCABULARY)
    config.max_position_embeddings = 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "crowd-language-model"))
        return Qwen2_5_VLTextModel(config)


def build_conditioner(language_model: Any, length: int) -> Conditioner:
    """The conditioner of a language model; longer captions are cut."""
    return Conditioner(language_model, build_tokenizer(VOCABULARY), length=length)


def build_crowd_codec(seed: int, *, steps: int) -> AutoencoderKL:
    """A codec with one latent position per cell, its decoder trained for some steps.

    Whatever stands in a cell is one of 25 pictures, so 24 of the 30 latent channels hold all of it.
    """
    rng = random.Random(derive_seed(seed, "crowd-codec"))
    pictures = render([sample_crowd(rng, rng.randint(1, len(CELLS))) for _ in range(_PICTURES)]) * 2 - 1
    vae = build_codec(seed, pictures=pictures)
    train_codec(vae, seed, steps=steps, pictures=pictures)
    return vae


def build_crowd_decoder(seed: int, vae: AutoencoderKL) -> Decoder:
    """The tiny decoder, with positions that are sums of a row and a column, as the captions name them."""
    decoder = build_decoder(seed, vae)
    with torch.no_grad():
        width = decoder.transformer.pos_embed.pos_embed.shape[-1]
        row_RE, column_CE = normal((2, GRID, width), "crowd-positions")
        decoder.transformer.pos_embed.pos_embed.copy_((row_RE[:, None] + column_CE).reshape(1, -1, width) / 2**0.5)
    return decoder

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Models of crowds, and their training by flow matching: behind whole captions, and behind a cut.

They are the tiny models of `verl_uae.scenes.tiny_models` with more words and a larger picture. One phase on short
captions, then two decoders, one that reads all and one behind a cut. The gradient flows through the projector into the
language model, as in `verl_uae.scenes.joint_training` and for its reason. The short phase is needed too: with sixteen
sentences from the start the decoder does not find out which one belongs to which cell. Both decoders go on from it, so
what they learn afterwards differs by the cut alone: crowds, sentences, noise and noise levels are the same.

Shapes: B crowds, L condition tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from benchmarks.learning.crowds import CELLS, GRID, SENTENCE_WORDS, WORDS, caption, render, sample_crowd
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.load import load_model
from verl_uae.compat import ensure_torchvision
from verl_uae.families.sd3 import SD3
from verl_uae.files import publish_folder
from verl_uae.scenes.codec import build_codec, train_codec
from verl_uae.scenes.joint_training import JointConfig, Learner, flow_loss
from verl_uae.scenes.tiny_models import build_decoder, captioner_config
from verl_uae.scenes.tokenizer import RESERVED, build_tokenizer
from verl_uae.seeding import derive_seed, generator, normal

VOCABULARY: tuple[str, ...] = (*RESERVED, *WORDS)
TEMPLATE_TOKENS = 5
"""Tokens of the chat template around a caption."""
CUT_TOKENS = 77
"""Caption tokens that a cut leaves; CLIP's 77 count its two special tokens, ours do not."""
_PICTURES = 1024


def condition_length(objects: int) -> int:
    """Condition length that holds a caption of so many objects."""
    return TEMPLATE_TOKENS + SENTENCE_WORDS * objects


ARMS: dict[str, int] = {"full": condition_length(len(CELLS)), "cut": TEMPLATE_TOKENS + CUT_TOKENS}
"""Condition length of the two decoders."""

OnStep = Callable[[str, int, float], None]
"""Called as (phase, steps done, loss) after every step."""


@dataclass(frozen=True, slots=True)
class CrowdConfig:
    """Settings of one seed; the optimiser's are those of `JointConfig`."""

    seed: int = 0
    codec_steps: int = 400
    short_objects: int = 4
    short_steps: int = 1000
    short_batch: int = 48
    steps: int = 400
    batch: int = 16
    high_noise: float = 0.8
    """Where a caption is needed: with less noise the picture itself tells what stands in a cell."""


def build_language_model(seed: int) -> Any:
    """A `Qwen2_5_VLTextModel` in fp32: the text half of the tiny captioner, with the words of crowds."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLTextModel

    config = captioner_config(len(VOCABULARY)).text_config
    config.max_position_embeddings = 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "crowd-language-model"))
        return Qwen2_5_VLTextModel(config)


def build_conditioner(language_model: Any, length: int) -> Conditioner:
    """The conditioner of a language model; longer captions are cut."""
    return Conditioner(language_model, build_tokenizer(VOCABULARY), SD3({}, {}, length=length))


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


def train_arms(out: Path, config: CrowdConfig, on_step: OnStep | None = None) -> None:
    """Train the short phase and both decoders; writes `out`/short, `out`/full and `out`/cut.

    Each holds `language_model` (transformers) and `decoder` (diffusers). A folder that is there is not trained again.
    """
    if not (out / "short").is_dir():
        vae = build_crowd_codec(config.seed, steps=config.codec_steps)
        models = build_language_model(config.seed), build_crowd_decoder(config.seed, vae)
        length = condition_length(config.short_objects)
        short = JointConfig(config.seed, steps=config.short_steps, decoder_batch=config.short_batch)
        train(*models, short, config, objects=config.short_objects, length=length, name="short", on_step=on_step)
        save(out / "short", *models)
    for arm, length in ARMS.items():
        if not (out / arm).is_dir():
            models = load(out / "short")
            phase = JointConfig(config.seed, steps=config.steps, decoder_batch=config.batch)
            train(*models, phase, config, objects=len(CELLS), length=length, name=arm, on_step=on_step)
            save(out / arm, *models)


def train(
    language_model: Any,
    decoder: Decoder,
    phase: JointConfig,
    config: CrowdConfig,
    *,
    objects: int,
    length: int,
    name: str,
    on_step: OnStep | None = None,
) -> None:
    """Train both in place on crowds of 1 to `objects` objects; the decoder ends with its averaged weights.

    Raises:
        ValueError: if a step's loss is not finite.
    """
    conditioner = build_conditioner(language_model, length)
    rng = random.Random(derive_seed(config.seed, "crowd-scenes", objects))
    noise = generator(config.seed, "crowd-noise", objects)
    learner = Learner(language_model, decoder, phase)
    language_model.train()
    decoder.train()
    for step in range(phase.steps):
        crowds = [sample_crowd(rng, rng.randint(1, objects)) for _ in range(phase.decoder_batch)]
        condition = conditioner.condition(conditioner.tokenize([caption(crowd, rng) for crowd in crowds]))
        loss = flow_loss(decoder, decoder.encode_image(render(crowds)), condition, noise, config.high_noise)
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"phase {name} diverged at step {step} with seed {config.seed}: loss {loss.item()}")
        learner.update(loss, step)
        if on_step is not None:
            on_step(name, step + 1, loss.item())
    learner.adopt_average()
    language_model.eval()
    decoder.eval()


def save(folder: Path, language_model: Any, decoder: Decoder) -> None:
    """Write a pair; `folder` appears when it is complete."""

    def build(part: Path) -> None:
        language_model.save_pretrained(part / "language_model", safe_serialization=True)
        decoder.save_pretrained(str(part / "decoder"))

    publish_folder(build, folder)


def load(folder: Path) -> tuple[Any, Decoder]:
    """Read what `save` wrote."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLTextModel

    language_model = load_model(Qwen2_5_VLTextModel, folder / "language_model")
    return language_model, Decoder.from_pretrained(str(folder / "decoder"))

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Import of an SD3 or SD3.5 folder and a Qwen2.5-VL folder: a model whose projector has not learned yet.

Shape legend: E language-model width, F text width of the MM-DiT, P pooled width.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from verl_uae.chain.projector import Projector
from verl_uae.checkpoints.assemble import ModelParts, copy_transformers, publish_model, write_decoder
from verl_uae.checkpoints.card import Card
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import language_width, load_model, load_tokenizer
from verl_uae.checkpoints.names import SCHEDULER, TRANSFORMER, VAE
from verl_uae.checkpoints.source import local_folder
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.seeding import derive_seed

#: Tokenizer and text encoder of CLIP-L and CLIP-G, in the order in which SD3 joins them.
CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))

#: Subfolders of an SD3 folder that are needed; T5 is not.
SD3_PARTS = (TRANSFORMER, VAE, SCHEDULER, *(name for pair in CLIPS for name in pair))


@dataclass(frozen=True, slots=True)
class Sd3Import:
    """What to import, and how the projector starts."""

    sd3: str
    """SD3 folder or hub id."""
    encoder: str
    """Qwen2.5-VL folder or hub id."""
    hidden_dim: int = 8192
    """Width between the two layers of the projector, at least 1 (released model: 8192)."""
    seed: int = 0
    """Seed of the projector's first values."""
    sd3_revision: str | None = None
    encoder_revision: str | None = None
    remote_code: bool = False
    """Accept that the encoder's repository brings Python code, and copy it; needs its revision as a full commit. It is
    never run here: the model must load in a class of transformers itself."""
    condition_length: int = 640
    condition_role: str = "generate"


def import_sd3(settings: Sd3Import, out: str | Path) -> dict[str, Any]:
    """Write a fresh model folder: SD3's transformer, VAE and scheduler as they are, a projector E -> F, the captioner.

    Args:
        settings: see the class.
        out: must not exist.

    Returns:
        The manifest of the folder.

    Raises:
        CheckpointError: a source is not what it should be, or ``out`` exists.
        ConfigError: a setting is impossible.
    """
    sd3 = local_folder(settings.sd3, revision=settings.sd3_revision, parts=SD3_PARTS)
    encoder = local_folder(settings.encoder, revision=settings.encoder_revision, remote_code=settings.remote_code)
    transformer = SD3Transformer2DModel.load_config(_part(sd3, TRANSFORMER))
    projector = fresh_projector(
        language_width(encoder),
        int(transformer["joint_attention_dim"]),
        hidden_dim=settings.hidden_dim,
        pooled=empty_prompt_pooled(sd3),
        seed=settings.seed,
    )
    parts = ModelParts(
        decoder=lambda folder: write_decoder(folder, sd3 / TRANSFORMER, projector, sd3),
        encoder=functools.partial(copy_transformers, encoder, code=settings.remote_code),
        card=_card(settings),
        entries=asdict(
            InferenceSettings(condition_length=settings.condition_length, condition_role=settings.condition_role)
        ),
        code=settings.remote_code,
    )
    return publish_model(parts, out)


def fresh_projector(in_dim: int, out_dim: int, *, hidden_dim: int, pooled: torch.Tensor, seed: int) -> Projector:
    """A projector with the layers' default initial values, the same for the same seed.

    Args:
        in_dim: E.
        out_dim: F.
        hidden_dim: width between the layers.
        pooled: constant pooled vector, shape (P,).
        seed: names the draws.

    Raises:
        ConfigError: ``hidden_dim`` is not positive.
    """
    if hidden_dim < 1:
        raise ConfigError("--hidden-dim", f"must be at least 1, got {hidden_dim}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "fresh projector"))
        projector = Projector(in_dim, hidden_dim, out_dim, pooled.numel())
    projector.pooled.copy_(pooled)
    return projector


@torch.no_grad()
def empty_prompt_pooled(sd3: Path) -> Tensor:
    """Pooled projections of the empty prompt, as diffusers' ``StableDiffusion3Pipeline.encode_prompt`` has them.

    Args:
        sd3: SD3 folder with ``tokenizer/``, ``text_encoder/``, ``tokenizer_2/`` and ``text_encoder_2/``.

    Returns:
        Shape (P,), computed in fp32.

    Raises:
        CheckpointError: naming the component that is missing or cannot be loaded.
    """
    ensure_torchvision()
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    length: int | None = None
    parts: list[Tensor] = []
    for tokenizer_name, encoder_name in CLIPS:
        tokenizer: Any = load_tokenizer(_clip_part(sd3, tokenizer_name), CLIPTokenizer)
        # The pipeline pads for both encoders to the length of the first tokenizer.
        length = length or int(tokenizer.model_max_length)
        encoder: Any = load_model(CLIPTextModelWithProjection, _clip_part(sd3, encoder_name))
        ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        parts.append(encoder(ids).text_embeds[0])
    return torch.cat(parts)


def _clip_part(sd3: Path, name: str) -> Path:
    if not (sd3 / name).is_dir():
        raise CheckpointError(sd3 / name, "missing: the pooled vector comes from both CLIP text encoders of SD3")
    return sd3 / name


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise CheckpointError(folder, f"not an SD3 folder: it has no {name}/")
    return folder / name


def _card(settings: Sd3Import) -> Card:
    pinned = {"sd3": settings.sd3_revision, "encoder": settings.encoder_revision}
    return Card(
        title="UAE model before training",
        origin="Imported; the projector has fresh random weights, so pictures do not depend on the caption in any "
        "useful way before it is trained.",
        base_models={
            f"{part} ({', '.join(names)})": source + (f" at {pinned[part]}" if pinned[part] else "")
            for part, names, source in (
                ("sd3", ("transformer", "vae", "scheduler", "pooled vector"), settings.sd3),
                ("encoder", ("captioner", "condition"), settings.encoder),
            )
        },
        constants={
            "projector.hidden_dim": settings.hidden_dim,
            "projector.seed": settings.seed,
            "condition_length": settings.condition_length,
            "condition_role": settings.condition_role,
        },
    )

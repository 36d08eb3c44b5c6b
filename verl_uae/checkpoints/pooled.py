# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The constant pooled vector of SD3: both CLIP text encoders on the empty prompt.

Shape legend: P pooled width, of CLIP-L and CLIP-G together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verl_uae.checkpoints.load import load_model, load_tokenizer
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError

#: Tokenizer and text encoder of CLIP-L and CLIP-G, in the order in which SD3 joins them.
CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


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
        tokenizer: Any = load_tokenizer(_part(sd3, tokenizer_name), CLIPTokenizer)
        # The pipeline pads for both encoders to the length of the first tokenizer.
        length = length or int(tokenizer.model_max_length)
        encoder: Any = load_model(CLIPTextModelWithProjection, _part(sd3, encoder_name))
        ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        parts.append(encoder(ids).text_embeds[0])
    return torch.cat(parts)


def _part(sd3: Path, name: str) -> Path:
    if not (sd3 / name).is_dir():
        raise CheckpointError(sd3 / name, "missing: the pooled vector comes from both CLIP text encoders of SD3")
    return sd3 / name

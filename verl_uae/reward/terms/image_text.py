# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP image-text cosine of the source picture and its caption: does the caption fit, whatever the decoder draws.

CLIP reads 77 tokens with its start and end marks, about 50 English words; what follows is cut and cannot count. Longer
captions need a checkpoint with more text positions.

Shape legend: B samples, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_tokenizer
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.paths import model_source
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import TermContext
from verl_uae.reward.terms.features import cosine
from verl_uae.reward.terms.pretrained import load_frozen
from verl_uae.reward.terms.vision import ClipSimilarity
from verl_uae.settings import Dtype

KEY = "uae.reward.terms.image_text_clip"


class ImageTextClip(ClipSimilarity):
    """Cosine of CLIP's embeddings of source picture and caption; the reconstruction is not looked at.

    The image tower is shared with a ``clip`` term of the same model. CLIPScore (Hessel et al. 2021) is
    2.5 * max(0, value).

    Args:
        model: folder, or hub id, of a whole CLIP model with its tokenizer, in safetensors; that of ``clip`` by default.
        revision: commit of the hub repository; pin it.
        dtype: what the network computes in. The cosine is always fp32.

    Raises:
        ConfigError: a model or tokenizer that does not load completely.
    """

    needs = frozenset({"source", "caption"})

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__(model, "pooled", revision, dtype)
        self.text_model, self.tokenizer = load_clip_text(
            self.published if model is None else model, revision, getattr(torch, dtype)
        )

    def setup(self, context: TermContext) -> None:
        """Move both towers."""
        super().setup(context)
        self.text_model.to(context.device)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings (B, D)."""
        text_model: Any = self.text_model
        # Always the full length: the shape, and with it the rounding, must not depend on the other captions.
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=text_model.config.max_position_embeddings,
            return_tensors="pt",
        )
        device = next(text_model.parameters()).device
        output = text_model(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        embeddings_BD: Tensor = output.text_embeds
        return embeddings_BD

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        assert batch.captions is not None
        (images_BD,) = self.source_features(batch)
        return cosine(images_BD, self.embed_texts(batch.captions))


def load_clip_text(model: str, revision: str | None, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """CLIP's text tower, frozen, in evaluation mode, on the CPU, and its tokenizer.

    Raises:
        ConfigError: where something is missing.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import cached_file

    model = model_source(model, f"{KEY}.model")
    network: Any = load_frozen(CLIPTextModelWithProjection, model, revision, dtype, f"{KEY}.model", "CLIP")
    # Without files transformers would build a tokenizer without a vocabulary, and say nothing.
    if not any(_found(cached_file, model, name, revision) for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(f"{KEY}.model", f"{model!r} has no CLIP tokenizer: neither tokenizer.json nor vocab.json")
    try:
        tokenizer = load_tokenizer(model, CLIPTokenizer, revision=revision)
    except CheckpointError as error:
        raise ConfigError(f"{KEY}.model", f"{model!r} has no CLIP tokenizer: {error.message}") from error
    if len(tokenizer) > network.config.vocab_size:
        message = f"the tokenizer of {model!r} has {len(tokenizer)} tokens, its text tower {network.config.vocab_size}"
        raise ConfigError(f"{KEY}.model", message)
    return network, tokenizer


def _found(cached_file: Any, model: str, name: str, revision: str | None) -> bool:
    try:
        return cached_file(model, name, revision=revision) is not None
    except OSError:
        return False

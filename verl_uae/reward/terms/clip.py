# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP image-image cosine: the reward of UAE (reconstruction against source, both through CLIP's image tower).

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verl_uae.paths import model_source
from verl_uae.reward.terms.encoder import EncoderTerm
from verl_uae.reward.terms.features import Features
from verl_uae.reward.terms.preprocess import Preprocess, Triple, processing_of_config
from verl_uae.reward.terms.pretrained import DTYPES, check_choice, load_frozen, processor_settings

logger = logging.getLogger(__name__)

KEY = "uae.reward.terms.clip"

#: CLIP's own channel statistics (OpenAI's release).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPreprocess(Preprocess):
    """What CLIP's image processor does, as numbers."""

    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD

    @classmethod
    def stock(cls, image_size: int) -> ClipPreprocess:
        """The published models' setting for a square input."""
        return cls(resize=image_size, crop=(image_size, image_size))

    @classmethod
    def of_config(cls, config: Mapping[str, Any], image_size: int, key: str = f"{KEY}.model") -> ClipPreprocess:
        """From the contents of ``preprocessor_config.json``; what it leaves out is as in :meth:`stock`.

        Raises:
            ConfigError: where it switches a step off or asks for another interpolation.
        """
        steps = ("resize", "center_crop", "rescale", "normalize")
        return processing_of_config(cls.stock(image_size), config, key, "CLIP's", steps)


class ClipSimilarity(EncoderTerm):
    """Cosine of CLIP image features of source and reconstruction.

    Args:
        model: folder, or hub id, of a CLIP model in safetensors. The paper does not name its checkpoint; ViT-L/14 is
            what its cold-start code uses.
        mode: ``pooled`` compares the projected image embeddings (the paper's reward), ``maps`` the patch tokens of
            the last layer as a whole.
        revision: commit of the hub repository; pin it.
        dtype: what the network computes in. The cosine is always fp32.

    Raises:
        ConfigError: unknown mode, or a model that does not load completely.
    """

    model_params = ("model",)

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        mode: Literal["pooled", "maps"] = "pooled",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        check_choice(f"{KEY}.mode", mode, ("pooled", "maps"))
        check_choice(f"{KEY}.dtype", dtype, DTYPES)
        self.mode = mode
        model = model_source(model, f"{KEY}.model")
        self.model, self.preprocess = load_clip(model, revision, getattr(torch, dtype))
        self._settings = ("clip", model, revision, dtype)

    @property
    def settings(self) -> Hashable:
        return self._settings

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """One stage each: image embeddings (B, D), patch tokens (B, P, D)."""
        pixels = self.preprocess(images_B3HW).to(next(self.model.parameters()).dtype)
        output = self.model(pixel_values=pixels)
        found = {"pooled": (output.image_embeds,), "maps": (output.last_hidden_state[:, 1:],)}
        return {mode: found[mode] for mode in modes}


def load_clip(
    model: str, revision: str | None, dtype: torch.dtype, key: str = f"{KEY}.model"
) -> tuple[nn.Module, ClipPreprocess]:
    """CLIP's image tower, frozen, in evaluation mode, on the CPU, and its preprocessing.

    Args:
        model: folder or hub id; a whole CLIP model or its vision part. safetensors only, no remote code.
        revision: commit of the hub repository.
        dtype: of the weights.
        key: configuration key of ``model``, for errors.

    Raises:
        ConfigError: where something is missing, of the model or of its weights.
    """
    from transformers import CLIPVisionModelWithProjection

    network: Any = load_frozen(CLIPVisionModelWithProjection, model, revision, dtype, key, "CLIP")
    image_size = network.config.image_size
    settings = processor_settings(model, revision)
    if settings is None:
        logger.info("%s has no image processor; using CLIP's own preprocessing at %d pixels", model, image_size)
        return network, ClipPreprocess.stock(image_size)
    return network, ClipPreprocess.of_config(settings, image_size, key)

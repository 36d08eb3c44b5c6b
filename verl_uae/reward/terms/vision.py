# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine of the features of a vision transformer: CLIP, which is the reward of UAE (reconstruction against source, both
through its image tower), DINOv2, DINOv3, SigLIP 2.

Each differs from the others in its class, its stock preprocessing and its outputs only. Checkpoints of SigLIP 2 with a
fixed resolution have SigLIP's architecture; those with ``naflex`` in their name do not and are refused.

Shape legend: B samples, 3 colour channels, H W pixels, P patches, D features.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Set
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.paths import model_source
from verl_uae.reward.terms.features import EncoderTerm, Features
from verl_uae.reward.terms.pretrained import (
    Mode,
    Preprocess,
    check_choice,
    load_frozen,
    processing_of_config,
    processor_settings,
)
from verl_uae.settings import DTYPES, Dtype

logger = logging.getLogger(__name__)

#: CLIP's own channel statistics (OpenAI's release).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionSimilarity(EncoderTerm):
    """Cosine of a vision transformer's features of source and reconstruction.

    Args:
        model: folder, or hub id, in safetensors; :attr:`published` by default.
        mode: ``pooled`` compares the vectors of the whole picture, ``maps`` the patch tokens of the last layer as a
            whole, which sees position.
        revision: commit of the hub repository; pin it.
        dtype: what the network computes in. The cosine is always fp32.

    Raises:
        ConfigError: unknown mode or dtype, or a model that does not load completely.
    """

    #: Registered name.
    name: ClassVar[str]
    #: Hub id of the published model.
    published: ClassVar[str]
    #: Class in transformers.
    network: ClassVar[str]
    #: What its image processor must do.
    steps: ClassVar[tuple[str, ...]] = ("resize", "rescale", "normalize")
    #: Which of the network's outputs is the vector of the whole picture.
    vector: ClassVar[str] = "pooler_output"
    model_params = ("model",)

    def __init__(
        self,
        model: str | None = None,
        mode: Mode = "pooled",
        revision: str | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        key = f"uae.reward.terms.{self.name}"
        check_choice(f"{key}.mode", mode, get_args(Mode))
        check_choice(f"{key}.dtype", dtype, DTYPES)
        self.mode = mode
        model = model_source(self.published if model is None else model, f"{key}.model")
        self._settings = (self.name, model, revision, dtype)
        import transformers

        network_class = getattr(transformers, self.network)
        network: Any = load_frozen(network_class, model, revision, getattr(torch, dtype), f"{key}.model", self.network)
        if mode == "pooled" and not getattr(network, "use_head", True):
            raise ConfigError(f"{key}.mode", f"{model!r} has no pooling head; use 'maps'")
        self.model, self.preprocess = network, self.stock(network.config)
        settings = processor_settings(model, revision)
        if settings is None:
            logger.info("%s has no image processor; using the stock preprocessing of %s", model, self.name)
        else:
            owner = f"that of {self.name}"
            self.preprocess = processing_of_config(self.preprocess, settings, f"{key}.model", owner, self.steps)

    @classmethod
    @abstractmethod
    def stock(cls, config: Any) -> Preprocess:
        """Preprocessing of the published models, given the network's configuration."""

    @property
    def settings(self) -> Hashable:
        return self._settings

    def leading_tokens(self) -> int:
        """Tokens before the patches."""
        return 0

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """One stage each: the vector of the whole picture (B, D), the patch tokens (B, P, D)."""
        pixels = self.preprocess(images_B3HW).to(next(self.model.parameters()).dtype)
        output = self.model(pixel_values=pixels)
        patches = output.last_hidden_state[:, self.leading_tokens() :]
        found = {"pooled": (getattr(output, self.vector),), "maps": (patches,)}
        return {mode: found[mode] for mode in modes}


class ClipSimilarity(VisionSimilarity):
    """CLIP (Radford et al. 2021), a whole model or its vision part; ``pooled`` is the projected image embedding.

    See :class:`VisionSimilarity`. The paper does not name its checkpoint; ViT-L/14 is what its cold-start code uses.
    """

    name = "clip"
    published = "openai/clip-vit-large-patch14"
    network = "CLIPVisionModelWithProjection"
    steps = ("resize", "center_crop", "rescale", "normalize")
    vector = "image_embeds"

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Shorter side and centre of the size of the network's input."""
        size = config.image_size
        return Preprocess(resize=size, crop=(size, size), mean=CLIP_MEAN, std=CLIP_STD)

    def leading_tokens(self) -> int:
        """The class token."""
        return 1


class Dinov2Similarity(VisionSimilarity):
    """DINOv2 (Oquab et al. 2023); ``pooled`` is the class token after the last normalisation.

    See :class:`VisionSimilarity`. Checkpoints with registers have another architecture and are refused.
    """

    name = "dinov2"
    published = "facebook/dinov2-large"
    network = "Dinov2Model"
    steps = ("resize", "center_crop", "rescale", "normalize")

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Shorter side 256, centre 224: the published models', whatever size they were trained at."""
        return Preprocess(resize=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def leading_tokens(self) -> int:
        """The class token."""
        return 1


class Dinov3Similarity(VisionSimilarity):
    """DINOv3 (Simeoni et al. 2025), the vision transformers; ``pooled`` is the class token after the normalisation.

    See :class:`VisionSimilarity`.
    """

    name = "dinov3"
    published = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    network = "DINOv3ViTModel"

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Squeezed to the size of the network's input."""
        size = (config.image_size, config.image_size)
        return Preprocess(resize=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")

    def leading_tokens(self) -> int:
        """The class token and the registers."""
        network: Any = self.model
        return 1 + int(network.config.num_register_tokens)


class Siglip2Similarity(VisionSimilarity):
    """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025); ``pooled`` is the attention pooling's output.

    See :class:`VisionSimilarity`.

    Raises:
        ConfigError: besides, for ``pooled`` with a model without the pooling head.
    """

    name = "siglip2"
    published = "google/siglip2-so400m-patch14-384"
    network = "SiglipVisionModel"

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Squeezed to the size of the network's input."""
        half = (0.5, 0.5, 0.5)
        return Preprocess(resize=(config.image_size, config.image_size), mean=half, std=half)

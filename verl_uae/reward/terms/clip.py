# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP image-image cosine: the reward of UAE (reconstruction against source, both through CLIP's image tower).

The stock processor works on PIL pictures on the CPU; the same arithmetic is done here on tensors, on the device that
drew the picture, in float and differentiable. It equals Pillow on float channels; the stock processor besides rounds
to 8 bits, and cuts the cubic's overshoot near black and white after each of two passes instead of once.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.reward.term import TermContext
from verl_uae.reward.terms.features import Features, FeatureTerm

logger = logging.getLogger(__name__)

KEY = "uae.reward.terms.clip"

#: CLIP's own channel statistics (OpenAI's release).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_INTERPOLATION: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPreprocess:
    """What CLIP's image processor does, as numbers."""

    resize: int | tuple[int, int]
    """Length of the shorter side, or (height, width), in pixels."""
    crop: tuple[int, int]
    """(height, width) cut from the centre, in pixels."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    @classmethod
    def stock(cls, image_size: int) -> ClipPreprocess:
        """The published models' setting for a square input."""
        return cls(resize=image_size, crop=(image_size, image_size))

    @classmethod
    def of_config(cls, config: Mapping[str, Any], image_size: int) -> ClipPreprocess:
        """From the contents of ``preprocessor_config.json``; what it leaves out is as in :meth:`stock`.

        Raises:
            ConfigError: where it switches a step off or asks for another interpolation.
        """
        off = [step for step in ("resize", "center_crop", "rescale", "normalize") if config.get(f"do_{step}") is False]
        resample = int(config.get("resample", 3))
        if off or resample not in _INTERPOLATION:
            raise ConfigError(KEY, f"image processor with resample {resample} and without {off} is not CLIP's")
        size, crop = config.get("size", image_size), config.get("crop_size", image_size)
        if isinstance(size, Mapping):
            size = size["shortest_edge"] if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
        if isinstance(crop, Mapping):
            crop = (int(crop["height"]), int(crop["width"]))
        return cls(
            resize=size if isinstance(size, tuple) else int(size),
            crop=crop if isinstance(crop, tuple) else (int(crop), int(crop)),
            mean=tuple(config.get("image_mean") or CLIP_MEAN),
            std=tuple(config.get("image_std") or CLIP_STD),
            interpolation=_INTERPOLATION[resample],
        )

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size to network input, shape (B, 3, *crop)."""
        height, width = images_B3HW.shape[-2:]
        size = self._resized(height, width)
        if size != (height, width):
            # With antialiasing torch uses Pillow's cubic (a = -0.5), also when enlarging; without it, -0.75.
            images_B3HW = F.interpolate(
                images_B3HW, size=size, mode=self.interpolation, align_corners=False, antialias=True
            )
            images_B3HW = images_B3HW.clamp(0.0, 1.0)
        images_B3HW = _center_crop(images_B3HW, *self.crop)
        mean, std = (images_B3HW.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images_B3HW - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        stretched = int(self.resize * long / short)
        return (stretched, self.resize) if width <= height else (self.resize, stretched)


def _center_crop(images_B3HW: Tensor, height: int, width: int) -> Tensor:
    """Cut from the centre; a picture that is too small is first padded with black."""
    lack_h, lack_w = max(0, height - images_B3HW.shape[-2]), max(0, width - images_B3HW.shape[-1])
    if lack_h or lack_w:
        images_B3HW = F.pad(images_B3HW, (lack_w // 2, (lack_w + 1) // 2, lack_h // 2, (lack_h + 1) // 2))
    top, left = (images_B3HW.shape[-2] - height) // 2, (images_B3HW.shape[-1] - width) // 2
    return images_B3HW[..., top : top + height, left : left + width]


class ClipSimilarity(FeatureTerm):
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

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        mode: Literal["pooled", "maps"] = "pooled",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        if mode not in ("pooled", "maps"):
            raise ConfigError(f"{KEY}.mode", f"must be 'pooled' or 'maps', got {mode!r}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"{KEY}.dtype", f"must be float32, bfloat16 or float16, got {dtype!r}")
        self.mode = mode
        self.model, self.preprocess = load_clip(model, revision, getattr(torch, dtype))

    def setup(self, context: TermContext) -> None:
        """Move the network."""
        self.model.to(context.device)

    def embed(self, images_B3HW: Tensor) -> Features:
        """One stage: image embeddings (B, D), or patch tokens (B, P, D)."""
        pixels = self.preprocess(images_B3HW).to(next(self.model.parameters()).dtype)
        output = self.model(pixel_values=pixels)
        if self.mode == "pooled":
            return (output.image_embeds,)
        return (output.last_hidden_state[:, 1:],)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_clip(model: str, revision: str | None, dtype: torch.dtype) -> tuple[nn.Module, ClipPreprocess]:
    """CLIP's image tower, frozen, in evaluation mode, on the CPU, and its preprocessing.

    Args:
        model: folder or hub id; a whole CLIP model or its vision part. safetensors only, no remote code.
        revision: commit of the hub repository.
        dtype: of the weights.

    Raises:
        ConfigError: where something is missing, of the model or of its weights.
    """
    from transformers import CLIPVisionModelWithProjection
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        # The text tower of a whole CLIP is not wanted, and transformers would list it as unexpected.
        with torch.random.fork_rng(devices=[]), _quiet_transformers():
            load: Any = CLIPVisionModelWithProjection.from_pretrained
            network, info = load(model, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{KEY}.model", f"{model!r} cannot be loaded as a CLIP model: {error}") from error
    incomplete = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if incomplete:
        raise ConfigError(f"{KEY}.model", f"{model!r} lacks {len(incomplete)} weights of CLIP, such as {incomplete[0]}")
    network.eval().requires_grad_(False)
    image_size = network.config.image_size
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
    except OSError:
        logger.info("%s has no image processor; using CLIP's own preprocessing at %d pixels", model, image_size)
        return network, ClipPreprocess.stock(image_size)
    return network, ClipPreprocess.of_config(settings, image_size)

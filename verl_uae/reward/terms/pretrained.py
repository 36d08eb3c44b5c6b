# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen networks of transformers for a reward: loading them, and what their stock image processors do.

Weights are safetensors only, complete, in evaluation mode. A stock processor works on 8-bit pictures on the CPU; the
same arithmetic is done here on tensors, on the device that drew the picture, in float and differentiable. It equals
Pillow on float channels; a stock processor besides rounds to 8 bits, and may cut the cubic's overshoot near black and
white after each of two passes instead of once.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_model
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.reward.isolate import samples_per_call

logger = logging.getLogger(__name__)

#: Vectors of whole pictures, or maps of features.
Mode = Literal["pooled", "maps"]


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not one of ``known``.

    Raises:
        ConfigError: naming the key.
    """
    if value not in known:
        listed = ", ".join(repr(name) for name in known[:-1])
        raise ConfigError(key, f"must be {listed} or {known[-1]!r}, got {value!r}")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' list of weights that a part of a model does not use."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_frozen(
    network_class: Any, model: str, revision: str | None, dtype: torch.dtype, key: str, name: str
) -> nn.Module:
    """A network, frozen, in evaluation mode, on the CPU; the global random generator is left alone.

    Args:
        network_class: class of transformers.
        model: folder or hub id; a whole model or the part wanted. safetensors only, no remote code.
        revision: commit of the hub repository.
        dtype: of the weights.
        key: configuration key of ``model``, for errors.
        name: what it should be, for errors.

    Raises:
        ConfigError: where something is missing, of the model or of its weights, or the model has registers of its own.
    """
    # What a network does not know is left out, as the text tower of a whole CLIP; registers take part in every layer.
    options: dict[str, Any] = {"revision": revision, "may_ignore": lambda weight: "register_tokens" not in weight}
    try:
        network = load_model(network_class, model, dtype=dtype, **options)
    except CheckpointError as error:
        raise ConfigError(key, f"{model!r} cannot be loaded as a {name} model: {error.message}") from error
    # A part's own configuration, as CLIP's text tower's, does not know the commit.
    commit = network_class.config_class.get_config_dict(model, revision=revision)[0].get("_commit_hash")
    if commit is not None and commit != revision:
        logger.info("%s: %s at commit %s; give it as revision to load the same weights later", key, model, commit)
    frozen: nn.Module = network.requires_grad_(False)
    return frozen


def processor_settings(model: str, revision: str | None) -> Mapping[str, Any] | None:
    """Contents of the model's ``preprocessor_config.json``; None where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
    except OSError:
        return None
    found: Mapping[str, Any] = settings
    return found


Triple = tuple[float, float, float]
Processing = TypeVar("Processing", bound="Preprocess")

INTERPOLATION: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """Resize, cut, normalise."""

    resize: int | tuple[int, int]
    """Length of the shorter side, or (height, width), in pixels."""
    crop: tuple[int, int] | None = None
    """(height, width) cut from the centre, in pixels; None cuts nothing."""
    mean: Triple
    """Per channel, of pixels in [0, 1]."""
    std: Triple
    """Per channel."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size to network input.

        A long and narrow picture grows before it is cut, so as many go through together as a call may hold of the
        size in between.
        """
        size = self._resized(*images_B3HW.shape[-2:])
        together = samples_per_call(max(1, len(images_B3HW)), *size)
        return torch.cat([self._process(part, size) for part in images_B3HW.split(together)])

    def _process(self, images_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
        if size != tuple(images_B3HW.shape[-2:]):
            # With antialiasing torch uses Pillow's cubic (a = -0.5), also when enlarging; without it, -0.75.
            images_B3HW = F.interpolate(
                images_B3HW, size=size, mode=self.interpolation, align_corners=False, antialias=True
            )
            images_B3HW = images_B3HW.clamp(0.0, 1.0)
        if self.crop is not None:
            images_B3HW = _center_crop(images_B3HW, *self.crop)
        mean, std = (images_B3HW.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images_B3HW - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        stretched = int(self.resize * long / short)
        return (stretched, self.resize) if width <= height else (self.resize, stretched)


def processing_of_config(
    stock: Processing, config: Mapping[str, Any], key: str, name: str, steps: tuple[str, ...]
) -> Processing:
    """From the contents of ``preprocessor_config.json``.

    Args:
        stock: what holds where the file says nothing.
        config: the file's contents.
        key: configuration key of the model, for errors.
        name: whose processor this should be, for errors.
        steps: what the processor must not switch off.

    Raises:
        ConfigError: where it switches a step off, asks for another interpolation or another scale of the pixels.
    """
    off = [step for step in steps if config.get(f"do_{step}") is False]
    default = next(number for number, mode in INTERPOLATION.items() if mode == stock.interpolation)
    given = config.get("resample")
    resample, factor = int(default if given is None else given), config.get("rescale_factor") or 1.0 / 255.0
    if off or resample not in INTERPOLATION or abs(factor * 255.0 - 1.0) > 1e-6:
        raise ConfigError(key, f"image processor with resample {resample} and without {off} is not {name}")
    size, crop = config.get("size") or stock.resize, config.get("crop_size") or stock.crop
    if isinstance(size, Mapping):
        if not size.get("shortest_edge") and not {"height", "width"} <= size.keys():
            raise ConfigError(key, f"image processor with size {dict(size)} is not {name}")
        size = size.get("shortest_edge") or (int(size["height"]), int(size["width"]))
    if isinstance(crop, Mapping):
        crop = (int(crop["height"]), int(crop["width"]))
    elif isinstance(crop, int):
        crop = (crop, crop)
    return type(stock)(
        resize=size if isinstance(size, tuple) else int(size),
        crop=crop if stock.crop is not None or config.get("do_center_crop") else None,
        mean=tuple(config.get("image_mean") or stock.mean),
        std=tuple(config.get("image_std") or stock.std),
        interpolation=INTERPOLATION[resample],
    )


def _center_crop(images_B3HW: Tensor, height: int, width: int) -> Tensor:
    """Cut from the centre; a picture that is too small is first padded with black."""
    lack_h, lack_w = max(0, height - images_B3HW.shape[-2]), max(0, width - images_B3HW.shape[-1])
    if lack_h or lack_w:
        images_B3HW = F.pad(images_B3HW, (lack_w // 2, (lack_w + 1) // 2, lack_h // 2, (lack_h + 1) // 2))
    top, left = (images_B3HW.shape[-2] - height) // 2, (images_B3HW.shape[-1] - width) // 2
    return images_B3HW[..., top : top + height, left : left + width]

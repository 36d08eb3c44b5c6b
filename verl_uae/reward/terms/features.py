# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What terms with a frozen network share: the cosine of its features, one network for several terms, loading it, and
what its stock image processor does.

Weights are safetensors only, complete, in evaluation mode. A stock processor works on 8-bit pictures on the CPU; the
same arithmetic is done here on tensors, on the device that drew the picture, in float and differentiable. It equals
Pillow on float channels; a stock processor besides rounds to 8 bits, and may cut the cubic's overshoot near black and
white after each of two passes instead of once.

Shape legend: B samples, 3 colour channels, H W pixels, D features.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_model
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.paths import existing_file
from verl_uae.reward.encodings import Encodings, Features, Outputs
from verl_uae.reward.isolate import samples_per_call
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import RewardTerm, TermContext

logger = logging.getLogger(__name__)

#: Vectors of whole pictures, or maps of features.
Mode = Literal["pooled", "maps"]


def cosine(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Cosine similarity per sample in fp32, shape (B,), in [-1, 1].

    NaN where a vector is zero: such a picture has no direction to compare, and 0 would be an opinion.
    """
    a_BD, b_BD = a_BD.flatten(1).to(torch.float32), b_BD.flatten(1).to(torch.float32)
    # Each vector is made a unit vector first; the product of two norms could overflow or underflow.
    a_BD = a_BD / torch.linalg.vector_norm(a_BD, dim=1, keepdim=True)
    b_BD = b_BD / torch.linalg.vector_norm(b_BD, dim=1, keepdim=True)
    return (a_BD * b_BD).sum(dim=1).clamp(-1.0, 1.0)


def feature_similarity(a: Features, b: Features) -> Tensor:
    """Mean over stages of the cosine of the whole flattened stage.

    Flattening keeps the place of every feature, so a moved object costs; a pooled vector as the only stage does not
    see where things are.

    Args:
        a: features of one picture per sample, one tensor (B, ...) per stage.
        b: features to compare, same shapes.

    Returns:
        Similarity, shape (B,), in [-1, 1]; NaN where a stage is all zero. Differentiable.
    """
    return torch.stack([cosine(stage_a, stage_b) for stage_a, stage_b in zip(a, b, strict=True)]).mean(dim=0)


class FeatureTerm(RewardTerm):
    """A term that compares features of source and reconstruction.

    Subclasses give :meth:`embed`. It must not switch gradients off: the scorer does, and training through the
    reward needs them. To keep source features between steps, override :meth:`source_features`.
    """

    bounds = (-1.0, 1.0)

    @abstractmethod
    def embed(self, images_B3HW: Tensor) -> Features:
        """Features of pictures in [0, 1] of any size, one tensor (B, ...) per stage."""

    def source_features(self, batch: RewardBatch) -> Features:
        """Features of the source pictures; the place for a cache keyed by the picture's digest."""
        return self.embed(batch.source_B3HW)

    def reconstruction_features(self, batch: RewardBatch) -> Features:
        """Features of the reconstructions."""
        return self.embed(batch.reconstruction_B3HW)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        return feature_similarity(self.source_features(batch), self.reconstruction_features(batch))


class EncoderTerm(FeatureTerm):
    """A feature term with a frozen network, which it shares with the scorer's other terms of equal :attr:`settings`.

    Subclasses set ``model``, ``mode`` and ``settings`` and give :meth:`outputs`.
    """

    model: nn.Module
    mode: str
    """Which of the network's outputs is compared."""
    settings: Hashable
    """What the outputs depend on besides the picture: network, revision, dtype, size. Not the mode."""

    #: Without a scorer nothing is shared or kept.
    _encodings: Encodings | None = None

    @abstractmethod
    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Outputs:
        """The named outputs of one forward pass, for pictures in [0, 1] of any size. Differentiable."""

    def setup(self, context: TermContext) -> None:
        """Move the network, or take that of a term with equal settings."""
        self.model.to(context.device)
        self._encodings = context.encodings
        context.encodings.join(self)

    def embed(self, images_B3HW: Tensor) -> Features:
        """The outputs of this term's mode."""
        return self.outputs(images_B3HW, {self.mode})[self.mode]

    def source_features(self, batch: RewardBatch) -> Features:
        """Features of the source pictures, from the cache where the scorer keeps one."""
        if self._encodings is None or torch.is_grad_enabled():
            return super().source_features(batch)
        return self._encodings.source(self, batch)

    def reconstruction_features(self, batch: RewardBatch) -> Features:
        """Features of the reconstructions; one forward pass for all terms of the scorer with equal settings."""
        if self._encodings is None or torch.is_grad_enabled():
            return super().reconstruction_features(batch)
        return self._encodings.reconstruction(self, batch)


# ---------------------------------------------------------------- networks and pictures of transformers


def load_frozen(
    network_class: Any, model: str, revision: str | None, dtype: torch.dtype, key: str, name: str
) -> nn.Module:
    """A network of transformers, frozen, in evaluation mode, on the CPU; the global random generator is left alone.

    ``model`` is a folder or hub id of a whole model or the part wanted: safetensors only, no remote code. Errors have
    its configuration key, and the ``name`` of what it should be.

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


def read_weights(path: str, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ConfigError: no such file, or no safetensors.
    """
    try:
        with safe_open(existing_file(path, key), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, f"{path!r} cannot be read as safetensors: {error}") from error


def packaged_weights(path: Path, sha256: str, key: str) -> dict[str, Tensor]:
    """Weights that a package brings as a pickle: only the known bytes are read, and only as tensors.

    Raises:
        ConfigError: there is no such file, or it has other bytes.
    """
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ConfigError(key, f"{path} is missing or not the known weights file (SHA-256 {sha256[:12]}...)")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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
Interpolation = Literal["bilinear", "bicubic"]
#: By its number in Pillow.
INTERPOLATION: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


def resized(images_B3HW: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Tensor:
    """Pictures in [0, 1] at (height, width), cut to that range; those of that size as they are."""
    if size == tuple(images_B3HW.shape[-2:]):
        return images_B3HW
    # With antialiasing torch uses Pillow's cubic (a = -0.5), also when enlarging; without it, -0.75.
    images_B3HW = F.interpolate(images_B3HW, size=size, mode=interpolation, align_corners=False, antialias=True)
    return images_B3HW.clamp(0.0, 1.0)


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
    interpolation: Interpolation = "bicubic"

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size to network input.

        A long and narrow picture grows before it is cut, so as many go through together as a call may hold of the
        size in between.
        """
        size = self._resized(*images_B3HW.shape[-2:])
        together = samples_per_call(max(1, len(images_B3HW)), *size)
        return torch.cat([self._process(part, size) for part in images_B3HW.split(together)])

    def _process(self, images_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
        images_B3HW = resized(images_B3HW, size, self.interpolation)
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
    stock: Preprocess, config: Mapping[str, Any], key: str, name: str, steps: tuple[str, ...]
) -> Preprocess:
    """What the contents of a ``preprocessor_config.json`` say, and ``stock`` where they say nothing.

    ``steps`` must not be switched off. Errors have the configuration key of the model, and whose processor (``name``)
    this should be.

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
    return Preprocess(
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

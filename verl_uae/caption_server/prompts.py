# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From requests to prompts that the model can take: validation, image processing, grouping by shape.

Captions of one image arrive as separate requests with equal prompts. Equal prompts are prefilled once.
Prompts are grouped by shape, and a group's shape follows from each member alone: no prompt is padded because
of another prompt.

Shapes: U prompts of a chunk, L padded prompt length, N merged patches, F patch features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig

#: Prompts are padded to a multiple of this, so that prompts of similar lengths share a prefill.
LENGTH_MULTIPLE = 16

PromptKey = tuple[tuple[int, ...], str]
ShapeKey = tuple[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Prompt:
    """A distinct prompt: token ids, and the patches of its images if it has any.

    Attributes:
        token_ids: prompt tokens, image placeholders expanded.
        pixel_values: (patches, F) fp32, or None.
        grid_thw: (images, 3) int64 patch grid of each image, or None.
        shape: prompts of equal shape may share a prefill.
    """

    token_ids: tuple[int, ...]
    pixel_values: Tensor | None
    grid_thw: Tensor | None
    shape: ShapeKey


class PromptBuilder:
    """Checks requests and turns them into prompts.

    Args:
        config: the model's configuration (image token, vocabulary, merge size).
        image_processor: transformers image processor of the checkpoint; must be the one the trainer uses.
        prompt_length: longest prompt accepted, in tokens.
    """

    def __init__(self, config: Qwen2_5_VLConfig, image_processor: Any, prompt_length: int) -> None:
        self.image_token_id: int = config.image_token_id
        self.vocab_size: int = config.get_text_config().vocab_size
        vision: Any = config.vision_config
        self.merged_patch: int = vision.spatial_merge_size**2
        self.image_processor = image_processor
        self.prompt_length = prompt_length

    def key(self, request: CaptionRequest) -> PromptKey:
        """Requests with equal keys have the same prompt.

        Raises:
            CaptionRequestError: the prompt is empty, too long, has ids outside the vocabulary, or an image is
                not a readable PIL image.
        """
        request.check()
        token_ids = tuple(int(token) for token in request.prompt_ids)
        if not token_ids:
            raise request.error("the prompt is empty")
        if len(token_ids) > self.prompt_length:
            raise request.error(
                f"the prompt has {len(token_ids)} tokens, rollout.prompt_length is {self.prompt_length}"
            )
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            raise request.error(f"a prompt token is outside the vocabulary of {self.vocab_size}")
        return token_ids, _digest(request)

    def build(self, request: CaptionRequest) -> Prompt:
        """Process the images of a request whose :meth:`key` has been taken.

        Raises:
            CaptionRequestError: the image processor refuses an image, or the placeholders in the prompt do not
                match the images.
        """
        token_ids = tuple(int(token) for token in request.prompt_ids)
        pixel_values = grid_thw = None
        if request.images:
            pixel_values, grid_thw = self._process(request)
        placeholders = token_ids.count(self.image_token_id)
        expected = int(grid_thw.prod(-1).sum()) // self.merged_patch if grid_thw is not None else 0
        if placeholders != expected:
            raise request.error(
                f"the prompt has {placeholders} image tokens, its {len(request.images)} images need {expected}"
            )
        padded = -(-len(token_ids) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        grids = tuple(tuple(row) for row in grid_thw.tolist()) if grid_thw is not None else ()
        return Prompt(token_ids, pixel_values, grid_thw, (min(padded, self.prompt_length), grids))

    def _process(self, request: CaptionRequest) -> tuple[Tensor, Tensor]:
        try:
            features = self.image_processor(
                images=list(request.images), return_tensors="pt", **dict(request.processor_kwargs)
            )
        # A fault boundary: whatever a codec or a processor raises on one picture concerns one request.
        except Exception as error:
            raise request.error(f"the image processor failed: {type(error).__name__}: {error}") from error
        return features["pixel_values"], features["image_grid_thw"]


@dataclass(frozen=True)
class PrefillChunk:
    """Model inputs of prompts of one shape, left-padded.

    Attributes:
        members: index of the prompt of each leading row; rows beyond repeat the first one and are discarded.
        input_ids_UL: int64.
        valid_UL: bool, False at padding.
        token_type_UL: int64, 1 at image tokens.
        pixel_values: (U * patches, F) fp32 or None.
        grid_thw: (U * images, 3) int64 or None.
    """

    members: tuple[int, ...]
    input_ids_UL: Tensor
    valid_UL: Tensor
    token_type_UL: Tensor
    pixel_values: Tensor | None
    grid_thw: Tensor | None


def prefill_chunks(
    prompts: Sequence[Prompt], chunk_size: int, fill: bool, image_token_id: int
) -> Iterator[PrefillChunk]:
    """Group prompts by shape and cut the groups into chunks of at most ``chunk_size`` rows.

    Args:
        fill: repeat the first prompt of a chunk until it has ``chunk_size`` rows.
    """
    by_shape: dict[ShapeKey, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_shape.setdefault(prompt.shape, []).append(index)
    for (length, _), indices in by_shape.items():
        for start in range(0, len(indices), chunk_size):
            members = indices[start : start + chunk_size]
            dummies = [members[0]] * (chunk_size - len(members) if fill else 0)
            rows = [prompts[index] for index in members + dummies]
            yield _collate(tuple(members), rows, length, image_token_id)


def _collate(members: tuple[int, ...], rows: Sequence[Prompt], length: int, image_token_id: int) -> PrefillChunk:
    input_ids_UL = torch.tensor([(0,) * (length - len(row.token_ids)) + row.token_ids for row in rows])
    start_U1 = torch.tensor([[length - len(row.token_ids)] for row in rows])
    valid_UL = torch.arange(length) >= start_U1
    pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
    grids = [row.grid_thw for row in rows if row.grid_thw is not None]
    return PrefillChunk(
        members=members,
        input_ids_UL=input_ids_UL,
        valid_UL=valid_UL,
        token_type_UL=((input_ids_UL == image_token_id) & valid_UL).long(),
        pixel_values=torch.cat(pixels) if pixels else None,
        grid_thw=torch.cat(grids) if grids else None,
    )


def _digest(request: CaptionRequest) -> str:
    """Hash of the images' content and of how they are processed; raises for what is not a readable image."""
    if not request.images:
        return ""
    digest = hashlib.blake2b(repr(sorted(request.processor_kwargs.items())).encode())
    for image in request.images:
        if not isinstance(image, Image.Image):
            raise request.error(f"images must be PIL images, got {type(image).__name__}")
        try:
            content = image.tobytes()
        except (OSError, SyntaxError, ValueError) as error:
            raise request.error(f"unreadable image: {error}") from error
        digest.update(f"{image.mode} {image.size} {image.getpalette() if image.mode == 'P' else ''}".encode())
        digest.update(content)
    return digest.hexdigest()


__all__ = ["CaptionRequestError", "PrefillChunk", "Prompt", "PromptBuilder", "prefill_chunks"]

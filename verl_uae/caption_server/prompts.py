# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From requests to prompts that the model can take: validation, image processing, grouping by shape.

Captions of one image arrive as separate requests with equal prompts. Equal prompts are prefilled once.
Prompts are grouped by shape, and a group's shape follows from each member alone: no prompt is padded because
of another prompt.

Shapes: U prompts of a chunk, L padded prompt length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError
from verl_uae.captioners import Pictures, family_of, read_pictures

#: Prompts are padded to a multiple of this, so that prompts of similar lengths share a prefill; not where layers carry
#: a state from position to position, which would run over the pads.
LENGTH_MULTIPLE = 16

PromptKey = tuple[tuple[int, ...], str]
ShapeKey = tuple[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Prompt:
    """A distinct prompt.

    Attributes:
        token_ids: prompt tokens, image placeholders expanded.
        pictures: what the model takes of its images; empty where it has none.
        shape: prompts of equal shape may share a prefill.
    """

    token_ids: tuple[int, ...]
    pictures: dict[str, Tensor]
    shape: ShapeKey


class PromptBuilder:
    """Checks requests and turns them into prompts.

    Args:
        config: the model's configuration.
        image_processor: transformers image processor of the checkpoint; must be the one the trainer uses.
        prompt_length: longest prompt accepted, in tokens.
    """

    def __init__(self, config: Any, image_processor: Any, prompt_length: int) -> None:
        self.config = config
        self.image_token_id: int = config.image_token_id
        self.vocab_size: int = config.get_text_config().vocab_size
        recurrent = family_of(config.model_type, config.name_or_path).recurrent
        self.length_multiple = 1 if recurrent else LENGTH_MULTIPLE
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
        pictures = self._process(request) if request.images else Pictures({}, 0, ())
        placeholders = token_ids.count(self.image_token_id)
        if placeholders != pictures.tokens:
            raise request.error(
                f"the prompt has {placeholders} image tokens, its {len(request.images)} images need {pictures.tokens}"
            )
        padded = -(-len(token_ids) // self.length_multiple) * self.length_multiple
        return Prompt(token_ids, pictures.inputs, (min(padded, self.prompt_length), pictures.shape))

    def _process(self, request: CaptionRequest) -> Pictures:
        try:
            return read_pictures(self.image_processor, self.config, request.images, request.processor_kwargs)
        # A fault boundary: whatever a codec or a processor raises on one picture concerns one request.
        except Exception as error:
            raise request.error(f"the image processor failed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class PrefillChunk:
    """Model inputs of prompts of one shape, left-padded.

    Attributes:
        members: index of the prompt of each leading row; rows beyond repeat the first one and are discarded.
        input_ids_UL: int64.
        valid_UL: bool, False at padding.
        pictures: what the model takes of their images, one after the other; may be empty.
    """

    members: tuple[int, ...]
    input_ids_UL: Tensor
    valid_UL: Tensor
    pictures: dict[str, Tensor]


def prefill_chunks(prompts: Sequence[Prompt], chunk_size: int, fill: bool) -> Iterator[PrefillChunk]:
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
            yield _collate(tuple(members), rows, length)


def _collate(members: tuple[int, ...], rows: Sequence[Prompt], length: int) -> PrefillChunk:
    input_ids_UL = torch.tensor([(0,) * (length - len(row.token_ids)) + row.token_ids for row in rows])
    start_U1 = torch.tensor([[length - len(row.token_ids)] for row in rows])
    valid_UL = torch.arange(length) >= start_U1
    pictures = {name: torch.cat([row.pictures[name] for row in rows]) for name in rows[0].pictures}
    return PrefillChunk(members, input_ids_UL, valid_UL, pictures)


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

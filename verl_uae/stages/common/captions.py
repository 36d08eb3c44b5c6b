# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions of a frozen captioner, once per picture, and the captioner in the process that asks for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.types import CaptionRequest, CaptionResult
from verl_uae.captioners import prompt_pictures
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.records import Caption
from verl_uae.checkpoints.load import load_processor
from verl_uae.data.images import source_digest
from verl_uae.errors import DataError, describe
from verl_uae.families.family import DecoderFamily
from verl_uae.families.text import language_stack
from verl_uae.seeding import derive_seed

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How messages become prompts; the defaults are verl's."""

    chat_template: str | None = None
    """Instead of the processor's own: ``actor_rollout_ref.model.custom_chat_template``."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the template: ``data.apply_chat_template_kwargs``."""
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the processor: ``data.mm_processor_kwargs``."""


class PromptTokens:
    """Messages -> prompt ids and resized pictures, by the calls verl's agent loops make.

    A captioner trained through those loops sees the very same prompt here: same template, same resizing of pictures.

    Args:
        processor: of the captioner.
        model_type: ``model_type`` of its config; verl chooses the token builder by it.
        settings: see there.
    """

    def __init__(self, processor: Any, model_type: str, settings: PromptSettings) -> None:
        template = settings.chat_template or processor.chat_template or processor.tokenizer.chat_template
        processor.chat_template = template
        self.processor = processor
        self.processor_kwargs = dict(settings.processor_kwargs)
        self.builder = create_continuous_token_builder(
            processor.tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=dict(settings.template_kwargs),
            mm_processor_kwargs=self.processor_kwargs,
            processor=processor,
        )

    def __call__(self, messages: Messages) -> tuple[list[int], list[Image.Image]]:
        """Prompt ids with image placeholders expanded, and the pictures as the image processor takes them.

        Raises:
            DataError: the prompt has a video.
        """
        images, video = prompt_pictures(self.processor, messages)
        if video:
            raise DataError("prompt", None, "has a video; the captioner takes pictures only")
        turns = [dict(message) for message in messages]
        return list(self.builder.build_initial_tokens(turns, images=images)), images


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """How captions are written."""

    seed: int
    """Run seed."""
    prompt_length: int
    """Longest prompt, tokens."""
    response_length: int
    """Longest caption, tokens, end of sequence included."""
    do_sample: bool = False
    """Greedy otherwise."""
    temperature: float = 1.0
    """Of sampled captions, above 0."""
    batch_size: int = 16
    """Captions generated together."""
    prompt: PromptSettings = field(default_factory=PromptSettings)


class CaptionWriter:
    """From prompts to captions, wherever they are generated.

    Args:
        processor: of the captioner.
        model_type: of its configuration.
        eos_token_ids: tokens that end a caption.
        settings: how captions are written.
    """

    def __init__(
        self, processor: Any, model_type: str, eos_token_ids: Collection[int], settings: CaptionSettings
    ) -> None:
        self.prompt_tokens = PromptTokens(processor, model_type, settings.prompt)
        self.tokenizer = processor.tokenizer
        self.eos_token_ids = eos_token_ids
        self.settings = settings

    def write(
        self,
        prompts: Sequence[Messages],
        infos: Sequence[Mapping[str, Any]],
        generate: Callable[[Sequence[CaptionRequest]], Sequence[CaptionResult | Exception]],
    ) -> list[Caption]:
        """One caption per prompt; one that cannot be written has a status and a reason instead.

        Args:
            prompts: messages.
            infos: ``extra_info`` of their rows.
            generate: answers requests in order, one that cannot be served by its error.
        """
        captions: list[Caption | None] = [None] * len(prompts)
        requests: list[CaptionRequest] = []
        asked: list[tuple[int, str]] = []
        for position, (messages, info) in enumerate(zip(prompts, infos, strict=True)):
            digest = ""
            try:
                digest = source_digest(messages, info)
                requests.append(self._request(messages, digest))
                asked.append((position, digest))
            except Exception as error:
                # Fault boundary of one caption: whatever its prompt raises costs that caption.
                captions[position] = failed_caption(digest, f"caption: {describe(error)}")
        for (position, digest), result in zip(asked, generate(requests), strict=True):
            captions[position] = self._caption(result, digest)
        return [caption for caption in captions if caption is not None]

    def _request(self, messages: Messages, digest: str) -> CaptionRequest:
        ids, images = self.prompt_tokens(messages)
        settings = self.settings
        return CaptionRequest(
            prompt_ids=ids,
            seed=derive_seed(settings.seed, "u4g caption", digest),
            images=images,
            temperature=settings.temperature if settings.do_sample else 0.0,
            processor_kwargs=self.prompt_tokens.processor_kwargs,
            request_id=digest[:12],
        )

    def _caption(self, result: CaptionResult | Exception, digest: str) -> Caption:
        if isinstance(result, Exception):
            return failed_caption(digest, f"caption: {result}")
        ids = result.token_ids
        return Caption(
            self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            digest,
            cut=len(ids) >= self.settings.response_length and ids[-1] not in self.eos_token_ids,
            tokens=len(ids),
        )


class FrozenCaptioner:
    """The captioner in this process.

    Args:
        path: transformers folder or hub id of a captioner.
        settings: how captions are written.
        dtype: of the weights.
        device: of the model.
    """

    def __init__(
        self,
        path: str,
        settings: CaptionSettings,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings = settings
        self.engine = CaptionEngine(
            path,
            settings.prompt_length,
            settings.response_length,
            dtype=dtype,
            device=device,
            max_batch_size=settings.batch_size,
            prefill_batch_size=min(8, settings.batch_size),
        )
        self.writer = CaptionWriter(
            load_processor(path), self.engine.config.model_type, self.engine.eos_token_ids, settings
        )
        self.prompt_tokens = self.writer.prompt_tokens

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.engine.to(device)

    def shared_conditioner(self, family: DecoderFamily) -> Conditioner:
        """A conditioner on the captioner's own language model, so that its weights are in memory once."""
        conditioner = Conditioner(language_stack(self.engine.model), self.engine.tokenizer, family)
        return conditioner.eval().requires_grad_(False)

    def write(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """One caption per prompt; one that cannot be written has a status and a reason instead.

        A caption depends on its image, prompt and seed, not on the others.

        Args:
            prompts: messages.
            infos: ``extra_info`` of their rows.

        Raises:
            FloatingPointError: the model's logits are not finite, which is no picture's fault.
        """
        return self.writer.write(prompts, infos, self.engine.generate)


def failed_caption(digest: str, reason: str) -> Caption:
    """What there is of an image without caption."""
    logger.warning("%s", reason)
    return Caption.failed(digest, reason)


def column_caption(messages: Messages, extra_info: Mapping[str, Any]) -> Caption:
    """The caption that a dataset row brings as ``extra_info.caption``."""
    digest = ""
    try:
        digest = source_digest(messages, extra_info)
    except DataError as error:
        return failed_caption(digest, f"caption: {describe(error)}")
    caption = extra_info.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        row = extra_info.get("index", "?")
        return failed_caption(digest, f"row {row} has no extra_info.caption (uae.u4g.captions.source=column)")
    text = caption.strip()
    return Caption(text, digest, tokens=len(text.split()))


class CaptionCache:
    """Captions by :func:`~verl_uae.chain.records.prompt_name`; the least recently used go first.

    Args:
        max_captions: how many are kept.
    """

    def __init__(self, max_captions: int) -> None:
        self.hits = self.misses = 0
        self._captions: LRUCache[Any, Caption] = LRUCache(max_captions)

    def get(self, name: Any) -> Caption | None:
        """The caption of a name, if it is kept."""
        caption = self._captions.get(name)
        if caption is None:
            self.misses += 1
        else:
            self.hits += 1
        return caption

    def put(self, name: Any, caption: Caption) -> None:
        """Keep a caption; one that failed is not kept, so it is tried again."""
        if caption.ok:
            self._captions[name] = caption

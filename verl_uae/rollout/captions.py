# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions of a frozen captioner: written in the policy workers, once per image."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verl_uae.compat import ensure_torchvision
from verl_uae.data.images import image_digest
from verl_uae.decoder.conditioner import Conditioner, language_stack
from verl_uae.rollout.hf.engine import CaptionEngine
from verl_uae.rollout.hf.types import CaptionRequest, CaptionRequestError, CaptionResult
from verl_uae.rollout.sample import CaptionState, source_image
from verl_uae.seeding import derive_seed

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]


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


class EncoderCaptions:
    """The captioner in this process.

    Args:
        path: transformers folder or hub id of a Qwen2.5-VL.
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
        ensure_torchvision()
        from transformers import AutoProcessor

        self.settings = settings
        self.processor = AutoProcessor.from_pretrained(path)
        self.engine = CaptionEngine(
            path,
            settings.prompt_length,
            settings.response_length,
            dtype=dtype,
            device=device,
            max_batch_size=settings.batch_size,
            prefill_batch_size=min(8, settings.batch_size),
        )

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.engine.to(device)

    def shared_conditioner(self, *, length: int, role: str) -> Conditioner:
        """A conditioner on the captioner's own language model, so that its weights are in memory once."""
        conditioner = Conditioner(language_stack(self.engine.model), self.engine.tokenizer, length=length, role=role)
        return conditioner.eval().requires_grad_(False)

    def write(self, prompts: Sequence[Messages]) -> list[CaptionState]:
        """One caption per prompt; one that cannot be written has a status and a reason instead.

        A caption depends on its image, prompt and seed, not on the others.
        """
        states: list[CaptionState | None] = [None] * len(prompts)
        requests: list[CaptionRequest] = []
        asked: list[tuple[int, str]] = []
        for position, messages in enumerate(prompts):
            digest = ""
            try:
                image = source_image(messages).convert("RGB")
                digest = image_digest(image)
                requests.append(self._request(messages, digest))
                asked.append((position, digest))
            except Exception as error:
                # Fault boundary of one caption: whatever its prompt raises costs that caption.
                states[position] = failed_caption(digest, f"caption: {type(error).__name__}: {error}")
        for (position, digest), result in zip(asked, self.engine.generate(requests), strict=True):
            states[position] = self._state(result, digest)
        return [state for state in states if state is not None]

    def _request(self, messages: Messages, digest: str) -> CaptionRequest:
        text = self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        images = [
            item["image"].convert("RGB")
            for message in messages
            if not isinstance(message.get("content"), str)
            for item in message.get("content") or ()
            if item.get("type") == "image"
        ]
        ids = self.processor(text=[text], images=images)["input_ids"][0]
        settings = self.settings
        return CaptionRequest(
            prompt_ids=list(ids),
            seed=derive_seed(settings.seed, "u4g caption", digest),
            images=images,
            temperature=settings.temperature if settings.do_sample else 0.0,
            request_id=digest[:12],
        )

    def _state(self, result: CaptionResult | CaptionRequestError, digest: str) -> CaptionState:
        if isinstance(result, CaptionRequestError):
            return failed_caption(digest, f"caption: {result}")
        ids = result.token_ids
        tokenizer = self.engine.tokenizer
        return CaptionState(
            caption=tokenizer.decode(ids, skip_special_tokens=True).strip(),
            digest=digest,
            status="ok",
            reason="",
            cut=len(ids) >= self.settings.response_length and ids[-1] not in self.engine.eos_token_ids,
            tokens=len(ids),
        )


def failed_caption(digest: str, reason: str) -> CaptionState:
    """The state of an image without caption."""
    logger.warning("%s", reason)
    return CaptionState(caption="", digest=digest, status="error", reason=reason, cut=False, tokens=0)


def column_caption(messages: Messages, extra_info: Mapping[str, Any]) -> CaptionState:
    """The caption that a dataset row brings as ``extra_info.caption``."""
    digest = ""
    try:
        digest = image_digest(source_image(messages).convert("RGB"))
    except Exception as error:
        # Fault boundary of one row, as in EncoderCaptions.write.
        return failed_caption(digest, f"caption: {type(error).__name__}: {error}")
    caption = extra_info.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        row = extra_info.get("index", "?")
        return failed_caption(digest, f"row {row} has no extra_info.caption (uae.policy.captions.source=column)")
    text = caption.strip()
    return CaptionState(caption=text, digest=digest, status="ok", reason="", cut=False, tokens=len(text.split()))


class CaptionCache:
    """Captions by the digest of their image and the text of their prompt; the least recently used go first.

    Args:
        max_captions: how many are kept.
    """

    def __init__(self, max_captions: int) -> None:
        self.max_captions = max_captions
        self.hits = self.misses = 0
        self._states: OrderedDict[Any, CaptionState] = OrderedDict()

    def get(self, name: Any) -> CaptionState | None:
        """The caption of a name, if it is kept."""
        state = self._states.get(name)
        if state is None:
            self.misses += 1
            return None
        self.hits += 1
        self._states.move_to_end(name)
        return state

    def put(self, name: Any, state: CaptionState) -> None:
        """Keep a caption; one that failed is not kept, so it is tried again."""
        if state["status"] != "ok":
            return
        self._states[name] = state
        self._states.move_to_end(name)
        while len(self._states) > self.max_captions:
            self._states.popitem(last=False)

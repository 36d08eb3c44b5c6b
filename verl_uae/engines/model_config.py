# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's model section with a processor for every family of captioners: ``actor_rollout_ref.model._target_``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl.workers.config import HFModelConfig

from verl_uae.checkpoints.load import load_processor
from verl_uae.compat import ensure_torchvision

ensure_torchvision()

import transformers  # noqa: E402


@dataclass
class CaptionerConfig(HFModelConfig):
    """verl's own but for the processor: verl 0.9.1 (``hf_processor``) builds those of seven classes, and None else.

    Its agent loops would then caption prompts without pictures.
    """

    processor: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processor is not None or not self.load_tokenizer:
            return
        processor = load_processor(self.local_tokenizer_path)
        if isinstance(processor, transformers.InternVLProcessor):
            template = self.custom_chat_template or processor.chat_template or self.tokenizer.chat_template
            self.processor = InternVLProcessor.of(processor, template)


class InternVLProcessor(transformers.InternVLProcessor):
    """transformers' own, which also takes pictures beside a text that names none, as Qwen's does.

    verl's agent loops take the image tokens out of a prompt and run the processor on the rest, for the pixels alone.
    The name is that of transformers' class, since a saved processor is loaded by it.
    """

    @classmethod
    def of(cls, stock: transformers.InternVLProcessor, chat_template: str) -> InternVLProcessor:
        """The parts of a processor of transformers, with a chat template."""
        return cls(
            image_processor=stock.image_processor,
            tokenizer=stock.tokenizer,
            video_processor=stock.video_processor,
            image_seq_length=stock.image_seq_length,
            chat_template=chat_template,
        )

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **options: Any) -> Any:
        """As transformers has it; of pictures that no text names, the pixels and the tokens of the text."""
        texts = [text] if isinstance(text, str) else list(text or ())
        if not images or not texts or any(self.image_token in part for part in texts):
            return super().__call__(images=images, text=text, videos=videos, **options)
        pictures = super().__call__(images=images, text=[self.image_token * len(images)], **options)
        found = super().__call__(text=texts, **options)
        found["pixel_values"] = pictures["pixel_values"]
        return found

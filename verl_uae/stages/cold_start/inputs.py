# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced captions: the prompt that captioning stages use, followed by a given caption.

Shape legend: B captions, T tokens of prompt and caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from verl_uae.data.schema import IMAGE_MARK, make_prompt
from verl_uae.stages.cold_start.loss import CaptionInputs
from verl_uae.stages.common.captions import Messages, PromptTokens
from verl_uae.text import encodable


class CaptionBatcher:
    """Builds model inputs of pictures with captions.

    Args:
        prompt_tokens: messages to ids and resized pictures, as in captioning stages.
        processor: of the captioner.
        config: of the captioner.
        response_length: longest caption with its end of turn, tokens; longer ones are cut.
        device: of the inputs.
    """

    def __init__(
        self, prompt_tokens: PromptTokens, processor: Any, config: Any, response_length: int, device: str | torch.device
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.processor = processor
        self.image_token_id = int(config.image_token_id)
        self.response_length = response_length
        self.device = torch.device(device)

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], prompts: Sequence[Messages | None]
    ) -> CaptionInputs:
        """Right-padded inputs; causal attention never looks at the pads."""
        ids: list[Tensor] = []
        answers: list[Tensor] = []
        shown: list[Image.Image] = []
        for image, caption, prompt in zip(images, captions, prompts, strict=True):
            prompt_ids, pictures = self.prompt_tokens(messages_with(image, prompt))
            answer_ids = self._answer(caption)
            ids.append(torch.tensor(prompt_ids + answer_ids))
            answers.append(torch.tensor([False] * len(prompt_ids) + [True] * len(answer_ids)))
            shown += pictures
        pad = nn.utils.rnn.pad_sequence
        ids_BT = pad(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        mask_BT = pad([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
        features = self.processor.image_processor(
            images=shown, return_tensors="pt", **self.prompt_tokens.processor_kwargs
        )
        inputs: dict[str, Tensor] = {
            "pixel_values": features["pixel_values"],
            "image_grid_thw": features["image_grid_thw"],
            "mm_token_type_ids": (ids_BT == self.image_token_id).long(),
        }
        on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        answer_BT = pad(answers, batch_first=True).to(self.device)
        return CaptionInputs(ids_BT.to(self.device), mask_BT.to(self.device), answer_BT, on_device)

    def _answer(self, caption: str) -> list[int]:
        """Tokens of a caption and the end of its turn; special tokens in it are read as text."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(encodable(caption), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids[: self.response_length - 1], tokenizer.eos_token_id]


def messages_with(image: Image.Image, prompt: Messages | None = None) -> list[dict[str, Any]]:
    """A prompt with its picture in place of ``<image>``, as verl's dataset builds it.

    Args:
        image: RGB.
        prompt: messages with plain text and one ``<image>``; None is :func:`~verl_uae.data.schema.make_prompt`.
    """
    return [
        {"role": message["role"], "content": _parts(message, image)} for message in (prompt or tuple(make_prompt()))
    ]


def _parts(message: Mapping[str, Any], image: Image.Image) -> str | list[dict[str, Any]]:
    before, mark, after = message["content"].partition(IMAGE_MARK)
    if not mark:
        return message["content"]
    texts = [{"type": "text", "text": text} if text else None for text in (before, after)]
    parts = [texts[0], {"type": "image", "image": image}, texts[1]]
    return [part for part in parts if part is not None]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Word-level tokenizer and Qwen2.5-VL processor of the tiny captioner.

The tokenizer knows the words of captions (the caption grammar's by default), the chat roles and Qwen's special tokens,
and nothing else, so its length is the model's vocabulary and every sampled id is a word. A picture prompt is twelve
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from verl_uae.compat import ensure_torchvision
from verl_uae.scenes.grammar import WORDS
from verl_uae.scenes.render import IMAGE_SIZE

PAD, UNKNOWN, NEWLINE = "<|endoftext|>", "<|unknown|>", "\n"
SPECIAL_TOKENS: tuple[str, ...] = (
    PAD,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    UNKNOWN,
)
"""Named as Qwen names them (Qwen has no unknown token; a word-level vocabulary needs one)."""
PROMPT = "describe"
ROLES: tuple[str, ...] = ("user", "assistant", "system", "generate")
RESERVED: tuple[str, ...] = (*SPECIAL_TOKENS, NEWLINE, *ROLES, PROMPT)
"""First in every vocabulary: what stands in the chat and is no word of a caption. verl's prompt builder for Qwen models
wants the newline to be exactly one token; our template has none."""
VOCABULARY: tuple[str, ...] = (*RESERVED, *WORDS)

_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}
#: Of a captioner's language model, and of the captioner: settings that name tokens.
TEXT_TOKENS: dict[str, int | None] = {
    "bos_token_id": None,
    "eos_token_id": _NUMBERS["<|im_end|>"],
    "pad_token_id": _NUMBERS[PAD],
}
PICTURE_TOKENS: dict[str, int] = {
    "image_token_id": _NUMBERS["<|image_pad|>"],
    "video_token_id": _NUMBERS["<|video_pad|>"],
    "vision_start_token_id": _NUMBERS["<|vision_start|>"],
    "vision_end_token_id": _NUMBERS["<|vision_end|>"],
}

PATCH_SIZE = 8
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
GRID = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = (GRID // MERGE_SIZE) ** 2
"""Image tokens of a 32x32 picture. Photographs are scaled down to at most as many, thin ones (1:200) to at most 32."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + ' ' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for item in message.content -%}"
    "{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif item.type == 'video' or 'video' in item -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in item -%}{{ item.text }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "<|im_end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}"
)
"""Qwen2.5-VL's turn structure without its default system message and without newlines."""


def build_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> Any:
    """The tokenizer, a `transformers.PreTrainedTokenizerFast` whose ids are the indices of a vocabulary.

    Unknown words become one unknown token; upper and lower case are the same; decoding joins words with single spaces.
    """
    ensure_torchvision()
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    # Splits "<|im_end|>" written inside a caption into pieces, so that text cannot forge a special token.
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+|\n"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token="<|im_end|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, UNKNOWN, "<|im_end|>")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def build_processor(
    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl", vocabulary: Sequence[str] = VOCABULARY
) -> Any:
    """The processor of a captioner with its image and video processors, ready for `save_pretrained`."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    kinds: dict[str, tuple[Any, Any]] = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    processor, video_processor = kinds[family]

    layout: dict[str, Any] = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    pixels = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    return processor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), **layout),
        tokenizer=build_tokenizer(vocabulary),
        video_processor=video_processor(size=dict(pixels), **layout),
        chat_template=CHAT_TEMPLATE,
    )


def pixel_values(images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the image processor makes of 32x32 pictures, for a whole batch and without PIL.

    Args:
        images_B3HW: float in [0, 1].

    Returns:
        `pixel_values` (B * 16, 3 * 2 * 8 * 8) and `image_grid_thw` (B, 3), equal to the processor's.
    """
    b = images_B3HW.shape[0]
    side = GRID // MERGE_SIZE
    blocks = (images_B3HW * 2 - 1).reshape(b, 3, side, MERGE_SIZE, PATCH_SIZE, side, MERGE_SIZE, PATCH_SIZE)
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    patches = patches.expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH_SIZE, -1, -1)
    return patches.reshape(b * GRID * GRID, -1), torch.tensor([[1, GRID, GRID]]).expand(b, 3)


def prompt_ids(tokenizer: Any) -> list[int]:
    """Token ids of the picture prompt "<image>describe", image tokens expanded: 12 ids."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def unsayable_ids(tokenizer: Any) -> list[int]:
    """Ids that must not be sampled in a caption: everything but its words and the end of turn.

    A sampled image token would be taken for a picture by the model's next forward pass.
    """
    silent = {*RESERVED, *tokenizer.get_added_vocab()} - {tokenizer.eos_token}
    return sorted(number for token, number in tokenizer.get_vocab().items() if token in silent)


def generation_config(tokenizer: Any) -> Any:
    """How captions are sampled: from the model's own distribution over what can be said."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=unsayable_ids(tokenizer),
    )

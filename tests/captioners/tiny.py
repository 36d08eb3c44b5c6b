# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random captioners of every family: the real classes and processors, with the words and the width of the scenes.

They fit the scenes' decoder and data, so that whole training commands run with them. Weights are stirred: what starts
at exactly 0 or 1 (gates, norms, layer scales) would hide the parts under test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from verl_uae.compat import ensure_torchvision
from verl_uae.scenes.render import IMAGE_SIZE
from verl_uae.scenes.tiny_models import HIDDEN_SIZE
from verl_uae.scenes.tokenizer import (
    CHAT_TEMPLATE,
    MERGE_SIZE,
    PATCH_SIZE,
    TEMPORAL_PATCH_SIZE,
    VOCABULARY,
    build_processor,
    build_tokenizer,
    unsayable_ids,
)

ensure_torchvision()

import transformers  # noqa: E402

TILE = 16
"""Side of InternVL's tiles: 2 x 2 patches, one token."""

_TILE_MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_LAYOUT: dict[str, Any] = {
    "patch_size": PATCH_SIZE,
    "merge_size": MERGE_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": 4 * IMAGE_SIZE**2},
}


def build(name: str, head_dim: int = HIDDEN_SIZE // 4) -> tuple[Any, Any]:
    """A new model, with the same weights at every call and in every process, and its processor, by ``model_type``.

    Args:
        name: one of `NAMES`.
        head_dim: width of a head; Qwen2.5-VL has the default only.
    """
    processor = _PROCESSORS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _MODELS[name](processor.tokenizer, head_dim)
        _stir(model)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=unsayable_ids(processor.tokenizer),
    )
    return model.eval(), processor


def save(name: str, folder: Path, head_dim: int = HIDDEN_SIZE // 4) -> Path:
    """A new model and processor as a folder."""
    for part in build(name, head_dim):
        part.save_pretrained(folder)
    return folder


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _text(tokenizer: Any, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
        **more,
    }


def _pictures(tokenizer: Any, **vision: Any) -> dict[str, Any]:
    tower = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": HIDDEN_SIZE,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "initializer_range": 0.08,
        **vision,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(marks)), strict=True))
    return {"vision_config": tower, "tie_word_embeddings": False, **ids}


def _rope(head_dim: int, **more: Any) -> dict[str, Any]:
    pairs, third = head_dim // 2, head_dim // 6
    sections = [pairs - 2 * third, third, third]
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}}


def _qwen2_5_vl(tokenizer: Any, head_dim: int) -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, head_dim, max_window_layers=2, **_rope(head_dim)),
        **_pictures(tokenizer, window_size=IMAGE_SIZE, fullatt_block_indexes=[2]),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(tokenizer: Any, head_dim: int) -> Any:
    config = transformers.Qwen3VLConfig(
        text_config=_text(tokenizer, head_dim, **_rope(head_dim, mrope_interleaved=True)),
        **_pictures(tokenizer, deepstack_visual_indexes=[0, 1], num_position_embeddings=64),
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def _qwen3_5(tokenizer: Any, head_dim: int) -> Any:
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    heads = {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    rope = _rope(head_dim, mrope_interleaved=True, partial_rotary_factor=1.0)
    config = transformers.Qwen3_5Config(
        text_config=_text(tokenizer, head_dim, **layers, **heads, **rope),
        **_pictures(tokenizer, num_position_embeddings=64),
    )
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            # As it starts, a state is gone after one token; this one lasts for tens, so that what is in it shows.
            parameter.data.fill_(-3.0)
    return model


def _internvl(tokenizer: Any, head_dim: int) -> Any:
    text = _text(tokenizer, head_dim, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH_SIZE, PATCH_SIZE],
        "initializer_range": 0.08,
    }
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen3", **text},
        vision_config=vision,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    return transformers.InternVLForConditionalGeneration(config)


def _of_qwen3() -> Any:
    tokenizer = build_tokenizer()
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**_LAYOUT),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**_LAYOUT),
        chat_template=CHAT_TEMPLATE,
    )


def _of_internvl() -> Any:
    words = build_tokenizer((*VOCABULARY, *_TILE_MARKS.values()))
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        unk_token=words.unk_token,
        pad_token=words.pad_token,
        eos_token=words.eos_token,
        extra_special_tokens=[*words.extra_special_tokens, *_TILE_MARKS.values()],
        model_specific_special_tokens=_TILE_MARKS,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    size = {"size": {"height": TILE, "width": TILE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(max_patches=4, **size),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(**size),
        image_seq_length=1,
        chat_template=template,
    )


_MODELS: dict[str, Callable[[Any, int], Any]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "internvl": _internvl,
}
_PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": build_processor,
    "qwen3_vl": _of_qwen3,
    "qwen3_5": _of_qwen3,
    "internvl": _of_internvl,
}
NAMES = tuple(_MODELS)

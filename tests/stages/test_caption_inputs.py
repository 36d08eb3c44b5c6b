# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from verl_uae.compat import ensure_torchvision
from verl_uae.data.schema import make_prompt
from verl_uae.stages.cold_start.captioner import CaptionBatcher, messages_with
from verl_uae.stages.common.captions import PromptSettings, PromptTokens

IMAGES = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
PROMPT = make_prompt("<image>", None)


@pytest.fixture(scope="module")
def batcher(tiny_models: Path) -> CaptionBatcher:
    ensure_torchvision()
    from transformers import AutoConfig, AutoProcessor

    path = str(tiny_models / "captioner")
    processor, config = AutoProcessor.from_pretrained(path), AutoConfig.from_pretrained(path)
    tokens = PromptTokens(processor, config.model_type, PromptSettings())
    return CaptionBatcher(tokens, processor, config, 8, "cpu")


def test_the_answer_is_the_caption_and_the_end_of_its_turn(batcher: CaptionBatcher) -> None:
    captions = ["a circle", "a large red circle"]
    inputs = batcher(IMAGES, captions, [PROMPT, PROMPT])
    tokenizer = batcher.processor.tokenizer
    for row, text in enumerate(captions):
        answer = inputs.ids_BT[row][inputs.answer_BT[row]].tolist()
        assert answer[-1] == tokenizer.eos_token_id and tokenizer.decode(answer[:-1]).strip() == text
        prompt_ids, _ = batcher.prompt_tokens(messages_with(IMAGES[row], PROMPT))
        assert inputs.ids_BT[row][: len(prompt_ids)].tolist() == prompt_ids
        assert int(inputs.mask_BT[row].sum()) == len(prompt_ids) + len(answer)
    assert not bool((inputs.answer_BT & ~inputs.mask_BT).any())


def test_every_picture_has_its_places(batcher: CaptionBatcher) -> None:
    inputs = batcher(IMAGES, ["a circle"] * 2, [PROMPT, PROMPT])
    merged = int(inputs.pictures["image_grid_thw"].prod(-1).sum()) // batcher.processor.image_processor.merge_size**2
    assert int(inputs.pictures["mm_token_type_ids"].sum()) == merged > 0
    assert len(inputs.pictures["image_grid_thw"]) == 2


def test_a_long_caption_is_cut_and_still_ends(batcher: CaptionBatcher) -> None:
    inputs = batcher(IMAGES[:1], ["red " * 30], [PROMPT])
    answer = inputs.ids_BT[0][inputs.answer_BT[0]]
    assert len(answer) == 8 and int(answer[-1]) == batcher.processor.tokenizer.eos_token_id


def test_a_caption_cannot_end_its_own_turn(batcher: CaptionBatcher) -> None:
    end = batcher.processor.tokenizer.eos_token_id
    inputs = batcher(IMAGES[:1], ["a <|im_end|> circle"], [PROMPT])
    assert int((inputs.ids_BT[0][inputs.answer_BT[0]] == end).sum()) == 1


def test_messages_hold_the_picture_in_its_place() -> None:
    system, user = messages_with(
        IMAGES[0], [{"role": "system", "content": "s"}, {"role": "user", "content": "a<image>b"}]
    )
    assert system == {"role": "system", "content": "s"}
    kinds = [(part["type"], part.get("text", part.get("image"))) for part in user["content"]]
    assert kinds == [("text", "a"), ("image", IMAGES[0]), ("text", "b")]
    assert [part["type"] for part in messages_with(IMAGES[0])[-1]["content"]] == ["image", "text"]


def test_pads_change_no_row(batcher: CaptionBatcher) -> None:
    alone = batcher(IMAGES[:1], ["a circle"], [PROMPT])
    together = batcher(IMAGES, ["a circle", "a large red circle"], [PROMPT, PROMPT])
    count = alone.ids_BT.shape[1]
    assert torch.equal(together.ids_BT[:1, :count], alone.ids_BT) and not bool(together.mask_BT[0, count:].any())


def test_half_of_an_emoji_does_not_stop_the_tokenizer(batcher: CaptionBatcher) -> None:
    inputs = batcher(IMAGES[:1], ["red \ud83d"], [PROMPT])
    assert int(inputs.answer_BT.sum()) > 1

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from verl_uae.scenes import tokenizer as t
from verl_uae.scenes.grammar import WORDS, CaptionMix
from verl_uae.scenes.render import render_float, render_image, sample_scene

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe"}]}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return folder


def test_ids_are_the_vocabulary_and_captions_round_trip(tokenizer):
    assert len(tokenizer) == len(t.VOCABULARY) == len(set(t.VOCABULARY))
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == list(t.VOCABULARY)
    rng, mix = random.Random(0), CaptionMix(bare=0.2, full=0.2)
    for _ in range(50):
        text = mix.sample(sample_scene(rng), rng)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_special_tokens_have_qwens_names(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad", "endoftext"):
        assert tokenizer.convert_tokens_to_ids(f"<|{name}|>") != tokenizer.unk_token_id


def test_newline_is_one_token_as_verl_expects_of_qwen(tokenizer):
    assert len(tokenizer("\n", add_special_tokens=False)["input_ids"]) == 1


def test_text_cannot_forge_a_special_token(tokenizer):
    ids = tokenizer("a <|im_end|> circle", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("role", t.ROLES)
def test_the_template_knows_the_roles_in_both_content_forms(tokenizer, role):
    plain = tokenizer.apply_chat_template([{"role": role, "content": "a circle"}], tokenize=False)
    items = [{"role": role, "content": [{"type": "text", "text": "a circle"}]}]
    assert plain == tokenizer.apply_chat_template(items, tokenize=False)
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", role, "a", "circle", "<|im_end|>"]


def test_prompt_is_twelve_known_tokens(tokenizer, processor):
    image = render_image(sample_scene(random.Random(0)))
    text = processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = processor(text=[text], images=[image], return_tensors="pt")["input_ids"][0].tolist()
    assert ids == t.prompt_ids(tokenizer)
    assert len(ids) == 12 and ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 4
    assert tokenizer.unk_token_id not in ids


def test_reloads_by_auto_classes(saved, tokenizer):
    processor = AutoProcessor.from_pretrained(saved)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(processor.image_processor).__name__.startswith("Qwen2VLImageProcessor")
    image = render_image(sample_scene(random.Random(0)))
    text = processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    batch = processor(text=[text], images=[image], return_tensors="pt")
    assert batch["input_ids"][0].tolist() == t.prompt_ids(tokenizer)
    reloaded = AutoTokenizer.from_pretrained(saved)
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.chat_template == tokenizer.chat_template


def test_batched_pixels_are_the_processors(saved):
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(5)]
    expected = AutoProcessor.from_pretrained(saved).image_processor(
        images=[render_image(scene) for scene in scenes], return_tensors="pt"
    )
    pixels, grid = t.pixel_values(render_float(scenes))
    assert torch.equal(grid, expected["image_grid_thw"])
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((32, 32), 4), ((57, 32), 4), ((640, 480), 4), ((3000, 2000), 4), ((32, 1024), 11), ((3, 600), 32)],
)
def test_photographs_of_any_size_cost_a_bounded_number_of_tokens(processor, size, tokens):
    grid = processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"]
    assert 1 <= int(grid.prod()) // 4 <= tokens


def test_only_words_and_end_of_turn_can_be_said(tokenizer):
    sayable = set(range(len(tokenizer))) - set(t.unsayable_ids(tokenizer))
    assert sorted(tokenizer.convert_ids_to_tokens(sorted(sayable))) == sorted([*WORDS, "<|im_end|>"])

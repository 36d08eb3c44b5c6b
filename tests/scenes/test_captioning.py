# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from verl_uae.scenes.captioning import MAX_CAPTION_TOKENS, Captioner
from verl_uae.scenes.grammar import WORDS, caption
from verl_uae.scenes.render import render_float, render_image, sample_scene

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe"}]}]


@pytest.fixture(scope="module")
def models(tiny_models):
    captioner = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner").eval()
    return Captioner(captioner, AutoProcessor.from_pretrained(tiny_models / "captioner").tokenizer)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(0)
    return [sample_scene(rng) for _ in range(6)]


@torch.no_grad()
def test_loss_is_that_of_the_plain_transformers_path(models, scenes, tiny_models):
    """Reference: processor, PIL pictures, padding, the model's own positions and its own loss, one row at a time."""
    processor = AutoProcessor.from_pretrained(tiny_models / "captioner")
    prompt = processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    total, count = 0.0, 0
    for scene in scenes:
        text = f"{prompt} {caption(scene)}<|im_end|>"
        batch = processor(text=[text], images=[render_image(scene)], return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[:, :12] = -100
        tokens = labels.shape[1] - 12
        total += float(models.model(**batch, labels=labels).loss) * tokens
        count += tokens
    loss = models.loss(render_float(scenes), [caption(scene) for scene in scenes])
    assert float(loss) == pytest.approx(total / count, abs=1e-4)


@torch.no_grad()
def test_greedy_sampling_is_that_of_generate(models, scenes, tiny_models):
    processor = AutoProcessor.from_pretrained(tiny_models / "captioner")
    prompt = processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    batch = processor(text=[prompt] * 6, images=[[render_image(s)] for s in scenes], return_tensors="pt")
    ids = models.model.generate(**batch, do_sample=False, max_new_tokens=MAX_CAPTION_TOKENS)[:, 12:]
    expected = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert models.sample(render_float(scenes)) == expected


def test_sampling_is_named_by_its_generator_and_says_only_words(models, scenes):
    image = render_float(scenes)
    state = torch.get_rng_state()
    draws = [models.sample(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert draws[0] == draws[1] != draws[2]
    assert {word for text in draws[0] for word in text.split()} <= set(WORDS)


@torch.no_grad()
def test_sampled_words_have_the_models_probabilities(models, scenes):
    """The first word of many draws against the softmax over words that can be said."""
    image = render_float(scenes[:1]).expand(1500, -1, -1, -1)
    firsts = models.sample(image, torch.Generator().manual_seed(0), max_tokens=1)
    logits = models.logits(image[:1], torch.zeros(1, 1, dtype=torch.long))[0, 0]
    sayable = [models.tokenizer.convert_tokens_to_ids(word) for word in WORDS] + [models.tokenizer.eos_token_id]
    probabilities = logits[sayable].softmax(0)
    for word, expected in zip([*WORDS, ""], probabilities.tolist(), strict=True):
        assert firsts.count(word) / 1500 == pytest.approx(expected, abs=0.03), word

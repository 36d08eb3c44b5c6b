# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer
from verl_uae.reward.terms.vision import ImageTextClip

CAPTIONS = ["a cab", "red", "", "a b c d e f g h i j"]


def test_score_against_the_whole_model(make_batch, tiny_clip: Path) -> None:
    """CLIPModel's own image-text logits, one caption at a time and without padding."""
    from transformers import CLIPModel

    batch = replace(make_batch(4, size=28), captions=CAPTIONS)
    term = ImageTextClip(str(tiny_clip))
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        found = term.score(batch)
        for index, caption in enumerate(CAPTIONS):
            tokens = term.tokenizer([caption], truncation=True, max_length=8, return_tensors="pt")
            pixels = term.preprocess(batch.source_B3HW[index : index + 1])
            logit = model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
            assert found[index].item() == pytest.approx(logit.item(), abs=1e-5)
    assert np.ptp(found.numpy()) > 1e-3


def test_words_past_the_last_position_do_not_count(make_batch, tiny_clip: Path) -> None:
    batch = replace(make_batch(3, size=28), captions=["a b c d e f", "a b c d e f g h", "a b c d e g"])
    batch.source_B3HW[1:] = batch.source_B3HW[0]
    same, longer, other = ImageTextClip(str(tiny_clip)).score(batch).tolist()
    assert same == pytest.approx(longer, abs=1e-6) and abs(same - other) > 1e-4


def test_the_reconstruction_is_not_looked_at_and_the_image_tower_is_shared(make_batch, tiny_clip: Path) -> None:
    batch = replace(make_batch(4, size=28), captions=CAPTIONS)
    params = {"model": str(tiny_clip)}
    alone = RewardScorer([("image_text_clip", 1.0, params)])
    expected = [record.value for record in alone.score(batch)]
    moved = replace(batch, reconstruction_B3HW=batch.reconstruction_B3HW.flip(0))
    assert [record.value for record in alone.score(moved)] == expected
    both = RewardScorer([("image_text_clip", 1.0, params), ("clip", 1.0, params)])
    records = both.score(batch)
    assert [record.terms["image_text_clip"] for record in records] == expected
    assert (both.counters.forward_passes, both.counters.shared_passes) == (2, 1)


def test_a_model_without_tokenizer_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_clip / name, tmp_path / name)
    with pytest.raises(ConfigError, match=r"image_text_clip.model: .* no CLIP tokenizer"):
        ImageTextClip(str(tmp_path))


def test_the_shape_does_not_depend_on_the_other_captions(tiny_clip: Path) -> None:
    term, seen = ImageTextClip(str(tiny_clip)), []
    term.text_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        term.embed_texts(["a"]), term.embed_texts(["a b c d e f g h i j k"])
    assert seen == [(1, 8), (1, 8)]

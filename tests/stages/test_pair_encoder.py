# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.data.cache import TensorCache
from verl_uae.data.pairs import Pair
from verl_uae.families.sd3 import SD3
from verl_uae.scenes.dataset import png_bytes
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_float
from verl_uae.stages.pretrain.worker import PairEncoder

SCENES = held_out_scenes(3, 5)
SIZE = (32, 32)
UNREADABLE = "a \ud800 circle"


def pair(number: int, **changes: object) -> Pair:
    values = {"image": png_bytes(SCENES[number]), "caption": "a circle", "digest": None, "width": 32, "height": 32}
    return Pair(**{**values, "file": "pairs.parquet", "row": number, **changes})


@pytest.fixture(scope="module")
def models(tiny_models: Path) -> tuple[Decoder, Conditioner]:
    return (
        Decoder.from_pretrained(str(tiny_models / "decoder")),
        Conditioner.from_pretrained(str(tiny_models / "captioner"), SD3({}, {}, length=20)),
    )


def make(models: tuple[Decoder, Conditioner], folder: Path | None = None) -> PairEncoder:
    decoder, conditioner = models
    caches = {}
    if folder is not None:
        caches = {
            "latent_cache": TensorCache(folder / "latents", "vae"),
            "condition_cache": TensorCache(folder / "conditions", "lm"),
        }
    return PairEncoder(decoder.vae, ConditionCache(conditioner, 64), batch_size=2, **caches)


def test_latents_are_the_posterior_means_of_the_pictures(models: tuple[Decoder, Conditioner]) -> None:
    found, problems = make(models).latents([pair(0), pair(1), pair(2)], SIZE)
    assert problems == ["", "", ""]
    expected = models[0].encode_image(render_float(SCENES))
    # The VAE normalises groups of pixels that are all alike, which makes large differences of last bits.
    stacked = torch.stack([latent for latent in found if latent is not None])
    torch.testing.assert_close(stacked, expected, atol=1e-3, rtol=0)


def test_a_picture_that_does_not_decode_costs_itself(models: tuple[Decoder, Conditioner]) -> None:
    bad = [pair(0), pair(1, image=b"\x89PNG nothing"), pair(2, image=b"", problem="the file is gone")]
    found, problems = make(models).latents(bad, SIZE)
    assert found[0] is not None and found[1] is None and found[2] is None
    assert problems[0] == "" and "pairs.parquet" in problems[1] and "the file is gone" in problems[2]


def test_what_is_on_disk_is_used_and_equals_what_was_made(models: tuple[Decoder, Conditioner], tmp_path: Path) -> None:
    first, second = make(models, tmp_path), make(models, tmp_path)
    pairs = [pair(0), pair(1), pair(0)]
    captions = ["a circle", "a large red circle", "a circle", "red " * 60]
    made = first.latents(pairs, SIZE)[0], first.states(captions)
    read = second.latents(pairs, SIZE)[0], second.states(captions)
    states = [[condition.states for condition in found[1][0]] for found in (made, read)]
    for a, b in zip(made[0] + states[0], read[0] + states[1], strict=True):
        assert a is not None and b is not None and torch.equal(a, b) and a.dtype == b.dtype
    assert made[1][1] == read[1][1] == [False, False, False, True]
    assert second.counters() == {"latent_cache_hit_frac": 1.0, "condition_cache_hit_frac": 1.0}
    assert second.conditions._kept == {}, "nothing was encoded again"


def test_other_sizes_are_other_latents(models: tuple[Decoder, Conditioner], tmp_path: Path) -> None:
    encoder = make(models, tmp_path)
    small, large = encoder.latents([pair(0)], SIZE)[0][0], encoder.latents([pair(0)], (64, 32))[0][0]
    assert small is not None and large is not None and large.shape[1] == 2 * small.shape[1]


@pytest.mark.parametrize("cached", [False, True])
def test_a_caption_that_cannot_be_encoded_costs_itself_and_is_not_kept(
    models: tuple[Decoder, Conditioner], tmp_path: Path, cached: bool
) -> None:
    encoder = make(models, tmp_path if cached else None)
    states, _, problems = encoder.states(["a circle", UNREADABLE])
    empty = encoder.states([""])[0][0]
    assert problems[0] == "" and problems[1].startswith("condition: ")
    assert torch.equal(states[1].states, empty.states) and not torch.equal(states[0].states, empty.states)
    if cached:
        assert encoder.condition_cache is not None and encoder.condition_cache.get(UNREADABLE) is None


def test_a_jpeg_is_brought_to_the_bucket(models: tuple[Decoder, Conditioner]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 40), (200, 30, 30)).save(buffer, format="JPEG")
    found, problems = make(models).latents([pair(0, image=buffer.getvalue(), width=90, height=40)], (32, 64))
    assert problems == [""] and found[0] is not None and found[0].shape[1:] == (4, 8)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import torch

from verl_uae.scenes.crowd import models as m
from verl_uae.scenes.crowd.checker import read_codes
from verl_uae.scenes.crowd.world import WORDS, caption, cut, render, sample_crowd, templates


def test_a_word_is_a_token_and_the_condition_holds_the_longest_caption():
    conditioner = m.build_conditioner(m.build_language_model(0), m.condition_length(16))
    rng = random.Random(0)
    text = caption(sample_crowd(rng, 16), rng)
    ids, mask, truncated = conditioner.tokenize([text])
    assert bool(mask.all()) and not bool(truncated) and ids.shape == (1, 165)
    assert conditioner.tokenizer.convert_ids_to_tokens(ids[0, 2:-3]) == text.split(" ")
    assert m.VOCABULARY.index(WORDS[0]) == ids[0, 2]


def test_a_short_condition_cuts_where_cut_does():
    language_model = m.build_language_model(0)
    rng = random.Random(1)
    text = caption(sample_crowd(rng, 12), rng)
    behind_cut = m.build_conditioner(language_model, m.TEMPLATE_TOKENS + 77).encode([text])
    shortened = m.build_conditioner(language_model, m.condition_length(16)).encode([cut(text, 77)])
    assert bool(behind_cut.truncated_B)
    torch.testing.assert_close(behind_cut.states_BLE, shortened.states_BLE[:, :82], atol=1e-5, rtol=1e-5)
    assert not bool(shortened.states_BLE[:, 82:].any())


def test_latents_tell_all_cell_pictures_apart_and_have_no_more_directions():
    vae = m.build_crowd_codec(0, steps=1)
    rng = random.Random(2)
    crowds = [sample_crowd(rng, n) for n in (1, 4, 16) for _ in range(8)]
    with torch.no_grad():
        latent = vae.encode(render(crowds) * 2 - 1).latent_dist.mean
    latent_NC = latent.permute(0, 2, 3, 1).flatten(0, 2)
    codes_N = torch.tensor([c.codes for c in crowds]).flatten()
    assert torch.equal(codes_N, read_codes(render(crowds)).flatten())
    means = torch.stack([latent_NC[codes_N == code].mean(0) for code in codes_N.unique()])
    apart = torch.cdist(means, means).fill_diagonal_(9.0).min()
    within = (latent_NC - means[torch.searchsorted(codes_N.unique(), codes_N)]).norm(dim=1).max()
    assert apart > 10 * within, (apart, within)
    # 25 pictures span 24 directions; the written encoder keeps 30.
    assert latent_NC.std(0)[len(templates()) - 1 :].max() < 0.01 and latent_NC.std(0)[:18].min() > 0.5


def test_positions_are_sums_of_rows_and_columns():
    table = m.build_crowd_decoder(0, m.build_crowd_codec(0, steps=1)).transformer.pos_embed.pos_embed.view(4, 4, -1)
    torch.testing.assert_close(table[1, 2] - table[1, 0], table[3, 2] - table[3, 0])
    distance = torch.pdist(table.flatten(0, 1))
    assert distance.min() > 5

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import AutoModelForImageTextToText

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.families.family import Condition
from verl_uae.families.sd3 import SD3
from verl_uae.scenes import tiny_models as m
from verl_uae.scenes.codec import LATENT_CHANNELS, build_codec
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.joint_training import save_captioner
from verl_uae.scenes.render import Scene, SceneObject
from verl_uae.scenes.tokenizer import unsayable_ids


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_the_documented_ones(tokenizer):
    captioner, decoder = m.build_captioner(0, tokenizer), m.build_decoder(0, build_codec(0, fit_scenes=100))
    assert 440_000 < _count(captioner) < 460_000
    assert 620_000 < _count(decoder.transformer) < 635_000
    assert captioner.config.text_config.vocab_size == len(tokenizer) == captioner.lm_head.weight.shape[0]


def test_builders_depend_on_the_seed_and_leave_the_global_generator_alone(tokenizer):
    state = torch.get_rng_state()
    first, second, other = (m.build_captioner(seed, tokenizer).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, processor) -> Path:
    """Folders captioner/ and decoder/ of the models as they are built."""
    out = tmp_path_factory.mktemp("untrained")
    save_captioner(m.build_captioner(0, processor.tokenizer), processor, out / "captioner")
    m.build_decoder(0, build_codec(0, fit_scenes=200)).save_pretrained(str(out / "decoder"))
    return out


def test_captioner_folder_reloads_with_its_sampling_rules(untrained, tokenizer):
    captioner = AutoModelForImageTextToText.from_pretrained(untrained / "captioner")
    assert type(captioner).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert captioner.generation_config.suppress_tokens == unsayable_ids(tokenizer)
    assert captioner.generation_config.eos_token_id == tokenizer.eos_token_id


def test_decoder_folder_loads_in_stock_diffusers_with_equal_weights(untrained):
    folder = str(untrained / "decoder")
    decoder = Decoder.from_pretrained(folder)
    transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    for key, value in transformer.state_dict().items():
        assert torch.equal(value, decoder.transformer.state_dict()[key]), key
    assert AutoencoderKL.from_pretrained(folder, subfolder="vae").config.latent_channels == LATENT_CHANNELS
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler").config.shift == 1.0


def test_positions_of_the_grid_are_far_apart_and_saved(untrained):
    transformer = Decoder.from_pretrained(str(untrained / "decoder")).transformer
    table = transformer.pos_embed.pos_embed[0]
    distance = torch.cdist(table, table) + 99 * torch.eye(len(table))
    assert table.shape == (16, m.HIDDEN_SIZE) and float(distance.min()) > 9


def test_blocks_start_open_and_the_output_at_zero(untrained):
    decoder = Decoder.from_pretrained(str(untrained / "decoder"))
    gates = decoder.transformer.transformer_blocks[0].norm1.linear.bias.view(6, -1)
    assert gates.mean(1).tolist() == [0, 0, 1, 0, 0, 1]
    x = torch.randn(2, LATENT_CHANNELS, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = Condition.whole(torch.ones(2, m.CONDITION_LENGTH, m.HIDDEN_SIZE))
    velocity = decoder.velocity(x, torch.tensor([0.3, 0.9]), condition)
    assert velocity.shape == x.shape and not velocity.any()


def test_the_longest_caption_of_two_objects_fits_the_condition(untrained):
    scene = Scene("white", (None, SceneObject("circle", "red", "small"), SceneObject("square", "blue", "large"), None))
    family = SD3({}, {}, length=m.CONDITION_LENGTH)
    tokens = Conditioner.from_pretrained(str(untrained / "captioner"), family).tokenize([caption(scene)])
    assert not tokens.truncated_B.any()
    assert int(tokens.attend_BT.sum()) == m.CONDITION_LENGTH - 1

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny pair that shares its language model: what it is made of, and one step of its joint training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from verl_uae.captioners import family_of as captioner_family
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.load import load_config
from verl_uae.families.text import language_stack
from verl_uae.scenes import tiny_flux3, tiny_models
from verl_uae.scenes.codec import build_codec
from verl_uae.scenes.joint_training import JointConfig, scene_world, train_joint, train_tiny_models
from verl_uae.scenes.render import render_batch, sample_scene
from verl_uae.scenes.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def codec() -> object:
    return build_codec(0, fit_scenes=200)


def pictures() -> torch.Tensor:
    rng = random.Random(0)
    return render_batch([sample_scene(rng) for _ in range(4)]).float() / 255


def test_the_codec_is_the_same_in_the_class_of_flux_2(codec: object) -> None:
    ours, theirs = tiny_flux3.build_decoder(0, codec), tiny_models.build_decoder(0, codec)
    latent, other = ours.encode_image(pictures()), theirs.encode_image(pictures())
    assert latent.shape == (4, 120, 2, 2)
    # Four neighbours of the one are the channels of the other, channel first.
    unpacked = latent.view(4, 30, 2, 2, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(4, 30, 4, 4)
    assert (unpacked - other).abs().max() < 1e-4
    assert (ours.decode_latent(latent) - theirs.decode_latent(other)).abs().max() < 1e-5


def test_blocks_are_open_and_the_output_is_zero(codec: object) -> None:
    transformer = tiny_flux3.build_decoder(0, codec).transformer
    time = transformer.timestep_embedder(transformer.time_proj(torch.tensor([0.0, 300.0, 1000.0])))
    for modulation in transformer.single_stream_modulations.values():
        gate = modulation(torch.nn.functional.silu(time)).chunk(3, -1)[2]
        assert gate.min() > 0.5 and gate.max() < 1.5
    assert not transformer.proj_out.weight.any()


def test_both_learn_from_one_step_and_the_folders_load(tmp_path: Path) -> None:
    config = JointConfig(family="flux3", codec_steps=1, steps=1, decoder_batch=4, captioner_batch=2, object_counts=(1,))
    train_tiny_models(tmp_path, config)
    decoder = Decoder.from_pretrained(str(tmp_path / "decoder"))
    assert decoder.family.name == "flux3"
    # The output starts at zero, so that one step moves it and nothing before it.
    assert decoder.transformer.proj_out.weight.any()
    conditioner = Conditioner.from_pretrained(str(tmp_path / "captioner"), decoder.family)
    condition = conditioner.encode(["a red circle", ""])
    assert condition.states.shape == (2, 80, 8 * tiny_flux3.HIDDEN_SIZE)
    assert condition.lengths == (80, 80)
    kind = load_config(tmp_path / "captioner").model_type
    assert captioner_family(kind, tmp_path).model_type == "qwen3_vl"


def test_the_gradient_of_the_flow_reaches_the_layers_that_are_read(codec: object) -> None:
    tokenizer = build_tokenizer()
    captioner, decoder = tiny_flux3.build_captioner(0, tokenizer), tiny_flux3.build_decoder(0, codec)
    before = {name: value.clone() for name, value in language_stack(captioner).named_parameters()}
    config = JointConfig(family="flux3", steps=2, decoder_batch=2, captioner_batch=1, object_counts=(1,))
    train_joint(captioner, decoder, tokenizer, config, scene_world(config))
    moved = {name for name, value in language_stack(captioner).named_parameters() if not value.equal(before[name])}
    assert {f"layers.{layer}.self_attn.q_proj.weight" for layer in (0, 15, 31)} <= moved


def test_one_pad_stands_for_all(codec: object) -> None:
    tokenizer = build_tokenizer()
    stack = language_stack(tiny_flux3.build_captioner(0, tokenizer))
    conditioner = Conditioner(stack, tokenizer, tiny_flux3.build_decoder(0, codec).family)
    for captions in (["a small red circle", ""], [" ".join(["red"] * 200), "a"]):
        found = []
        for condition in (
            tiny_flux3.condition(conditioner, captions),
            conditioner.condition(conditioner.tokenize(captions)),
        ):
            weight = torch.linspace(-1, 1, condition.states.numel()).view_as(condition.states)
            (gradient,) = torch.autograd.grad(
                (condition.states * weight).sum(), [stack.layers[0].self_attn.q_proj.weight]
            )
            found.append((condition, gradient))
        (ours, ours_gradient), (plain, plain_gradient) = found
        assert ours.lengths == plain.lengths
        torch.testing.assert_close(ours.states, plain.states, atol=1e-5, rtol=1e-5)
        assert (ours_gradient - plain_gradient).abs().max() < 1e-4 * plain_gradient.abs().max()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from verl_uae.chain.decoder import Decoder
from verl_uae.errors import CheckpointError
from verl_uae.families.family import Condition
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.scenes.render import render_float, sample_scene
from verl_uae.seeding import normal


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / "decoder"


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder.from_pretrained(str(folder))


def states(batch: int, decoder: Decoder, length: int = 6, name: str = "states") -> Condition:
    return Condition.whole(normal((batch, length, decoder.projector.config.in_dim), name))


def test_velocity_is_the_stock_transformer_called_by_hand(decoder: Decoder, folder: Path) -> None:
    stock = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").eval()
    x, sigma, condition = normal((3, 30, 4, 4), "x"), torch.tensor([1.0, 0.5, 0.0]), states(3, decoder)
    first, _, second = decoder.projector.layers
    text = second(torch.nn.functional.gelu(first(condition.states)))
    with torch.no_grad():
        expected = stock(
            hidden_states=x,
            encoder_hidden_states=text,
            pooled_projections=decoder.projector.pooled.repeat(3, 1),
            timestep=torch.tensor([1000.0, 500.0, 0.0]),
        ).sample
        found = decoder.velocity(x, sigma, condition)
    assert torch.equal(found, expected)
    assert found.std().item() > 0.05, "a constant field would prove nothing"


def test_velocity_depends_on_everything(decoder: Decoder) -> None:
    x, sigma, condition = normal((1, 30, 4, 4), "x"), torch.tensor([0.5]), states(1, decoder)
    base = decoder.velocity(x, sigma, condition)
    assert not torch.equal(base, decoder.velocity(x + 1, sigma, condition))
    assert not torch.equal(base, decoder.velocity(x, sigma + 0.1, condition))
    assert not torch.equal(base, decoder.velocity(x, sigma, Condition.whole(condition.states + 1)))


def test_velocity_is_differentiable_in_the_condition(decoder: Decoder) -> None:
    condition = states(1, decoder)
    leaf = condition.states.requires_grad_(True)
    decoder.velocity(normal((1, 30, 4, 4), "x"), torch.tensor([0.5]), condition).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_round_trip(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_pretrained(str(tmp_path / "again"))
    again = Decoder.from_pretrained(str(tmp_path / "again"))
    assert again.family.scheduler == decoder.family.scheduler and again.family.shift(4, 32, 32) == 3.0
    ours, theirs = decoder.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    suffixes = {path.suffix for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_the_folder_loads_in_stock_diffusers(decoder: Decoder, folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.shift == 3.0
    latent = normal((2, 30, 4, 4), "latent")
    with torch.no_grad():
        raw = vae.decode(latent / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert torch.equal(decoder.decode_latent(latent), (raw / 2 + 0.5).clamp(0, 1))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "SD3Transformer2DModel"]


def test_latents_are_those_of_the_stock_codec_scaled(decoder: Decoder, folder: Path) -> None:
    image = render_float([sample_scene(random.Random(seed)) for seed in range(8)])
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    with torch.no_grad():
        mean = vae.encode(image * 2 - 1).latent_dist.mode()
    latent = decoder.encode_image(image)
    assert latent.shape == (8, *decoder.latent_shape(32, 32)) and latent.dtype == torch.float32
    assert torch.allclose(latent, (mean - vae.config.shift_factor) * vae.config.scaling_factor, atol=1e-6)
    # What the two factors are for: the flow starts from unit noise.
    assert abs(latent.mean().item()) < 0.2 and latent.std().item() == pytest.approx(1.0, abs=0.2)


def test_sampling_is_euler_on_the_velocity(decoder: Decoder) -> None:
    noise, condition, sigmas = normal((2, 30, 4, 4), "noise"), states(2, decoder), sigma_schedule(3, 3.0)
    x = noise
    with torch.no_grad():
        for sigma, after in itertools.pairwise(sigmas):
            x = x + (after - sigma) * decoder.velocity(x, sigma.expand(2), condition)
    picture = decoder.sample(condition, noise, sigmas)
    assert torch.allclose(picture, decoder.decode_latent(x), atol=1e-5)
    assert picture.shape == (2, 3, 32, 32) and 0 <= picture.min() <= picture.max() <= 1


def test_guidance(decoder: Decoder) -> None:
    noise, condition, sigmas = normal((2, 30, 4, 4), "noise"), states(2, decoder), sigma_schedule(2, 3.0)
    plain = decoder.sample(condition, noise, sigmas)
    with pytest.raises(ValueError, match=r"guidance 5.0 needs a negative condition"):
        decoder.sample(condition, noise, sigmas, guidance=5.0)
    negative = states(1, decoder, name="negative")
    assert not torch.allclose(
        decoder.sample(condition, noise, sigmas, guidance=5.0, negative=negative), plain, atol=1e-3
    )
    same = decoder.sample(condition[:1], noise[:1], sigmas, guidance=5.0, negative=condition[:1])
    assert torch.allclose(same, plain[:1], atol=1e-5)


def test_latent_shape_refuses_odd_sizes(decoder: Decoder) -> None:
    assert decoder.latent_shape(32, 16) == (30, 4, 2)
    with pytest.raises(ValueError, match="multiples of 8, got 36x32"):
        decoder.latent_shape(36, 32)


@pytest.mark.parametrize("part", ["transformer", "vae", "conditioner"])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "decoder")
    shutil.rmtree(tmp_path / "decoder" / part)
    with pytest.raises(CheckpointError, match=f"it has no {part}/; verl-uae import") as caught:
        Decoder.from_pretrained(str(tmp_path / "decoder"))
    assert str(tmp_path) in str(caught.value)


def test_dtype_leaves_the_vae_in_fp32(folder: Path) -> None:
    decoder = Decoder.from_pretrained(str(folder), dtype=torch.bfloat16)
    assert decoder.transformer.dtype == torch.bfloat16 and decoder.projector.dtype == torch.bfloat16
    assert decoder.vae.dtype == torch.float32
    picture = decoder.sample(states(1, decoder), normal((1, 30, 4, 4), "noise"), sigma_schedule(2))
    assert picture.dtype == torch.float32 and bool(torch.isfinite(picture).all())


def test_the_condition_of_training_is_noted_for_the_pipeline(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_pretrained(str(tmp_path), {"condition_length": 20, "condition_role": "generate"})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["condition_length"] == 20 and index["condition_role"] == "generate"
    assert index["_class_name"] == "UAEPipeline"

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from verl_uae.checkpoints.load import load_tokenizer
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_of
from verl_uae.families.sd3 import SD3, Projector
from verl_uae.families.text import language_stack
from verl_uae.seeding import normal

LENGTH = 20
CAPTIONS = ["a red circle", "", "large blue square on the left " * 6]


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / "decoder"


@pytest.fixture(scope="module")
def family(folder: Path) -> SD3:
    found = family_of(folder, length=LENGTH)
    assert isinstance(found, SD3)
    return found


@pytest.fixture(scope="module")
def parts(folder: Path) -> Any:
    """What a stock loader makes of the folder."""
    return SimpleNamespace(
        transformer=SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").eval(),
        projector=Projector.from_pretrained(folder, subfolder="conditioner").eval(),
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae").eval(),
    )


@pytest.fixture(scope="module")
def language(tiny_models: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner").eval()
    return language_stack(model), load_tokenizer(tiny_models / "captioner")


def by_hand(parts: Any, x: torch.Tensor, sigma: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The stock transformer called as diffusers' own pipeline calls it, the projector layer by layer."""
    first, _, second = parts.projector.layers
    return parts.transformer(
        hidden_states=x,
        encoder_hidden_states=second(torch.nn.functional.gelu(first(states))),
        pooled_projections=parts.projector.pooled.repeat(len(x), 1),
        timestep=sigma * 1000.0,
    ).sample


@torch.no_grad()
def test_states_are_the_last_of_the_stack_and_zero_at_pads(family: SD3, language: tuple[Any, Any]) -> None:
    stack, tokenizer = language
    tokens = family.tokenize(tokenizer, CAPTIONS)
    assert tokens.truncated_B.tolist() == [False, False, True] and tokens.position_BT is None
    hidden = stack(input_ids=tokens.ids_BT, attention_mask=tokens.attend_BT.long(), use_cache=False).last_hidden_state
    condition = family.encode_text(stack, tokenizer, CAPTIONS)
    assert torch.equal(condition.states, hidden * tokens.attend_BT[..., None])
    assert condition.lengths == (LENGTH,) * 3 and bool(condition.mask_BL.all())
    text = f"<|im_start|>generate {CAPTIONS[0]}<|im_end|><|im_start|>assistant"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens.ids_BT[0, : len(ids)].tolist() == ids


@torch.no_grad()
def test_the_velocity_is_the_stock_transformer_called_by_hand(family: SD3, parts: Any) -> None:
    x, sigma = normal((3, 30, 4, 4), "x"), torch.tensor([1.0, 0.5, 0.1])
    condition = family_states(3)
    expected = by_hand(parts, x, sigma, condition.states)
    assert torch.equal(family.field(parts, condition)(x, sigma), expected) and expected.std() > 0.05


@torch.no_grad()
def test_guidance_is_one_call_of_both_branches(family: SD3, parts: Any) -> None:
    x, sigma, condition = normal((2, 30, 4, 4), "x"), torch.tensor([0.9, 0.2]), family_states(2)
    other = family_states(1, "negative")
    both = by_hand(
        parts, x.repeat(2, 1, 1, 1), sigma.repeat(2), torch.cat([condition.states, other.states.repeat(2, 1, 1)])
    )
    v_c, v_u = both.chunk(2)
    assert torch.equal(family.field(parts, condition, other, 3.0)(x, sigma), v_u + 3.0 * (v_c - v_u))
    with pytest.raises(ValueError, match=r"guidance 3.0 needs a negative condition"):
        family.field(parts, condition, None, 3.0)


def test_gradients_are_those_of_the_stock_transformer(family: SD3, parts: Any) -> None:
    x, sigma, states = normal((2, 30, 4, 4), "x"), torch.tensor([0.9, 0.2]), family_states(2)
    weight, grads = parts.transformer.proj_out.weight, []
    for call in (
        lambda leaf: family.field(parts, type(states)(leaf, states.lengths))(x, sigma),
        lambda leaf: by_hand(parts, x, sigma, leaf),
    ):
        leaf = states.states.clone().requires_grad_()
        grads.append(torch.autograd.grad(call(leaf).square().sum(), [leaf, weight]))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs) and theirs.abs().max() > 0


def family_states(count: int, name: str = "states") -> Any:
    from verl_uae.families.family import Condition

    return Condition(normal((count, LENGTH, 96), name), (LENGTH,) * count)


@torch.no_grad()
def test_latents_and_pictures_are_those_of_the_stock_codec_scaled(family: SD3, parts: Any) -> None:
    config = parts.vae.config
    picture = normal((2, 3, 32, 32), "picture").sigmoid()
    latent = family.encode_image(parts.vae, picture)
    mean = parts.vae.encode(2.0 * picture - 1.0).latent_dist.mode()
    assert torch.equal(latent, (mean - config.shift_factor) * config.scaling_factor)
    assert tuple(latent.shape[1:]) == family.latent_shape(32, 32)
    raw = parts.vae.decode(latent / config.scaling_factor + config.shift_factor).sample
    assert torch.equal(family.decode_latent(parts.vae, latent), (raw / 2 + 0.5).clamp(0, 1))


def test_the_noise_levels_are_those_of_the_scheduler_given_an_even_grid(family: SD3, folder: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 7, 7).tolist())
    torch.testing.assert_close(family.sigmas(7, 32, 32), scheduler.sigmas, atol=1e-6, rtol=0)
    assert family_of(folder, shift=2.0).shift(7, 32, 32) == 2.0


def test_sizes_that_have_no_latents_are_refused(family: SD3) -> None:
    assert family.latent_shape(32, 16) == (30, 4, 2) and family.default_side == 32
    with pytest.raises(ValueError, match="multiples of 8, got 36x32"):
        family.latent_shape(36, 32)
    with pytest.raises(ValueError, match="may be 32 at most, got 32x40"):
        family.latent_shape(32, 40)


def test_a_template_without_room_or_role_is_refused(folder: Path, language: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"condition_length: 5 leaves no room for a caption: .* alone takes 5"):
        family_of(folder, length=5).tokenize(language[1], ["red"])


@pytest.mark.parametrize(("width", "reason"), [(97, "takes states of width 96, the language model has width 97")])
def test_another_language_model_is_refused(family: SD3, folder: Path, width: int, reason: str) -> None:
    family.check(folder, 96)
    with pytest.raises(CheckpointError, match=reason):
        family.check(folder, width)


@pytest.mark.parametrize("part", ["transformer", "vae", "conditioner"])
def test_a_missing_component_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "decoder")
    shutil.rmtree(tmp_path / "decoder" / part)
    with pytest.raises(CheckpointError, match=f"it has no {part}/; verl-uae import"):
        family_of(tmp_path / "decoder")


def test_an_unknown_class_of_transformer_is_named_with_the_closest(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "decoder")
    config = tmp_path / "decoder" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "SD3Transformer3DModel"}))
    with pytest.raises(CheckpointError, match=r"'SD3Transformer3DModel'\. Did you mean 'SD3Transformer2DModel'"):
        family_of(tmp_path / "decoder")

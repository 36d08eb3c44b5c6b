# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from verl_uae.chain.decoder import Decoder
from verl_uae.engines.decoder_module import DecoderModule, Uncast
from verl_uae.errors import CheckpointError
from verl_uae.families.family import Condition
from verl_uae.scenes.codec import LATENT_CHANNELS, LATENT_SIZE
from verl_uae.scenes.tiny_models import CONDITION_LENGTH, HIDDEN_SIZE
from verl_uae.seeding import normal

X = normal((3, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), "x")
SIGMA = torch.tensor([0.9, 0.35, 0.01])
STATES = Condition.whole(normal((3, CONDITION_LENGTH, HIDDEN_SIZE), "states"))
NEGATIVE = Condition.whole(normal((1, CONDITION_LENGTH, HIDDEN_SIZE), "negative"))


@pytest.fixture
def module(tiny_models: Path) -> DecoderModule:
    return DecoderModule.from_pretrained(str(tiny_models / "decoder"))


def test_is_the_decoders_velocity_bit_for_bit(module: DecoderModule, tiny_models: Path) -> None:
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"))
    with torch.no_grad():
        assert torch.equal(module(X, Uncast(SIGMA), STATES), decoder.velocity(X, SIGMA, STATES))
        assert torch.equal(module(X, SIGMA, STATES), decoder.velocity(X, SIGMA, STATES))
    assert not any("vae" in name for name in module.state_dict())


def test_guidance_in_one_batch_is_two_calls_also_in_its_gradient(module: DecoderModule) -> None:
    weight = module.projector.layers[0].weight
    batched = module(X, SIGMA, STATES, NEGATIVE, 3.0)
    (expected_gradient,) = torch.autograd.grad(batched.square().sum(), weight)
    conditional, negative = module(X, SIGMA, STATES), module(X, SIGMA, NEGATIVE.expand(3))
    separate = negative + 3.0 * (conditional - negative)
    (gradient,) = torch.autograd.grad(separate.square().sum(), weight)
    torch.testing.assert_close(batched, separate, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(batched, module(X, SIGMA, STATES), atol=1e-2)


def test_guidance_is_the_decoders_bit_for_bit(module: DecoderModule, tiny_models: Path) -> None:
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"))
    with torch.no_grad():
        theirs = decoder.field(STATES, NEGATIVE, 3.0)(X, SIGMA)
        assert torch.equal(module(X, Uncast(SIGMA), STATES, NEGATIVE, 3.0), theirs)


def test_guidance_needs_a_negative_condition(module: DecoderModule) -> None:
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs a negative condition"):
        module(X, SIGMA, STATES, None, 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_noise_level_in_another_dtype_is_refused(module: DecoderModule, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"sigma must be torch\.float32"):
        module(X, SIGMA.to(dtype), STATES)


def test_weights_in_bf16_still_see_the_exact_timestep_and_return_fp32(tiny_models: Path) -> None:
    module = DecoderModule.from_pretrained(str(tiny_models / "decoder"), dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    module.transformer.time_text_embed.time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        assert module(X, SIGMA, STATES).dtype == torch.float32
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], SIGMA * 1000.0)


def test_gradient_checkpointing_changes_no_gradient(module: DecoderModule, tiny_models: Path) -> None:
    other = DecoderModule.from_pretrained(str(tiny_models / "decoder"), gradient_checkpointing=True)
    calls = {"plain": 0, "checkpointed": 0}
    for name, each in (("plain", module), ("checkpointed", other)):
        each.train()
        block = each.transformer.transformer_blocks[0]
        block.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        each(X, SIGMA, STATES).square().sum().backward()
    assert calls == {"plain": 1, "checkpointed": 2}
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, other.get_parameter(name).grad), name


def test_an_empty_module_has_the_same_names_and_shapes_and_no_memory(module: DecoderModule, tiny_models: Path) -> None:
    empty = DecoderModule.from_pretrained(str(tiny_models / "decoder"), empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (module, empty)]
    assert shapes[0] == shapes[1]
    persistent = set(module.state_dict())
    assert {name for name, _ in module.named_buffers()} <= persistent, "a buffer would not be sent to the other ranks"


def test_has_what_verls_checkpoint_manager_asks_for(module: DecoderModule, tmp_path: Path) -> None:
    module.config.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert saved["in_channels"] == LATENT_CHANNELS and (tmp_path / "conditioner" / "config.json").is_file()
    assert module.can_generate() is False and not hasattr(module.config, "auto_map")
    blocks = [part for part in module.modules() if type(part).__name__ in module._no_split_modules]
    assert len(blocks) == 2


def test_a_folder_without_a_component_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformer"):
        DecoderModule.from_pretrained(str(tmp_path))

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engines.test_decoder_module import SIGMA, STATES, X
from verl_uae.checkpoints.shards import plain_name
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import adapter_disabled, add_lora, lora_layers, lora_scalings, merged_state
from verl_uae.errors import ConfigError
from verl_uae.families.sd3 import SD3
from verl_uae.seeding import normal

TARGETS = SD3.lora_targets


@pytest.fixture
def module(tiny_models: Path) -> DecoderModule:
    return DecoderModule.from_pretrained(str(tiny_models / "decoder"))


@torch.no_grad()
def velocity(module: DecoderModule) -> torch.Tensor:
    return module(X, SIGMA, STATES)


@torch.no_grad()
def perturb(module: DecoderModule) -> None:
    for name, layer in lora_layers(module).items():
        weight = layer.lora_B["default"].weight
        weight.copy_(0.1 * normal(tuple(weight.shape), "B", name))


def test_new_adapters_change_nothing_and_alone_are_trained(module: DecoderModule) -> None:
    before = velocity(module)
    # Two blocks with eight projections; the last block has no output projection of the text stream.
    assert add_lora(module, rank=4, alpha=8, target_modules=TARGETS) == 15
    assert torch.equal(velocity(module), before)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(trained) == 30 and all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())


def test_a_is_gaussian_with_std_one_over_rank_and_named(module: DecoderModule, tiny_models: Path) -> None:
    state = torch.get_rng_state()
    add_lora(module, rank=8, alpha=8, seed=3, target_modules=TARGETS)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    numbers = torch.cat([layer.lora_A["default"].weight.flatten() for layer in lora_layers(module).values()])
    assert numbers.std().item() == pytest.approx(1 / 8, rel=0.03) and abs(numbers.mean().item()) < 0.01
    again = DecoderModule.from_pretrained(str(tiny_models / "decoder"))
    add_lora(again, rank=8, alpha=8, seed=3, target_modules=TARGETS)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in module.named_parameters())
    firsts = [layer.lora_A["default"].weight for layer in lora_layers(module).values()]
    assert not torch.equal(firsts[0], firsts[1])


def test_merged_weights_are_the_adapted_module(module: DecoderModule, tiny_models: Path) -> None:
    base = velocity(module)
    add_lora(module, rank=4, alpha=12, target_modules=TARGETS)
    perturb(module)
    adapted = velocity(module)
    assert (adapted - base).abs().max() > 0.05
    assert set(lora_scalings(module).values()) == {3.0}
    plain = DecoderModule.from_pretrained(str(tiny_models / "decoder"))
    plain.load_state_dict(merged_state(module.state_dict(), lora_scalings(module)))
    torch.testing.assert_close(velocity(plain), adapted, atol=1e-5, rtol=0)
    plain.load_state_dict(merged_state(module.state_dict(), {}))
    assert torch.equal(velocity(plain), base), "without scalings the adapters are dropped"


def test_switched_off_adapters_give_the_base_back_and_keep_requires_grad(module: DecoderModule) -> None:
    base = velocity(module)
    add_lora(module, rank=4, alpha=8, target_modules=TARGETS)
    perturb(module)
    adapted = velocity(module)
    with pytest.raises(ZeroDivisionError), adapter_disabled(module):
        assert torch.equal(velocity(module), base)
        assert sum(p.requires_grad for p in module.parameters()) == 30
        raise ZeroDivisionError
    assert torch.equal(velocity(module), adapted)


def test_backward_after_the_adapters_were_off_still_reaches_them(module: DecoderModule) -> None:
    add_lora(module, rank=4, alpha=8, target_modules=TARGETS)
    output = module(X, SIGMA, STATES)
    with adapter_disabled(module), torch.no_grad():
        module(X, SIGMA, STATES)
    output.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("targets", [["attn.to_qq"], ["attn.to_q", "nothing"], ["to_out"], ["transformer_blocks"], []])
def test_targets_that_match_nothing_are_refused_with_their_key(module: DecoderModule, targets: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        add_lora(module, rank=4, alpha=8, target_modules=targets)
    assert caught.value.key == "uae.train.lora.target_modules"
    assert not lora_layers(module), "the module was changed before the error"


def test_frozen_layers_get_none_whatever_is_asked_for(module: DecoderModule) -> None:
    first = ("transformer_blocks.0.",)
    with pytest.raises(ConfigError, match=r"'transformer_blocks\.0\.attn\.to_q' matches no linear layer"):
        add_lora(module, rank=4, alpha=8, target_modules=["transformer_blocks.0.attn.to_q"], frozen=first)
    assert add_lora(module, rank=4, alpha=8, target_modules=["attn.to_q"], frozen=first) == 1
    assert list(lora_layers(module)) == ["transformer.transformer_blocks.1.attn.to_q"]


@pytest.mark.parametrize("settings", [{"rank": 0, "alpha": 8}, {"rank": 4, "alpha": 0}], ids=str)
def test_rank_and_alpha_must_be_positive(module: DecoderModule, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"uae\.train\.lora\.(rank|alpha): must be at least 1, got 0"):
        add_lora(module, **{"target_modules": TARGETS, **settings})


def test_names_are_freed_of_wrappers() -> None:
    assert plain_name("_fsdp_wrapped_module.a._fsdp_wrapped_module.b.weight") == "a.b.weight"

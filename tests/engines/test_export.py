# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.engines.test_decoder_module import SIGMA, STATES, X
from verl_uae.chain.decoder import Decoder
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.export import TrainedState, load_full_state, load_trained_state
from verl_uae.errors import CheckpointError
from verl_uae.masters import is_shared, turn

Facts = dict[str, Any]


@pytest.mark.parametrize("weights", ["live", "ema"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_exported_folder_draws_as_the_policy_does(policy: Facts, kind: str, weights: str) -> None:
    from tests.engines.policy_world import states

    folder = policy["folder"] / f"{kind}_{weights}"
    expected = torch.load(policy["folder"] / f"{kind}.pt", weights_only=True)
    decoder = Decoder.from_pretrained(str(folder))
    condition = states([0, 1])
    with torch.no_grad():
        drawn = decoder.velocity(expected["x"], expected["sigma"], condition)
        stock = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer", use_safetensors=True)
        by_stock = stock(
            hidden_states=expected["x"],
            timestep=1000 * expected["sigma"],
            encoder_hidden_states=decoder.projector(condition.states),
            pooled_projections=decoder.projector.pooled.expand(2, -1),
        ).sample
    torch.testing.assert_close(drawn, expected[weights], atol=1e-5, rtol=0)
    torch.testing.assert_close(by_stock, expected[weights], atol=1e-5, rtol=0)
    assert (expected["live"] - expected["ema"]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_reference_exports_as_the_source_and_the_rest_is_the_sources(
    policy: Facts, kind: str, tiny_models: Path
) -> None:
    source = Decoder.from_pretrained(str(tiny_models / "decoder"))
    exported = Decoder.from_pretrained(str(policy["folder"] / f"{kind}_reference"))
    assert exported.family.scheduler == source.family.scheduler and source.family.shift(4, 32, 32) == 3.0
    for name, tensor in source.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor), name
    index = json.loads((policy["folder"] / f"{kind}_reference" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "SD3Transformer2DModel"]


def test_nothing_half_written_stays_and_a_folder_is_never_overwritten(policy: Facts) -> None:
    assert not list(policy["folder"].glob("*.part-*"))
    for kind in ("lora", "full"):
        assert policy["two"]["export"][f"{kind} again"].endswith(
            f"{kind}_live: exists already; name another folder, or remove it first"
        )
        assert "no weights named 'old' are kept" in policy["two"]["export"][f"{kind} unknown"]


def test_rank_zero_alone_holds_full_weights(policy: Facts, tiny_models: Path) -> None:
    wanted = len(DecoderModule.from_pretrained(str(tiny_models / "decoder")).state_dict())
    second = json.loads((policy["folder"].parent / "two_1.json").read_text())
    for kind in ("lora", "full"):
        assert policy["two"]["export"][f"{kind} ranks"] == wanted and second["export"][f"{kind} ranks"] == 0


@pytest.fixture
def weights(tiny_models: Path) -> dict[str, torch.Tensor]:
    state = DecoderModule.from_pretrained(str(tiny_models / "decoder")).state_dict()
    return {name: 1.25 * tensor for name, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_receiver_takes_the_weights_in_its_own_dtype(
    weights: dict[str, torch.Tensor], tiny_models: Path, dtype: torch.dtype
) -> None:
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"), dtype=dtype)
    vae = {name: tensor.clone() for name, tensor in decoder.vae.state_dict().items()}
    assert load_full_state(decoder, weights) == len(weights)
    for name, tensor in weights.items():
        received = decoder.state_dict()[name]
        assert received.dtype == dtype and torch.equal(received, tensor.to(dtype)), name
    assert all(torch.equal(tensor, vae[name]) for name, tensor in decoder.vae.state_dict().items())
    module = DecoderModule.from_pretrained(str(tiny_models / "decoder"))
    load_full_state(module, weights)
    if dtype == torch.float32:
        with torch.no_grad():
            assert torch.equal(module(X, SIGMA, STATES), decoder.velocity(X, SIGMA, STATES))


def spoiled(weights: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = next(iter(weights))
    if how == "empty":
        return {}
    if how == "renamed":
        return {f"module.{key}": tensor for key, tensor in weights.items()}
    if how == "adapters":
        return {**weights, "transformer.transformer_blocks.0.attn.to_q.lora_A.default.weight": torch.zeros(1)}
    if how == "incomplete":
        return {key: tensor for key, tensor in weights.items() if key != name}
    return {**weights, name: torch.zeros(3)}


@pytest.mark.parametrize("how", ["empty", "renamed", "adapters", "incomplete", "shape"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied(
    weights: dict[str, torch.Tensor], tiny_models: Path, how: str
) -> None:
    module = DecoderModule.from_pretrained(str(tiny_models / "decoder"))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"replica 3: .*(no place|another shape)"):
        load_full_state(module, spoiled(weights, how), source="replica 3")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def handed(policy: Facts, kind: str) -> tuple[TrainedState, dict[str, torch.Tensor]]:
    """What rank 0 would send, and the whole weights it should make of a receiver."""
    found = torch.load(policy["folder"] / f"{kind}_handed.pt", weights_only=True)
    return TrainedState(*found["handed"]), found["merged"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_training_changed_makes_the_whole_of_a_receiver(
    policy: Facts, kind: str, dtype: torch.dtype, tiny_models: Path
) -> None:
    """Bit for bit what the merged weights are in its dtype, however often it is sent."""
    state, merged = handed(policy, kind)
    source = str(tiny_models / "decoder")
    decoder = Decoder.from_pretrained(source, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    for _ in range(2):
        load_trained_state(decoder, state, source)
    after = decoder.state_dict()
    assert all(torch.equal(after[name], tensor.to(dtype)) for name, tensor in merged.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_receiver_whose_weights_other_processes_have_writes_to_its_own(
    policy: Facts, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with an accelerator: shared memory that can be written through.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    state, merged = handed(policy, "lora")
    source = str(tiny_models / "decoder")
    first, second = (Decoder.from_pretrained(source).requires_grad_(False) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    with turn() as share:
        share(first, second)
    load_trained_state(first, state, source)
    after = first.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in merged.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.state_dict().items())
    with turn() as share:
        share(first)
    load_full_state(second, merged)
    load_full_state(first, {name: before[name] for name in merged})
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in merged.items())
    assert all(is_shared(part) for module in (first, second) for part in module.vae.parameters())


def test_adapters_are_what_travels(policy: Facts, tiny_models: Path) -> None:
    """Two thin matrices per layer, and the projector where it trains; from rank 0 alone."""
    state, merged = handed(policy, "lora")
    rank = 4
    widths = sum(sum(merged[f"{layer}.weight"].shape) for layer in state.adapters)
    # Without the pooled vector, a buffer that nothing trains.
    projector = sum(tensor.nbytes for name, tensor in merged.items() if name.startswith("projector.layers."))
    assert state.nbytes == 4 * rank * widths + projector == policy["two"]["export"]["lora handed"][1]
    assert state.nbytes < sum(tensor.nbytes for tensor in merged.values()) / 2
    second = json.loads((policy["folder"].parent / "two_1.json").read_text())
    assert second["export"]["lora handed"] == [False, 0]


@pytest.mark.parametrize("how", ["empty", "renamed", "unknown layer", "rank of another layer"])
def test_what_does_not_fit_is_refused_and_nothing_is_copied(policy: Facts, how: str, tiny_models: Path) -> None:
    state, _ = handed(policy, "lora")
    tensors, adapters = dict(state.tensors), dict(state.adapters)
    first = next(iter(adapters))
    if how == "empty":
        tensors, adapters = {}, {}
    elif how == "renamed":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    elif how == "unknown layer":
        adapters["transformer.nowhere"] = adapters[first]
    else:
        a_RI, b_OR, scaling = adapters[first]
        adapters[first] = (a_RI[:, 1:], b_OR, scaling)
    source = str(tiny_models / "decoder")
    decoder = Decoder.from_pretrained(source)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"replica 3: .*(no place|another shape)"):
        load_trained_state(decoder, TrainedState(tensors, adapters), source, source="replica 3")
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())

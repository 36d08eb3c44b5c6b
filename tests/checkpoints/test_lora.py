# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters against the real loaders of peft and diffusers.

Shape legend: R rank, I O widths of a linear layer.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from tests.engines.test_decoder_module import SIGMA, STATES, X
from verl_uae.checkpoints.lora import Adapters, has_adapters, merge, save_diffusers, save_peft, split_adapters
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import add_lora, lora_layers
from verl_uae.errors import CheckpointError
from verl_uae.families.sd3 import SD3
from verl_uae.seeding import normal

HERE = Path("shards")


@pytest.fixture
def policy(tiny_models: Path) -> DecoderModule:
    """The tiny policy with adapters that do something, of scale 2.5."""
    module = DecoderModule.from_pretrained(str(tiny_models / "decoder"))
    add_lora(module, rank=4, alpha=10, target_modules=SD3.lora_targets)
    with torch.no_grad():
        for name, layer in lora_layers(module).items():
            weight = layer.lora_B["default"].weight
            weight.copy_(0.2 * normal(tuple(weight.shape), "B", name))
    return module


@pytest.fixture
def adapters(policy: DecoderModule) -> Adapters:
    _, layers = split_adapters(policy.transformer.state_dict(), HERE)
    return Adapters(layers, alpha=10)


def stock(tiny_models: Path) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(tiny_models / "decoder", subfolder="transformer").eval()


@torch.no_grad()
def velocity(transformer: object, policy: DecoderModule) -> Tensor:
    projector = policy.projector
    return transformer(  # type: ignore[operator]
        hidden_states=X,
        timestep=1000.0 * SIGMA,
        encoder_hidden_states=projector(STATES.states),
        pooled_projections=projector.pooled.expand(len(X), -1),
        return_dict=False,
    )[0]


@torch.no_grad()
def merged_velocity(policy: DecoderModule, tiny_models: Path) -> Tensor:
    """Of a stock transformer with the merged weights; it must differ from the base."""
    base, layers = split_adapters(policy.transformer.state_dict(), HERE)
    plain = stock(tiny_models)
    before = velocity(plain, policy)
    plain.load_state_dict(merge(base, layers, 2.5, HERE))
    after = velocity(plain, policy)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, policy(X, SIGMA, STATES), atol=1e-5, rtol=1e-5)
    return after


def test_merging_changes_the_adapted_layers_and_no_others(policy: DecoderModule) -> None:
    state = policy.state_dict()
    base, layers = split_adapters(state, HERE)
    found = merge(base, layers, 2.5, HERE)
    assert has_adapters(state) and not has_adapters(found) and len(layers) == 15
    changed = {name for name in base if not torch.equal(found[name], base[name])}
    assert found.keys() == base.keys() and changed == {f"{name}.weight" for name in layers}
    one, other = list(layers)[:2]
    halved = merge(base, {name: layers[name] for name in (one, other)}, {one: 2.5, other: 1.25}, HERE)
    for name, scale in ((one, 2.5), (other, 1.25)):
        a_RI, b_OR = layers[name]
        torch.testing.assert_close(halved[f"{name}.weight"], base[f"{name}.weight"] + scale * b_OR @ a_RI)


def test_weights_in_bf16_are_merged_in_fp32() -> None:
    w, a, b = torch.full((1, 1), 1.0, dtype=torch.bfloat16), torch.full((1, 1), 0.125), torch.full((1, 1), 0.25)
    # 1 + 0.5 * 0.03125 = 1.015625, between the neighbours 1.0078125 and 1.015625 of bf16 near 1.
    merged = merge({"q.weight": w}, {"q": (a, b)}, 0.5, HERE)["q.weight"]
    assert merged.dtype == torch.bfloat16 and merged.item() == 1.015625


def test_peft_loads_the_adapter_on_the_stock_transformer(
    policy: DecoderModule, adapters: Adapters, tiny_models: Path, tmp_path: Path
) -> None:
    save_peft(adapters, tmp_path / "adapter", base_model="some/model")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(stock(tiny_models), str(tmp_path / "adapter")).eval()
    merged = merged_velocity(policy, tiny_models)
    torch.testing.assert_close(velocity(loaded, policy), merged, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 10, "some/model")
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 2 * 15


def test_diffusers_loads_the_adapter_into_the_transformer(
    policy: DecoderModule, adapters: Adapters, tiny_models: Path, tmp_path: Path
) -> None:
    save_diffusers(adapters, tmp_path / "adapter", SD3.lora_loader)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    transformer = stock(tiny_models)
    transformer.load_lora_adapter(tmp_path / "adapter", prefix="transformer", use_safetensors=True)
    merged = merged_velocity(policy, tiny_models)
    torch.testing.assert_close(velocity(transformer, policy), merged, atol=1e-5, rtol=1e-5)
    transformer.disable_lora()
    torch.testing.assert_close(
        velocity(transformer, policy), velocity(stock(tiny_models), policy), atol=1e-5, rtol=1e-5
    )


def test_the_pipeline_loads_the_adapter_with_and_without_metadata(
    policy: DecoderModule, adapters: Adapters, sd3: Path, tiny_models: Path, tmp_path: Path
) -> None:
    save_diffusers(adapters, tmp_path / "adapter", SD3.lora_loader)
    merged = merged_velocity(policy, tiny_models)
    state = load_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    for source in (tmp_path / "adapter", state):
        pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
        pipeline.load_lora_weights(source)
        assert list(pipeline.get_list_adapters().values()) == [["default_0"]]
        torch.testing.assert_close(velocity(pipeline.transformer, policy), merged, atol=1e-5, rtol=1e-5)


A, B = "x.lora_A.default.weight", "x.lora_B.default.weight"


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({A: torch.zeros(2, 3)}, r"1 adapters have only one half: \['x'\]"),
        ({B: torch.zeros(3, 2)}, "only one half"),
        ({A: torch.zeros(2, 3), B: torch.zeros(3, 4)}, r"several ranks: \[\(2, 4\)\]"),
    ],
)
def test_adapters_that_are_not_whole_are_refused(state: dict[str, Tensor], error: str) -> None:
    with pytest.raises(CheckpointError, match=error):
        split_adapters(state, HERE)


def test_an_adapter_must_fit_its_layer() -> None:
    layers = {"q": (torch.zeros(2, 3), torch.zeros(4, 2))}
    with pytest.raises(CheckpointError, match="adapts q, which the model does not have"):
        merge({"k.weight": torch.zeros(4, 3)}, layers, 1.0, HERE)
    with pytest.raises(CheckpointError, match=r"does not fit its weight \(3, 4\)"):
        merge({"q.weight": torch.zeros(3, 4)}, layers, 1.0, HERE)


@pytest.mark.parametrize("save", [save_peft, functools.partial(save_diffusers, loader=SD3.lora_loader)])
def test_nothing_is_not_written(save: object, tmp_path: Path, adapters: Adapters) -> None:
    with pytest.raises(CheckpointError, match="no adapters to write"):
        save(Adapters({}, 1.0), tmp_path / "adapter")  # type: ignore[operator]
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        save(adapters, tmp_path / "there")  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

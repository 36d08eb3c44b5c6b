# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from verl_uae.checkpoints.release_keys import sort_llm, sort_llm_lora
from verl_uae.errors import CheckpointError

HERE = Path("llm_lora")
KNOWN = [
    "visual.patch_embed.proj.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.norm.weight",
    "lm_head.weight",
]
PEFT = "model.base_model.model."


def numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor filled with its own number."""
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def llm() -> dict[str, Tensor]:
    shapes = dict.fromkeys(KNOWN, (4, 4)) | {"model.norm.weight": (4,), "model.layers.0.self_attn.q_proj.bias": (4,)}
    projector = {f"projector.{place}.{kind}": (2,) for place in (0, 2) for kind in ("weight", "bias")}
    return numbered(shapes | projector)


@pytest.fixture
def llm_lora(llm: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the table in the module's docstring shows."""
    state: dict[str, Tensor] = {}
    for name, tensor in llm.items():
        if "_proj." in name and name.startswith("model."):
            layer, _, kind = name.removeprefix("model.").rpartition(".")
            state[f"{PEFT}{layer}.base_layer.{kind}"] = tensor
            state[f"{PEFT}{layer}.lora_A.default.weight"] = torch.zeros(2, 4)
            state[f"{PEFT}{layer}.lora_B.default.weight"] = torch.zeros(4, 2)
        else:
            state[name.replace("model.", PEFT, 1) if name.startswith("model.") else name] = tensor
    return state


def test_names_before_and_after_peft_become_the_same(llm: dict[str, Tensor], llm_lora: dict[str, Tensor]) -> None:
    before, after = sort_llm(llm, KNOWN, HERE), sort_llm_lora(llm_lora, KNOWN, HERE, rank=2)
    for state in (before, after):
        assert sorted(state.model) == sorted(KNOWN)
        assert all(torch.equal(tensor, llm[name]) for name, tensor in state.model.items())
        assert sorted(state.projector) == ["layers.0.bias", "layers.0.weight", "layers.2.bias", "layers.2.weight"]
        assert torch.equal(state.projector["layers.2.bias"], llm["projector.2.bias"])
    assert not before.adapters
    assert sorted(after.adapters) == ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]


def test_the_projector_may_be_in_one_of_both_only(llm_lora: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in llm_lora.items() if not name.startswith("projector.")}
    assert sort_llm_lora(without, KNOWN, HERE, rank=2).projector == {}


def test_a_tied_head_may_be_written(llm: dict[str, Tensor]) -> None:
    known = [name for name in KNOWN if name != "lm_head.weight"]
    assert sort_llm(llm, known, HERE).model.keys() == set(KNOWN)


Q = f"{PEFT}layers.0.self_attn.q_proj"
EDITS = {
    "unknown": ({"visual.more": torch.zeros(1)}, [], r"have no place: \['visual\.more'\]"),
    "missing": ({}, [f"{PEFT}norm.weight"], r"are missing: \['model\.norm\.weight'\]"),
    "half a projector": ({}, ["projector.2.bias"], r"missing: \['projector\.2\.bias'\]"),
    "more projector": ({"projector.4.bias": torch.zeros(1)}, [], r"no place: \['projector\.4\.bias'\]"),
    "not wrapped": ({"model.norm.weight": torch.zeros(4)}, [], r"not below model\.base_model\.model\."),
    "of transformers 5": ({"model.language_model.norm.weight": torch.zeros(4)}, [], "not below"),
    "half an adapter": ({}, [f"{Q}.lora_A.default.weight"], "only one half"),
    "no adapter": (
        {f"{Q}.weight": torch.zeros(4, 4), f"{Q}.bias": torch.zeros(4)},
        [f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight", f"{Q}.base_layer.weight", f"{Q}.base_layer.bias"],
        r"1 linear layers of the language model have no adapter: \['model\.layers\.0\.self_attn\.q_proj'\]",
    ),
    "adapter without base": (
        {f"{Q}.weight": torch.zeros(4, 4)},
        [f"{Q}.base_layer.weight", f"{Q}.base_layer.bias"],
        "without base layer",
    ),
    "another rank": (
        {
            f"{PEFT}layers.0.{layer}.lora_{half}.default.weight": torch.zeros(shape)
            for layer in ("mlp.up_proj", "self_attn.q_proj")
            for half, shape in (("A", (3, 4)), ("B", (4, 3)))
        },
        [],
        r"adapters of rank \[3\], expected 2",
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_is_not_accounted_for_is_named(llm_lora: dict[str, Tensor], what: str) -> None:
    added, removed, error = EDITS[what]
    state = {name: tensor for name, tensor in {**llm_lora, **added}.items() if name not in removed}
    with pytest.raises(CheckpointError, match=error):
        sort_llm_lora(state, KNOWN, HERE, rank=2)


def test_adapters_have_no_place_in_the_model_before(llm_lora: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="have no place"):
        sort_llm(llm_lora, KNOWN, HERE)

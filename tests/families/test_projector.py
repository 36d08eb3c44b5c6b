# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import torch

from verl_uae.families.sd3 import Projector
from verl_uae.seeding import normal


def make() -> Projector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = Projector(6, 10, 8, 5)
    projector.pooled.copy_(normal((5,), "pooled"))
    return projector


def test_is_two_linear_maps_with_an_exact_gelu() -> None:
    projector, x = make(), normal((2, 3, 6), "x")
    first, _, second = projector.layers
    hidden = x @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert torch.allclose(projector(x), hidden @ second.weight.T + second.bias, atol=1e-6)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    projector = make()
    projector.save_pretrained(tmp_path, safe_serialization=True)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".json"] == [".safetensors"]
    loaded = Projector.from_pretrained(tmp_path, use_safetensors=True)
    assert dict(loaded.config)["in_dim"] == 6 and dict(loaded.config)["pooled_dim"] == 5
    assert loaded.state_dict().keys() == projector.state_dict().keys()
    for name, tensor in projector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.pooled, normal((5,), "pooled"))


def test_the_pooled_vector_is_not_trained() -> None:
    assert "pooled" not in dict(make().named_parameters())

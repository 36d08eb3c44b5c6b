# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import count_flops, policy_flops
from benchmarks.ours import make_trainable
from benchmarks.sizes import SIZES, Size, build_policy, transformer_config

SIDE, TEXT, BATCH = 8, 7, 3


def small(**changes: Any) -> Size:
    fields = {"layers": 4, "latent_channels": 5, "pixels": 8 * SIDE, "text_tokens": TEXT, "lora_rank": 3, **changes}
    return Size(
        heads=2,
        head_dim=16,
        patch=2,
        joint=40,
        pooled=24,
        positions=8,
        projector=8,
        language=SIZES["tiny"].language,
        **fields,
    )


def counted(transformer: SD3Transformer2DModel, size: Size, *, backward: bool) -> float:
    """Operations per sample that torch counts; attention as plain matrix products, which it counts on every device."""
    inputs = {
        "hidden_states": torch.randn(BATCH, size.latent_channels, SIDE, SIDE),
        "timestep": torch.full((BATCH,), 500.0),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, size.joint),
        "pooled_projections": torch.randn(BATCH, size.pooled),
    }
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = transformer(**inputs, return_dict=False)[0]
        if backward:
            out.sum().backward()
    return counter.get_total_flops() / BATCH


@pytest.mark.parametrize("dual", [(), (0, 2)])
@pytest.mark.parametrize("rank", [0, 3])
def test_forward_is_what_torch_counts(dual: tuple[int, ...], rank: int) -> None:
    size = small(dual=dual, lora_rank=rank)
    transformer = make_trainable(build_policy(size, 0), size).transformer
    expected = count_flops(transformer_config(size), SIDE, TEXT, rank)
    assert counted(transformer, size, backward=False) == pytest.approx(expected.forward, rel=1e-9)


@pytest.mark.parametrize(("rank", "least"), [(0, 0.98), (3, 0.85)])
def test_backward_is_nearly_what_torch_counts(rank: int, least: float) -> None:
    """A little too much: the first block passes no gradient on to the inputs."""
    size = small(lora_rank=rank)
    transformer = make_trainable(build_policy(size, 0), size).transformer
    flops = count_flops(transformer_config(size), SIDE, TEXT, rank)
    found = counted(transformer, size, backward=True) - flops.forward
    assert least < found / flops.backward(all_weights=not rank) <= 1.0 + 1e-9


def test_known_models_have_known_sizes() -> None:
    """5.4 GFLOP per token of SD3.5-large are 24 d² per layer; 8.06 and 2.47 thousand million parameters."""
    for name, parameters in (("sd35_large", 8.06e9), ("sd35_medium", 2.24e9)):
        with torch.device("meta"):
            transformer = SD3Transformer2DModel(**transformer_config(SIZES[name]))
        assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(parameters, rel=0.02)
    large = count_flops(transformer_config(SIZES["sd35_large"]), 64, 333)
    assert large.tokens / (1024 + 333) == pytest.approx(24 * 2432**2 * 38, rel=0.02)
    assert 7e12 < large.forward < 9e12


def test_policy_counts_sampling_and_update() -> None:
    flops = count_flops(transformer_config(small()), SIDE, TEXT)
    sampling, update = policy_flops(flops, steps=10, window=3, all_weights=True)
    assert sampling == 10 * flops.forward
    assert 8.5 * flops.forward < update < 9 * flops.forward

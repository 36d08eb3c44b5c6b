# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's weights and images reach the real vLLM; each assertion has a control that breaks it.

vLLM and the trainer compute the same tokens' probabilities independently. They agree only if vLLM samples from the
weights of the last update and sees the pictures the trainer sees; neither fault raises or shows in the reward. A
difference remains: verl keeps vLLM from sampling the two vision placeholders, which the trainer counts (about 0.1 nats
with this small vocabulary).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.vllm.world import STEPS, build_tiled_world, build_vllm_world, correlations

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

EXTENSION = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"

AGREE = 0.99
DISAGREE = 0.9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vllm_world(tmp_path_factory.mktemp("world"))


def test_vllm_samples_from_the_trained_weights_and_sees_the_images(world: Path, tmp_path: Path) -> None:
    by_step = correlations(world, tmp_path)
    assert all(by_step[step] > AGREE for step in range(1, STEPS + 1)), by_step


def test_internvl_samples_from_the_trained_weights_and_sees_the_images(tmp_path: Path) -> None:
    """Its prompts reach vLLM as its chat template has them, its weights by names of its own."""
    world = build_tiled_world(tmp_path / "world")
    by_step = correlations(world, tmp_path / "out", steps=2)
    assert all(by_step[step] > AGREE for step in (1, 2)), by_step


def test_control_discarded_weights_are_noticed(world: Path, tmp_path: Path) -> None:
    by_step = correlations(world, tmp_path, [f"{EXTENSION}=tests.vllm.control.DiscardWeights"])
    assert by_step[1] > AGREE, by_step
    assert all(by_step[step] < DISAGREE for step in range(2, STEPS + 1)), by_step


def test_control_pictures_that_do_not_arrive_are_noticed(world: Path, tmp_path: Path) -> None:
    by_step = correlations(world, tmp_path, [f"{EXTENSION}=tests.vllm.control.BlindPictures"], steps=1)
    assert by_step[1] < DISAGREE, by_step


def test_the_shim_is_still_needed() -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer = torch.nn.Linear(64, 64)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    assert layer.weight.numel() == 0


def test_a_plain_layer_computes_with_new_weights() -> None:
    from verl_uae.caption_server.vllm_cpu import keep_plain_weight

    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    keep_plain_weight(layer, remove_weight=True)
    weight, x = torch.randn(32, 64, generator=generator), torch.randn(5, 64, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(weight)
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), x @ weight.T + layer.bias)

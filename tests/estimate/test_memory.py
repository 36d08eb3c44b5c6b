# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes: activations on ``meta`` against those of the workers on a CPU, shards against FSDP2's own, weights against the
page that says them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from tests.estimate import world
from tests.estimate.conftest import FAMILIES
from tests.estimate.test_stages import U4G, photograph, sized
from tests.real_size import models
from verl_uae.chain.records import Caption, Sample
from verl_uae.config.left_open import KEEP
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.meter import Meter
from verl_uae.estimate.work import Shards, measure
from verl_uae.families.published import (
    DECODERS,
    LANGUAGE_MODELS,
    build,
    build_language_model,
    language_config,
    published,
)
from verl_uae.families.text import language_stack
from verl_uae.stages.u4g.worker import Layout, sampling_plan

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_peak_of_an_update(family: str, again: bool, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    """The worker's own update of adapters, every byte that it holds."""
    words = ["uae.train.lora.rank=2", f"uae.train.gradient_checkpointing={str(again).lower()}"]
    asked = world.asked("u4g", tiny(family), *U4G, *sized(family), *words)
    estimator = Estimator(asked)
    worker = world.policy_worker(asked)
    sample = Sample(photograph(64), Caption(estimator.work.caption, "digest"))
    plan = sampling_plan(asked.config, worker.family, 0)
    worker.explore([sample], Layout(sources=1, members=4, updates=1, ranks=1), plan.to_dict(), 1)
    held = measure(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0), worker.engine.module, device="cpu")
    update = next(phase for phase in estimator.estimate("H100-80GB").phases if phase.name == "update")
    assert update.memory["activations"] == pytest.approx(held.peak, rel=0.1)


@pytest.mark.parametrize(("family", "kept", "again"), [("sd3", 6, False), ("sd3", 3, True)])
def test_what_kept_steps_hold(
    family: str, kept: int, again: bool, tiny: Callable[[str], Path], tmp_path: Path, cpu: Any, one_rank: Any
) -> None:
    """By how much the peak of the cold start's loss and its way back grows, every byte that is held."""
    clip = models.save_clip(tmp_path)
    words = ["data.train_batch_size=2", "uae.train.micro_batch_size=2", "uae.cold_start.num_steps=6"]
    words += ["uae.cold_start.guidance=2.0", f"+uae.cold_start.backbone_params.model={clip}"]
    words += ["uae.train.train_projector=false", "uae.train.lora.rank=2", "uae.cold_start.captioner.lora.rank=2"]
    words += [f"uae.train.gradient_checkpointing={str(again).lower()}"]
    asked = world.asked("cold_start", tiny(family), *words, *sized(family))
    estimator = Estimator(asked)
    loss, data, engine = world.cold_start(asked, estimator.work.caption, estimator.work.caption_tokens, clip)
    modules = engine.module, loss.captioner
    measured, estimated = [], []
    for steps in (0, kept):
        loss.settings = dataclasses.replace(loss.settings, kept_steps=steps)
        held = measure(lambda: engine.forward_backward_batch(data, loss), *modules, device="cpu")
        measured.append(held.peak)
        found = estimator.estimate("H100-80GB", changes={KEEP: steps})
        phases = {phase.name: sum(phase.memory.values()) for phase in found.phases}
        assert max(phases, key=lambda name: phases[name]) == "picture"
        estimated.append(phases["picture"])
    assert estimated[1] - estimated[0] == pytest.approx(measured[1] - measured[0], rel=0.1)


def test_what_is_held_and_let_go_by_hand() -> None:
    """Two buffers at a time, what was there before and views not counted, a product counted by its formula."""
    weight = torch.empty(64, 64, device="meta")
    with Meter() as meter:
        x = torch.empty(32, 64, device="meta")
        y = x @ weight.t()
        del x
        z = y + 1
        del y
        assert meter.live_bytes == z.nbytes
    assert meter.peak_bytes == 2 * 32 * 64 * 4 and meter.flops == {"float32": 2 * 32 * 64 * 64}


def test_attention_keeps_no_scores_and_counts_as_on_a_gpu() -> None:
    """4 B H T T D forward, and two and a half times that backward: scores are computed again."""
    shape = (2, 4, 256, 16)
    forward = 4 * 2 * 4 * 256 * 256 * 16
    for options in ({}, {"attn_mask": torch.ones(256, 256, dtype=torch.bool, device="meta")}, {"is_causal": True}):
        q = torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True)
        with Meter() as meter:
            out = nn.functional.scaled_dot_product_attention(q, q, q, **options)
            assert meter.flops == {"bfloat16": forward}
            out.sum().backward()
        assert meter.flops == {"bfloat16": 3.5 * forward}
        assert meter.peak_bytes < 2 * 4 * 256 * 256 * 2


def test_shapes_that_depend_on_values_are_those_of_the_values() -> None:
    with Meter():
        mask = torch.arange(8, device="meta") % 3 == 0
        states = torch.empty(8, 5, device="meta")[mask]
        assert states.shape == (3, 5) and mask.nonzero().tolist() == [[0], [3], [6]] and int(mask.sum()) == 3


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_shards_are_those_of_fsdp2(ranks: int, tiny: Callable[[str], Path]) -> None:
    """Rank 0 of a process group of which there is nobody else."""
    asked = world.asked("u4g", tiny("qwen_image"), *U4G, *sized("qwen_image"), "uae.train.lora.rank=2")
    module = world.policy_module(asked)
    blocks = module._no_split_modules
    counted = Shards.of(module, blocks, ranks)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        for block in [each for each in module.modules() if type(each).__name__ in blocks]:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        local: Any = [(weight.requires_grad, weight.to_local().numel()) for weight in module.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    assert counted.own == sum(count for _, count in local)
    assert counted.own_trained == sum(count for trained, count in local if trained)
    assert counted.received(2) == pytest.approx(2 * counted.all * (ranks - 1) / ranks)


class Copies(TorchDispatchMode):
    """Bytes that FSDP2 writes into buffers of gradients and out of them, with those of weights on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "chunk_cat" in str(func):
            self.bytes += kwargs["out"].nbytes
        elif str(func) == "aten.copy_.default":
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ranks", (1, 2, 4))
def test_gradients_are_copied_as_fsdp_copies_them(ranks: int) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    counted = Shards.of(model, ["Linear"], ranks)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        for block in model:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        total = model(torch.ones(5, 64)).sum()
        with Copies() as copies:
            total.backward()
    finally:
        torch.distributed.destroy_process_group()
    # Alone it copies weights again on the way back, too.
    weights = 4 * counted.all if ranks == 1 else 0.0
    assert copies.bytes == counted.packed() + weights


def rows(start: str) -> dict[str, list[str]]:
    """Table of the page by its first column."""
    lines = PAGE.read_text(encoding="utf-8").split(start)[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("` "): row[1:] for row in cells for name in row[0].split(",")}


@pytest.mark.parametrize("name", DECODERS)
def test_weights_of_presets_are_those_of_the_page(name: str) -> None:
    family, arguments = published(name)
    size = sum(weight.numel() for weight in build(family, arguments)["transformer"].parameters())
    said = rows("| preset | family |")
    decoder, language = said[name][2].split(";")
    numbers = re.findall(r"[\d.]+", decoder)
    # One row has two presets.
    number = numbers[list(DECODERS).index(name)] if name.startswith("sd35") else numbers[0]
    assert float(number) == pytest.approx(2 * size / 2**30, abs=0.06)
    stack = language_stack(build_language_model(language_config(DECODERS[name].language_model, "key")))
    number = re.findall(r"[\d.]+", language)[0]
    assert float(number) == pytest.approx(sum(w.nbytes for w in stack.parameters()) / 2**30, abs=0.06)


#: Billions of parameters as their model cards have them.
PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.755,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292,
    "Qwen/Qwen3-VL-2B-Instruct": 2.128,
    "Qwen/Qwen3-VL-4B-Instruct": 4.438,
    "Qwen/Qwen3-VL-8B-Instruct": 8.767,
    "Qwen/Qwen3-4B": 4.022,
    "Qwen/Qwen3-8B": 8.191,
    "google/gemma-2-2b-it": 2.614,
}


def test_language_models_have_the_published_number_of_weights() -> None:
    assert PUBLISHED.keys() == LANGUAGE_MODELS.keys()
    for name, billions in PUBLISHED.items():
        model = build_language_model(language_config(name, "key"))
        assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)

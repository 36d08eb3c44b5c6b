# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds verl's engines on one CPU rank and writes what happened as JSON: python -m tests.engines.probe CAPTIONER OUT.

In a process of its own: VERL_PLATFORM is read once per process, and so is the process group.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from verl.trainer.config import CheckpointConfig
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_uae.engines.captioner import MODEL_TYPE, CaptionerEngine
from verl_uae.scenes.tokenizer import pixel_values, prompt_ids
from verl_uae.seeding import normal


def parts(captioner: str, *, forward_only: bool) -> dict[str, Any]:
    """Arguments of an engine."""
    return {
        "model_config": HFModelConfig(
            path=captioner,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        "engine_config": FSDPEngineConfig(
            strategy="fsdp2",
            forward_only=forward_only,
            use_torch_compile=False,
            use_remove_padding=False,
            dtype="float32",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        "optimizer_config": None if forward_only else FSDPOptimizerConfig(lr=1e-2, total_training_steps=2),
        "checkpoint_config": CheckpointConfig(),
    }


def attempt(call: Any) -> str:
    """What a call raises, as text; empty if nothing."""
    try:
        call()
    except Exception as error:
        # The error is the finding.
        return f"{type(error).__name__}: {error}"
    return ""


def freeze_facts(captioner: str) -> dict[str, Any]:
    """Gradients and one optimizer step with a frozen vision tower."""
    engine = CaptionerEngine(**parts(captioner, forward_only=False))
    engine.freeze_vision_tower = True
    engine.initialize()
    named = dict(engine.module.named_parameters())
    before = {name: parameter.detach().full_tensor().clone() for name, parameter in named.items()}
    ids = torch.tensor([prompt_ids(engine.model_config.tokenizer)])
    positions = torch.arange(ids.shape[1]).expand(4, 1, -1)
    # With a picture, so that an unfrozen tower would get gradients.
    pixels, grid = pixel_values(normal((1, 3, 32, 32), "picture").sigmoid())
    output = engine.module(input_ids=ids, position_ids=positions, pixel_values=pixels, image_grid_thw=grid)
    output.logits.float().square().mean().backward()
    engine.optimizer.step()
    moved = {name: not torch.equal(before[name], named[name].detach().full_tensor()) for name in named}
    return {
        "visual_requires_grad": [p.requires_grad for n, p in named.items() if ".visual." in n],
        "language_requires_grad": [p.requires_grad for n, p in named.items() if ".visual." not in n],
        "visual_moved": sum(moved[name] for name in named if ".visual." in name),
        "language_moved": sum(moved[name] for name in named if ".visual." not in name),
    }


def main(captioner: str, out: str) -> None:
    """Collect the facts."""
    facts: dict[str, Any] = {"device": get_device_name(), "device_module": type(get_torch_device()).__name__}
    facts["duplicate backend"] = attempt(initialize_global_process_group_ray)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    facts["engine class"] = EngineRegistry.get_engine_cls(MODEL_TYPE, "fsdp2").__name__
    facts["stock engine on cpu"] = attempt(lambda: EngineRegistry.get_engine_cls("language_model", "fsdp2"))
    stock = FSDPEngineWithLMHead(**parts(captioner, forward_only=True))
    stock.model_config.model_type = "language_model"
    facts["stock forward only"] = attempt(stock.initialize)
    stock = FSDPEngineWithLMHead(**parts(captioner, forward_only=True))
    stock.model_config.model_type = MODEL_TYPE
    facts["stock model type"] = attempt(stock.initialize)
    ours = CaptionerEngine(**parts(captioner, forward_only=True))
    facts["our forward only"] = attempt(ours.initialize)
    facts["still forward only"] = ours.engine_config.forward_only
    facts["freeze"] = freeze_facts(captioner)
    Path(out).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny release in the official layout, written with the real classes, and the models it was written from.

Names are those of transformers 4.50: there peft was wrapped around ``model.model``, which was the language model alone.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from verl_uae.seeding import normal

#: Names in memory today -> names of 4.50.
_OLDER = (
    ("model.language_model.base_model.model.", "model.base_model.model."),
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
)


@dataclass
class Release:
    """Where it lies, and what it is when its parts are put together as its own demo does."""

    folder: Path
    language: Any
    """The vision-language model with its adapters, not merged."""
    projector: nn.Sequential
    transformer: Any
    """The MM-DiT with its adapters, not merged."""


def older(name: str) -> str:
    """A name in memory as it was in transformers 4.50."""
    for today, then in _OLDER:
        if name.startswith(today):
            return then + name[len(today) :]
    return name


@torch.no_grad()
def stir(module: nn.Module, what: str) -> None:
    """Adapters that do something, and for the tensors around them other values than before."""
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            parameter.copy_(0.1 * normal(tuple(parameter.shape), what, name))


def build_release(models: Path, sd3: Path, folder: Path) -> Release:
    """Write ``SD3``, ``llm``, ``llm_lora``, ``dit``, ``dit_lora`` and ``llm_processor``."""
    shutil.copytree(sd3, folder / "SD3")
    language = Qwen2_5_VLForConditionalGeneration.from_pretrained(models / "captioner", dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = nn.Sequential(nn.Linear(96, 24), nn.GELU(), nn.Linear(24, 96))
        projector = copy.deepcopy(before)
        with torch.no_grad():
            # Trained on since: what counts is the one of llm_lora.
            projector[0].bias.add_(0.5)
        _write_llm(language, before, folder / "llm")
        config = LoraConfig(r=32, lora_alpha=64, init_lora_weights="gaussian", target_modules="all-linear")
        language.model.language_model = get_peft_model(language.model.language_model, config)
        stir(language, "language")
        with torch.no_grad():
            language.model.language_model.base_model.model.norm.weight.mul_(1.25)
        _write_llm_lora(language, projector, folder / "llm_lora")
        transformer = SD3Transformer2DModel.from_pretrained(models / "decoder", subfolder="transformer").eval()
        transformer.save_pretrained(folder / "dit")
        targets = ["attn.to_q", "attn.to_out.0", "attn.add_k_proj"]
        transformer = get_peft_model(transformer, LoraConfig(r=3, lora_alpha=7, target_modules=targets))
        stir(transformer, "transformer")
        transformer.save_pretrained(str(folder / "dit_lora"))
    AutoProcessor.from_pretrained(models / "captioner").save_pretrained(folder / "llm_processor")
    return Release(folder, language.eval(), projector, transformer.eval())


def _write_llm(language: Any, projector: nn.Module, folder: Path) -> None:
    language.config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "do_sample": True}))
    save_file(_named(language, projector), folder / "model.safetensors", metadata={"format": "pt"})


def _write_llm_lora(language: Any, projector: nn.Module, folder: Path) -> None:
    folder.mkdir()
    state = _named(language, projector)
    names = sorted(state)
    for number in range(3):
        shard = {name: state[name] for name in names[number::3]}
        save_file(shard, folder / f"model-{number + 1:05d}-of-00003.safetensors", metadata={"format": "pt"})


def _named(language: Any, projector: nn.Module) -> dict[str, Tensor]:
    state = {older(name): tensor.clone() for name, tensor in language.state_dict().items()}
    return state | {f"projector.{name}": tensor for name, tensor in projector.state_dict().items()}

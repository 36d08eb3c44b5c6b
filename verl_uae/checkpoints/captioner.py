# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The captioner of a training checkpoint as a transformers folder, adapters multiplied out.

verl writes shards of what trains, and with ``hf_model`` a folder of the same tensors. With adapters
(``actor_rollout_ref.model.lora_rank``) the names in both are peft's, which transformers would take for unknown tensors
and start the model at random, and which verl's own merger puts into a folder beside the untrained base.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.checkpoints.assemble import copy_transformers, copy_transformers_files, tensors_of
from verl_uae.checkpoints.load import fill_model, load_model, load_processor
from verl_uae.checkpoints.lora import Adapters, adapter_alpha, has_adapters, merge, split_adapters
from verl_uae.checkpoints.names import GENERATION_CONFIG, HUGGINGFACE, LORA_META
from verl_uae.checkpoints.shards import read_shards
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError

#: What peft puts before every name.
_PEFT = "base_model.model."

#: Largest root mean square of a difference of logits, in parts of that of the logits, by the weights' precision.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def holds_weights(actor: Path) -> bool:
    """Whether the captioner's folder of a step has its weights in a transformers folder too, under whatever names."""
    return any((actor / HUGGINGFACE).glob("*.safetensors"))


def write_trained_captioner(actor: Path, out: Path, *, base: str | Path | None, alpha: float | None) -> None:
    """Write the captioner of a step as a transformers folder; of adapters, their product with the weights.

    Args:
        actor: ``actor/`` of a step folder.
        out: where to.
        base: folder or hub id that the run started from, for steps that hold adapters alone.
        alpha: of the adapters, if the step does not say.

    Raises:
        CheckpointError: shards, adapters and configuration do not fit together, or what was written computes something
            else than the step does.
        ConfigError: alpha is needed.
    """
    source = actor / HUGGINGFACE
    adapted = (actor / LORA_META).is_file()
    stored = tensors_of(source) if holds_weights(actor) else read_shards(actor)
    if adapted and not has_adapters(stored):
        # A folder beside which somebody else's tool put the adapters is the model as it was before.
        stored = read_shards(actor)
    if has_adapters(stored):
        _write_product(stored, actor, out, base=base, alpha=None if adapted else alpha)
    elif adapted:
        raise CheckpointError(actor / LORA_META, "says that adapters were trained, but the step holds none")
    elif holds_weights(actor):
        copy_transformers(source, out)
    else:
        _save(fill_model(_auto_class(), source, stored), source, out)


def check_same(wanted: Tensor, found: Tensor, where: Path) -> None:
    """Compare logits of a step with those of what was written, whose precision allows for rounding. Raises
    `CheckpointError`: they differ by more."""
    difference = (found.float() - wanted.float()).square().mean().sqrt()
    part = float(difference / wanted.float().square().mean().sqrt())
    # Written so that a number that is none does not pass.
    if not part <= _TOLERANCE[wanted.dtype]:
        raise CheckpointError(
            where,
            f"with its adapters multiplied out the captioner computes other logits than with them ({part:.2g} of their "
            "size): nothing is published",
        )


def _write_product(
    stored: Mapping[str, Tensor], actor: Path, out: Path, *, base: str | Path | None, alpha: float | None
) -> None:
    source = actor / HUGGINGFACE
    weights, layers = split_adapters({name.removeprefix(_PEFT): tensor for name, tensor in stored.items()}, actor)
    adapters = Adapters(layers, adapter_alpha(actor, layers, alpha))
    if not weights:
        if base is None:
            raise CheckpointError(actor, "holds adapters alone, and nothing says which model they adapt (--encoder)")
        dtype = next(iter(layers.values()))[0].dtype
        weights = load_model(_auto_class(), base, dtype=dtype).state_dict()
    merged = merge(weights, layers, adapters.scaling, actor)
    wanted = _logits(_adapted(weights, adapters, source), source)
    _save(fill_model(_auto_class(), source, merged), source, out)
    check_same(wanted, _logits(load_model(_auto_class(), out, dtype="auto"), source), actor)


def _adapted(weights: Mapping[str, Tensor], adapters: Adapters, source: Path) -> Any:
    """The model of a step as peft computes it, nothing multiplied out."""
    from peft import inject_adapter_in_model

    model = fill_model(_auto_class(), source, weights)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(adapters.config(), model, "default")
    halves = {
        f"{layer}.lora_{half}.default.weight": tensor
        for layer, pair in adapters.layers.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    report = model.load_state_dict(halves, strict=False)
    if report.unexpected_keys:
        raise CheckpointError(source, f"peft has no place for {report.unexpected_keys[0]}")
    return model


@torch.no_grad()
def _logits(model: Any, source: Path) -> Tensor:
    """Logits (1, L, V) after a picture and a sentence, in the model's precision."""
    from verl_uae.chain.captioner import caption_messages, prompt_inputs

    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    inputs = prompt_inputs(load_processor(source), [caption_messages(picture, "<image>describe", None)])
    moved = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    logits: Tensor = model.eval()(**moved).logits
    return logits


def _save(model: Any, source: Path, out: Path) -> None:
    """Weights under the names that transformers keeps on disk, and the other files of the source."""
    model.save_pretrained(out, safe_serialization=True)
    if (source / GENERATION_CONFIG).is_file():
        shutil.copyfile(source / GENERATION_CONFIG, out / GENERATION_CONFIG)
    copy_transformers_files(source, out, weights=False)


def _auto_class() -> Any:
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText

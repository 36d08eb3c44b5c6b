# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters of a captioner: where they may be placed, before a run on a model without weights, and in it.

verl places them with peft, which takes more than verl's checkpoints can say, and puts them into a frozen vision tower
too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from verl_uae.captioners import TOWERS, vision_towers
from verl_uae.checkpoints.load import empty_model
from verl_uae.checkpoints.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from verl_uae.checkpoints.source import check_safetensors
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError, ConfigError

#: Section of the configuration.
MODEL = "actor_rollout_ref.model"


@dataclass(frozen=True, slots=True)
class Placement:
    """What a run says of its adapters; the names are those of verl's keys."""

    lora_rank: int
    lora_alpha: int
    target_modules: Any
    exclude_modules: Any
    lora_adapter_path: Path | None
    """Folder of adapters to go on with."""
    frozen_tower: bool
    """None is placed in the vision tower."""

    @property
    def key(self) -> str:
        """Of what says where they are placed."""
        return f"{MODEL}.{'target_modules' if self.lora_adapter_path is None else 'lora_adapter_path'}"

    def check(self, module: nn.Module) -> None:
        """Refuse a model of peft that took them. Raises as `check_frozen`, `check_layers` and `check_stored`."""
        if self.frozen_tower:
            check_frozen(module, self.key)
        check_layers(module, self.key)
        if self.lora_adapter_path is not None:
            check_stored(module, self.lora_adapter_path, self.lora_rank)


def check_placement(captioner: Path, placement: Placement) -> None:
    """Place adapters as a run will on a captioner without weights, which takes a second at any size.

    Args:
        captioner: transformers folder.
        placement: of the run.

    Raises:
        ConfigError: peft cannot place them, or a checkpoint, an export or a frozen vision tower forbids it.
        CheckpointError: stored adapters do not fit.
    """
    ensure_torchvision()
    from peft import LoraConfig, PeftConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    module = empty_model(AutoModelForImageTextToText, captioner)
    if placement.frozen_tower:
        for tower in vision_towers(module):
            tower.requires_grad_(False)
    with placing(placement.key), torch.random.fork_rng(devices=[]):
        if placement.lora_adapter_path is None:
            excluded = placement.exclude_modules
            config: Any = LoraConfig(
                r=placement.lora_rank,
                lora_alpha=placement.lora_alpha,
                target_modules=placement.target_modules,
                exclude_modules=without_towers(excluded) if placement.frozen_tower else excluded,
            )
        else:
            config = PeftConfig.from_pretrained(str(placement.lora_adapter_path))
            config.inference_mode = False
        adapted = get_peft_model(module, config, low_cpu_mem_usage=True)
    placement.check(adapted)


@contextmanager
def placing(key: str) -> Iterator[None]:
    """peft's complaints about names that match nothing, as `ConfigError` of a key."""
    try:
        yield
    except (ValueError, re.error) as error:
        raise ConfigError(key, f"peft cannot place these adapters: {' '.join(str(error).split())}") from error


def without_towers(excluded: str | Sequence[str] | None) -> str:
    """peft's ``exclude_modules`` that leaves out the vision tower besides what it is given.

    Args:
        excluded: names or endings of names of modules, or one regular expression for the whole name, as peft takes
            them.
    """
    if isinstance(excluded, str):
        # Flags may stand at the start of a whole expression only.
        excluded = re.sub(r"^\(\?([aiLmsux]+)\)(.*)$", r"(?\1:\2)", excluded, flags=re.DOTALL)
    elif excluded is not None:
        excluded = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, excluded))})"
    tower = rf"(?:.*\.)?(?:{'|'.join(TOWERS)})(?:\..*)?"
    return f"(?:{excluded})|{tower}" if excluded else tower


def check_frozen(module: nn.Module, source: str = f"{MODEL}.lora_adapter_path") -> None:
    """Refuse a model whose vision tower would train.

    Args:
        module: of peft.
        source: configuration key of what is trained.

    Raises:
        ConfigError: naming a parameter of the tower that takes a gradient, such as that of an adapter.
    """
    parts = [named for tower in vision_towers(module) for named in tower.named_parameters()]
    moving = [name for name, part in parts if part.requires_grad]
    if moving:
        raise ConfigError(
            source,
            f"would train {len(moving)} parameters of the vision tower, such as {moving[0]}, and "
            "actor_rollout_ref.actor.freeze_vision_tower is true; merge those adapters into the model first, or set it "
            "to false",
        )


def check_layers(module: nn.Module, source: str) -> None:
    """Refuse what a checkpoint and an export of it could not say: anything trained but two matrices beside the weight
    of a linear layer.

    Args:
        module: of peft.
        source: configuration key of what is trained.

    Raises:
        ConfigError: naming an adapter of another kind (of an embedding, a convolution, a lone parameter; DoRA, IA3), a
            weight or bias that is trained as a whole, or an adapter of a weight that another layer uses too.
    """
    from peft.tuners.lora import Linear

    linear = {name for name, layer in module.named_modules() if isinstance(layer, Linear)}
    halves = {f"{name}.lora_{half}.default.weight" for name in linear for half in "AB"}
    odd = [name for name, parameter in module.named_parameters() if parameter.requires_grad and name not in halves]
    if odd:
        raise ConfigError(
            source,
            f"would train {len(odd)} parameters such as {odd[0]}; a checkpoint of adapters holds lora_A and lora_B of "
            "linear layers, and an export would lose the others: leave those layers out, or merge what is there",
        )
    users = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    tied = [name for name in sorted(linear) if users[id(module.get_submodule(name).base_layer.weight)] > 1]  # type: ignore[union-attr, arg-type]
    if tied:
        raise ConfigError(
            source, f"adapts {tied[0]}, whose weight another layer uses too, and would change with it on export"
        )


def check_stored(module: nn.Module, folder: Path, rank: int) -> None:
    """Compare stored adapters with those of a model that took them: peft starts the others anew.

    Args:
        module: of peft.
        folder: with ``adapter_model.safetensors``.
        rank: that the run was told, for which a caption server makes room.

    Raises:
        ConfigError: the adapters have another rank.
        CheckpointError: naming an adapter that is missing, has no place or another shape, or is scaled by something
            else than alpha / rank, which is all that verl's checkpoints say.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    path = folder / ADAPTER_WEIGHTS
    stored = check_safetensors(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(module).items()}
    other = sorted(name for name in stored.keys() & wanted.keys() if stored[name] != wanted[name])
    if stored != wanted:
        kinds = {
            "lacks": sorted(wanted.keys() - stored.keys()),
            "has no place for": sorted(stored.keys() - wanted.keys()),
            "has other shapes of": other,
        }
        found = ", ".join(f"{what} {len(names)} tensors such as {names[0]}" for what, names in kinds.items() if names)
        found += f", which is {list(stored[other[0]])} and must be {list(wanted[other[0]])}" if other else ""
        raise CheckpointError(path, f"does not fit the model: {found} ({MODEL}.lora_adapter_path)")
    configs: Any = module.peft_config
    config = configs["default"]
    if config.r != rank:
        raise ConfigError(f"{MODEL}.lora_rank", f"is {rank}, the adapters in {folder} have {config.r}: set it to that")
    scalings = {
        name: layer.scaling["default"] for name, layer in module.named_modules() if isinstance(layer, LoraLayer)
    }
    odd = [name for name, scale in scalings.items() if scale != int(config.lora_alpha) / config.r]
    if odd:
        raise CheckpointError(
            folder / ADAPTER_CONFIG,
            f"scales {odd[0]} otherwise than by a whole lora_alpha / r (use_rslora, alpha_pattern, rank_pattern), "
            f"which a checkpoint cannot say; merge the adapters into the model first ({MODEL}.lora_adapter_path)",
        )

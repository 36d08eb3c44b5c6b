# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from verl_uae.checkpoints.captioner_adapters import (
    Placement,
    check_frozen,
    check_layers,
    check_placement,
    check_stored,
    without_towers,
)
from verl_uae.errors import CheckpointError, ConfigError


def test_peft_leaves_out_what_it_was_told_and_the_tower() -> None:
    """By its own matching, for each of the forms that it takes."""
    from peft import LoraConfig, inject_adapter_in_model

    def adapted(excluded: Any) -> set[str]:
        names = ("visual.q", "visual.deep.k", "language.q", "language.k")
        module = nn.Module()
        for name in names:
            parent = module
            *path, last = name.split(".")
            for part in path:
                parent = parent._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
            parent.add_module(last, nn.Linear(2, 2))
        config = LoraConfig(r=1, target_modules=r".*\.[qk]", exclude_modules=without_towers(excluded))
        inject_adapter_in_model(config, module)
        return {name.partition(".lora_A")[0] for name, _ in module.named_parameters() if ".lora_A." in name}

    assert adapted(None) == {"language.q", "language.k"}
    assert adapted("(?i)LANGUAGE.*K") == {"language.q"}, "flags at the start of an expression"
    assert adapted("language.*k") == adapted(["k"]) == adapted(["language.k"]) == {"language.q"}


def test_a_tower_that_would_train_is_refused() -> None:
    module = nn.ModuleDict({"visual": nn.Linear(2, 2), "language": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"lora_adapter_path: would train 2 parameters .* such as weight"):
        check_frozen(module)
    module["visual"].requires_grad_(False)
    check_frozen(module)


@pytest.mark.parametrize("scale", [{"use_rslora": True}, {"alpha_pattern": {"k": 3}}, {"rank_pattern": {"k": 1}}, {}])
def test_a_scale_that_a_checkpoint_cannot_say_is_refused(tmp_path: Path, scale: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = nn.ModuleDict({"q": nn.Linear(3, 3), "k": nn.Linear(3, 3)})
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q", "k"], **scale))
    adapted.save_pretrained(str(tmp_path))
    check_layers(adapted, "key")
    if not scale:
        check_stored(adapted, tmp_path, 2)
        with pytest.raises(ConfigError, match=r"lora_rank: is 8, the adapters in .* have 2: set it to that"):
            check_stored(adapted, tmp_path, 8)
        return
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: scales .* than by a whole lora_alpha / r"):
        check_stored(adapted, tmp_path, 2)


class Speaker(nn.Module):
    """An embedding, a convolution and linear layers, the last of which may be the embedding's too."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.q, self.patches = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.words.weight


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"target_modules": ["q", "words"]}, "words.lora_embedding_A"),
        ({"target_modules": ["patches"]}, "patches.lora_A"),
        ({"target_modules": ["q"], "use_dora": True}, "q.lora_magnitude_vector"),
        ({"target_modules": ["q"], "modules_to_save": ["head"]}, "head.modules_to_save"),
        ({"target_modules": ["q"], "bias": "all"}, "q.base_layer.bias"),
        ({"target_modules": ["q"], "lora_bias": True}, "q.lora_B.default.bias"),
        ({"target_modules": ["q"], "target_parameters": ["head.weight"]}, "head.lora_A"),
    ],
)
def test_what_a_checkpoint_of_adapters_would_lose_is_refused_before_it_trains(
    settings: dict[str, Any], name: str
) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(Speaker(), LoraConfig(r=2, lora_alpha=4, **settings))
    with pytest.raises(ConfigError, match=rf"target_modules: would train \d parameters such as .*{re.escape(name)}"):
        check_layers(adapted, "actor_rollout_ref.model.target_modules")


def test_an_adapter_of_a_weight_with_two_users_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    for tied, targets in ((False, ["q", "head"]), (True, ["q"])):
        check_layers(get_peft_model(Speaker(tied), LoraConfig(r=2, target_modules=targets)), "key")
    adapted = get_peft_model(Speaker(tied=True), LoraConfig(r=2, target_modules=["q", "head"]))
    with pytest.raises(ConfigError, match=r"key: adapts .*head, whose weight another layer uses too"):
        check_layers(adapted, "key")


# ---------------------------------------------------------------- before a run


def placement(**changes: Any) -> Placement:
    settings: dict[str, Any] = {
        "lora_rank": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "exclude_modules": None,
        "lora_adapter_path": None,
        "frozen_tower": True,
    }
    return Placement(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"target_modules": ["qkv"]}, "target_modules", "peft cannot place these adapters"),
        ({"target_modules": r".*visual.*qkv"}, "target_modules", "peft cannot place these adapters"),
        ({"target_modules": ["no_such_layer"]}, "target_modules", "peft cannot place these adapters"),
        ({"target_modules": "("}, "target_modules", "peft cannot place these adapters"),
        ({"target_modules": ["embed_tokens"]}, "target_modules", "an export would lose the others"),
        ({"target_modules": ["patch_embed.proj"], "frozen_tower": False}, "target_modules", "would lose the others"),
    ],
)
def test_adapters_without_a_place_are_refused_before_a_run(
    tiny_models: Path, changes: dict[str, Any], key: str, said: str
) -> None:
    """``qkv`` is a layer of the vision tower alone."""
    check_placement(tiny_models / "captioner", placement())
    if "qkv" in changes["target_modules"]:
        check_placement(tiny_models / "captioner", placement(**changes, frozen_tower=False))
    with pytest.raises(ConfigError, match=said) as caught:
        check_placement(tiny_models / "captioner", placement(**changes))
    assert caught.value.key == f"actor_rollout_ref.model.{key}"


def test_a_check_before_a_run_draws_nothing_from_the_global_generator(tiny_models: Path) -> None:
    before = torch.get_rng_state()
    check_placement(tiny_models / "captioner", placement())
    assert torch.equal(before, torch.get_rng_state())


def test_stored_adapters_are_compared_before_a_run(tiny_models: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    captioner = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner")
    get_peft_model(captioner, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "language"
    )
    stored = tmp_path / "language"
    check_placement(tiny_models / "captioner", placement(lora_adapter_path=stored))
    weights = stored / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_file({**tensors, name: torch.cat([tensors[name]] * 2, dim=1)}, weights)
    wide = re.escape(f"{name}, which is {[4, 2 * tensors[name].shape[1]]} and must be {list(tensors[name].shape)}")
    with pytest.raises(CheckpointError, match=rf"has other shapes of 1 tensors such as {wide}"):
        check_placement(tiny_models / "captioner", placement(lora_adapter_path=stored))
    save_file(tensors, weights)
    with pytest.raises(ConfigError, match=r"lora_rank: is 8, the adapters in .* have 4: set it to that"):
        check_placement(tiny_models / "captioner", placement(lora_adapter_path=stored, lora_rank=8))
    captioner = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner")
    get_peft_model(captioner, LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"])).save_pretrained(tmp_path / "tower")
    with pytest.raises(ConfigError, match=r"lora_adapter_path: would train \d+ parameters of the vision tower"):
        check_placement(tiny_models / "captioner", placement(lora_adapter_path=tmp_path / "tower"))
    check_placement(tiny_models / "captioner", placement(lora_adapter_path=tmp_path / "tower", frozen_tower=False))

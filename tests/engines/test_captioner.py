# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from verl_uae.checkpoints.assemble import tensors_of
from verl_uae.checkpoints.export import write_trained_captioner
from verl_uae.checkpoints.names import HUGGINGFACE
from verl_uae.engines.captioner import freeze_vision_tower


def test_is_registered_for_the_cpu(facts: dict[str, Any]) -> None:
    assert facts["engine class"] == "CaptionerEngine" and facts["device"] == "cpu"


def test_verl_has_no_engine_for_the_cpu_and_knows_two_model_types(facts: dict[str, Any]) -> None:
    """Once these fail, the registration for "cpu" or the relabelling of the model type is no longer needed."""
    assert facts["stock engine on cpu"] != ""
    assert "Unsupported model type: uae_captioner" in facts["stock model type"]


def test_verls_forward_only_engine_still_needs_pinned_memory(facts: dict[str, Any]) -> None:
    """Once this fails, CaptionerEngine._build_fsdp_module is no longer needed."""
    assert "accelerator" in facts["stock forward only"].lower(), facts["stock forward only"]


def test_our_forward_only_engine_runs_on_the_cpu(facts: dict[str, Any]) -> None:
    assert facts["our forward only"] == "" and facts["still forward only"] is True


def test_verls_engine_still_ignores_freeze_vision_tower() -> None:
    """Once this fails, verl obeys its own field and CaptionerEngine.freeze_vision_tower can go."""
    import verl.workers
    from verl.workers.config import ActorConfig

    assert "freeze_vision_tower" in inspect.signature(ActorConfig).parameters
    folder = Path(inspect.getfile(verl.workers)).parent
    sources = [*(folder / "engine" / "fsdp").rglob("*.py"), folder / "engine_workers.py"]
    assert len(sources) > 2
    assert not [path for path in sources if "freeze_vision_tower" in path.read_text(encoding="utf-8")]


def test_the_frozen_tower_does_not_move(facts: dict[str, Any]) -> None:
    freeze = facts["freeze"]
    assert freeze["visual_requires_grad"] and not any(freeze["visual_requires_grad"])
    assert freeze["language_requires_grad"] and all(freeze["language_requires_grad"])
    assert freeze["visual_moved"] == 0 and freeze["language_moved"] > 10


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_an_update_in_which_no_token_trains_is_left_out_and_counted(captioner: dict[str, Any], ranks: str) -> None:
    """Momentum and weight decay would move the weights, and a mean over no token is no number."""
    facts = captioner[ranks]
    assert facts["first"]["moved"] and facts["first"]["metrics"]["updates_left_out"] == [0.0]
    assert not facts["none"]["moved"]
    left_out = facts["none"]["metrics"]
    assert left_out["updates_left_out"] == [1.0] and left_out["mfu"] == [0.0]
    assert not {"loss", "grad_norm", "kl_loss", "actor/pg_loss", "actor/entropy_loss"} & set(left_out)
    assert left_out["lr"] == facts["first"]["metrics"]["lr"], "the schedule is over steps and goes on"
    numbers = [
        value
        for fact in facts.values()
        if isinstance(fact, dict) and "metrics" in fact
        for values in fact["metrics"].values()
        for value in values
    ]
    assert all(map(math.isfinite, numbers))


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_only_the_update_without_tokens_is_left_out_of_a_step(captioner: dict[str, Any], ranks: str) -> None:
    fact = captioner[ranks]["one of two"]
    assert fact["moved"] and fact["metrics"]["updates_left_out"] == [1.0]
    assert [len(fact["metrics"][name]) for name in ("loss", "grad_norm", "actor/pg_loss")] == [1, 1, 1]


@pytest.mark.parametrize("step", ["first", "half"])
def test_a_rank_or_micro_batch_without_tokens_leaves_the_mean_over_all_tokens(
    captioner: dict[str, Any], step: str
) -> None:
    """In "half", one rank of two and two micro-batches of four have no token."""
    one, two = (captioner[ranks][step]["metrics"] for ranks in ("one", "two"))
    for name in ("loss", "grad_norm", "actor/pg_loss", "actor/entropy_loss", "kl_loss"):
        assert two[name] == pytest.approx(one[name], rel=2e-4), name
        assert abs(one[name][0]) > 1e-3


def test_freezing_counts_parameters_and_refuses_a_model_without_tower(tiny_models: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner")
    expected = sum(parameter.numel() for parameter in model.model.visual.parameters())
    assert freeze_vision_tower(model) == expected > 0
    assert {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad} == {"visual"}
    other = nn.ModuleDict({"vision_tower": nn.Linear(2, 3), "language": nn.Linear(1, 1)})
    assert freeze_vision_tower(other) == 9 and other["language"].weight.requires_grad
    with pytest.raises(ValueError, match="freeze_vision_tower is true but Linear has no vision tower"):
        freeze_vision_tower(nn.Linear(1, 1))


# ---------------------------------------------------------------- adapters


PRECISIONS = pytest.mark.parametrize("case", ["lora", "lora beside bf16"])
RANKS = pytest.mark.parametrize("ranks", ["one", "two"])


@RANKS
@PRECISIONS
def test_adapters_are_what_trains_and_none_is_in_the_frozen_tower(
    captioner: dict[str, Any], ranks: str, case: str
) -> None:
    facts = captioner[ranks][case]
    assert facts["trainable"] and all(".lora_" in name for name in facts["trainable"])
    assert not [name for name in facts["trainable"] if ".visual." in name]
    assert set(facts["moved"]) == set(facts["trainable"])
    layers = {name.rpartition(".layers.")[2].split(".")[2] for name in facts["trainable"]}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@RANKS
@PRECISIONS
def test_a_run_with_adapters_resumes_bit_for_bit(captioner: dict[str, Any], ranks: str, case: str) -> None:
    """Weights, adapters and what the optimiser holds, after one more update of the run and of another from its step."""
    assert captioner[ranks][case]["resumed"] is True
    assert captioner[ranks][case]["sending leaves the weights"] is True


@PRECISIONS
def test_adapters_start_from_their_names_on_any_number_of_ranks(captioner: dict[str, Any], case: str) -> None:
    """A is uniform in +-1 / sqrt(I), as peft draws it, and B is 0."""
    one, two = (captioner[ranks][case] for ranks in ("one", "two"))
    assert one["starts alike"] is two["starts alike"] is True and one["start"] == two["start"]
    firsts = {name: (most, total) for name, (most, total) in one["start"].items() if ".lora_A." in name}
    assert all(0.9 < most <= 1.0 for most, _ in firsts.values())
    assert len({total for _, total in firsts.values()}) == len(firsts) > 7
    assert all(most == 0 for name, (most, _) in one["start"].items() if ".lora_B." in name)


@RANKS
def test_adapters_are_held_in_fp32_beside_weights_of_any_precision(captioner: dict[str, Any], ranks: str) -> None:
    found = {case: captioner[ranks][case]["precisions"] for case in ("lora", "lora beside bf16")}
    assert found["lora"] == {"trained": ["torch.float32"], "frozen": ["torch.float32"]}
    assert found["lora beside bf16"] == {"trained": ["torch.float32"], "frozen": ["torch.bfloat16"]}


@RANKS
def test_adapters_that_are_not_multiplied_in_are_sent_as_they_are_held(captioner: dict[str, Any], ranks: str) -> None:
    facts = captioner[ranks]["lora beside bf16"]
    assert facts["sent alone"] is True and facts["sent with"] == [4, 12]


@RANKS
def test_conditioners_are_sent_merged_weights_whatever_caption_servers_are_sent(
    captioner: dict[str, Any], ranks: str
) -> None:
    assert captioner[ranks]["plain weights"] is True
    facts = captioner[ranks]["lora beside bf16"]
    assert facts["merged"] == [] and facts["merging leaves the weights"] is True


def test_verl_still_gives_adapters_the_precision_of_the_weights() -> None:
    """Once this fails, `hold_in_fp32` may be verl's own business."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    assert "param.data.to(base_dtype)" in inspect.getsource(FSDPEngineWithLMHead._build_lora_module)


@RANKS
def test_an_export_of_bf16_weights_is_what_the_caption_server_was_sent(
    captioner: dict[str, Any], tmp_path: Path, ranks: str
) -> None:
    root = captioner["folder"].with_name(ranks) / "bf16"
    write_trained_captioner(root / "actor", tmp_path / "out", base=None, alpha=None)
    served = {plain(name): tensor for name, tensor in load_file(root / "served.safetensors").items()}
    found = {plain(name): tensor for name, tensor in tensors_of(tmp_path / "out").items()}
    assert found.keys() == served.keys() and {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    # A product may fall to either side of a bf16 number.
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), served[name].float(), rtol=2**-7, atol=1e-6)


@RANKS
@pytest.mark.parametrize("saved", ["shards", "hf_model"])
def test_what_is_exported_is_what_the_caption_server_was_sent(
    captioner: dict[str, Any], tiny_models: Path, tmp_path: Path, ranks: str, saved: str
) -> None:
    """What peft multiplies in against the export of the step, which does it by itself; the base is far from both."""
    root = captioner["folder"].with_name(ranks)
    shutil.copytree(root / "actor", tmp_path / "actor")
    if saved == "shards":
        (tmp_path / "actor" / HUGGINGFACE / "model.safetensors").unlink()
    write_trained_captioner(tmp_path / "actor", tmp_path / "out", base=None, alpha=None)
    served = {plain(name): tensor for name, tensor in load_file(root / "served.safetensors").items()}
    found, base = ({plain(name): tensor for name, tensor in tensors_of(folder).items()}
                   for folder in (tmp_path / "out", tiny_models / "captioner"))  # fmt: skip
    assert found.keys() == served.keys() == base.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, served[name], rtol=1e-5, atol=1e-7)
        adapted = name.endswith("_proj.weight") and ".visual." not in f".{name}"
        assert torch.equal(tensor, base[name]) is not adapted, name
    moved = max(float((found[name] - base[name]).abs().max()) for name in found)
    assert moved > 1e-2, "verl's learning rate of the probe"


def plain(name: str) -> str:
    """Names of transformers' module and of its files, as one."""
    for part in ("model.language_model.", "language_model.", "model."):
        name = name.removeprefix(part)
    return name


def test_adapters_to_go_on_with_must_be_whole_and_outside_the_tower(captioner: dict[str, Any]) -> None:
    found = captioner["one"]["lora"]["adapters"]
    assert found["whole"] == ""
    assert re.search(r"adapter_model\.safetensors: .*lacks 1 tensors such as base_model.*lora_A", found["cut"])
    assert re.search(r"lora_adapter_path: would train 2 parameters of the vision tower, .*lora_A", found["tower"])

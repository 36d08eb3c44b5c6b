# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captioners of steps as verl writes them; tests/engines/test_captioner.py has those of its real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from verl_uae.checkpoints import export
from verl_uae.checkpoints.assemble import check_transformers, tensors_of
from verl_uae.checkpoints.export import write_trained_captioner
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import HUGGINGFACE, LORA_META
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.seeding import normal

RANK, ALPHA = 2, 6
LAYERS = ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.mlp.down_proj")
HALVES = tuple(f"{layer}.lora_{half}.default.weight" for layer in LAYERS for half in "AB")


@pytest.fixture(scope="module")
def base(tiny_models: Path) -> dict[str, Tensor]:
    """Weights of the captioner by the names of transformers' module."""
    state: dict[str, Tensor] = load_model(export._auto_class(), tiny_models / "captioner").state_dict()
    return state


@pytest.fixture(scope="module")
def trained(base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with adapters on two layers, as peft names it all."""
    state = {}
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        state[name.replace(".weight", ".base_layer.weight") if layer in LAYERS else name] = tensor
        if layer in LAYERS:
            state[f"{layer}.lora_A.default.weight"] = 0.3 * normal((RANK, tensor.shape[1]), "A", name)
            state[f"{layer}.lora_B.default.weight"] = 0.3 * normal((tensor.shape[0], RANK), "B", name)
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def actor(root: Path, captioner: Path, shards: dict[str, Tensor] | None, meta: dict[str, Any] | None) -> Path:
    """``actor/`` of a step of one rank, whose transformers folder has no weights yet."""
    folder = root / "actor"
    shutil.copytree(captioner, folder / HUGGINGFACE)
    (folder / HUGGINGFACE / "model.safetensors").unlink()
    if shards is not None:
        torch.save(shards, folder / "model_world_size_1_rank_0.pt")
    if meta is not None:
        (folder / LORA_META).write_text(json.dumps(meta))
    return folder


META = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("saved", ["shards", "folder", "adapters alone", "folder of the base"])
def test_adapters_are_multiplied_out(
    tiny_models: Path, tmp_path: Path, base: dict[str, Tensor], trained: dict[str, Tensor], saved: str
) -> None:
    """W + (alpha / R) B A on the adapted layers, the base's bits elsewhere, under the base's names."""
    captioner = tiny_models / "captioner"
    alone = {f"base_model.model.{name}": trained[f"base_model.model.{name}"] for name in HALVES}
    shards = {"folder": None, "adapters alone": alone}.get(saved, trained)
    folder = actor(tmp_path, captioner, shards, META)
    weights = folder / HUGGINGFACE / "model.safetensors"
    if saved == "folder":
        save_file(trained, weights, {"format": "pt"})
    elif saved == "folder of the base":
        # As verl's merger leaves it: the adapters lie beside the weights as they were.
        shutil.copy(captioner / "model.safetensors", weights)
        (folder / HUGGINGFACE / "lora_adapter").mkdir()
    write_trained_captioner(folder, tmp_path / "out", base=captioner, alpha=None)
    check_transformers(tmp_path / "out")
    found, before = tensors_of(tmp_path / "out"), tensors_of(captioner)
    assert found.keys() == before.keys()
    state = load_model(export._auto_class(), tmp_path / "out").state_dict()
    for name, tensor in base.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if layer.removeprefix("base_model.model.") not in LAYERS:
            assert torch.equal(state[name], tensor), name
            continue
        a_RI, b_OR = (trained[f"{layer}.lora_{half}.default.weight"] for half in "AB")
        wanted = tensor.double() + ALPHA / RANK * b_OR.double() @ a_RI.double()
        torch.testing.assert_close(state[name].double(), wanted, atol=1e-6, rtol=1e-6)
        assert (state[name] - tensor).abs().max() > 0.1
    for file in captioner.iterdir():
        assert (tmp_path / "out" / file.name).is_file(), file.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_without_adapters_keep_their_bits(
    tiny_models: Path, tmp_path: Path, base: dict[str, Tensor], dtype: torch.dtype
) -> None:
    state = {name: (tensor + 0.01).to(dtype) for name, tensor in base.items()}
    folder = actor(tmp_path, tiny_models / "captioner", state, None)
    write_trained_captioner(folder, tmp_path / "out", base=None, alpha=None)
    found = load_model(export._auto_class(), tmp_path / "out", dtype="auto").state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("wrong", ["the base", "twice"])
def test_a_product_that_computes_something_else_is_not_written(
    tiny_models: Path,
    tmp_path: Path,
    trained: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    real = export.merge
    factor = {"the base": 0.0, "twice": 2.0}[wrong]
    monkeypatch.setattr(export, "merge", lambda weights, layers, scale, at: real(weights, layers, factor * scale, at))
    folder = actor(tmp_path, tiny_models / "captioner", trained, META)
    with pytest.raises(CheckpointError, match="computes other logits than with them"):
        write_trained_captioner(folder, tmp_path / "out", base=None, alpha=None)


def test_numbers_that_are_none_are_not_the_same() -> None:
    with pytest.raises(CheckpointError):
        export.check_same(torch.ones(2), torch.tensor([1.0, float("nan")]), Path("actor"))


def test_steps_that_do_not_fit_are_refused(tiny_models: Path, tmp_path: Path, trained: dict[str, Tensor]) -> None:
    captioner = tiny_models / "captioner"
    alone = {name: tensor for name, tensor in trained.items() if ".lora_" in name}
    lacking = {name: tensor for name, tensor in trained.items() if not name.endswith("lm_head.weight")}
    plain = {name.removeprefix("base_model.model."): load for name, load in trained.items()}
    stored = load_file(captioner / "model.safetensors")
    cases: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None, type[Exception], str]] = {
        "no base": (alone, META, CheckpointError, r"holds adapters alone, .*--captioner"),
        "no adapters": (stored, META, CheckpointError, rf"{LORA_META}: says that adapters were trained"),
        "no scale": (plain, None, ConfigError, r"--lora-alpha: needed"),
        "other rank": (trained, {**META, "r": 3}, CheckpointError, "says rank 3, the adapters have 2"),
        "lacking": (lacking, META, CheckpointError, r"it lacks lm_head\.weight$"),
        "half": (
            {k: v for k, v in trained.items() if k != f"base_model.model.{HALVES[0]}"},
            META,
            CheckpointError,
            "half",
        ),
    }
    for case, (shards, meta, kind, message) in cases.items():
        folder = actor(tmp_path / case, captioner, shards, meta)
        with pytest.raises(kind, match=message):
            write_trained_captioner(folder, tmp_path / case / "out", base=None, alpha=None)
    # Where the step does not say the scale, it can be given.
    write_trained_captioner(tmp_path / "no scale" / "actor", tmp_path / "out", base=None, alpha=ALPHA)

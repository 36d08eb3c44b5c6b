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
from verl_uae.checkpoints.export import ExportSettings, export_adapters, write_trained_captioner
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import HUGGINGFACE, LORA_META, POLICY_FOLDER
from verl_uae.checkpoints.step import mark_complete
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.scenes.quickstart import trained_captioner
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


def test_another_scale_than_the_step_says_is_refused_but_where_it_may_be_the_decoders(
    tiny_models: Path, tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    folder = actor(tmp_path, tiny_models / "captioner", trained, META)
    with pytest.raises(ConfigError, match=rf"--lora-alpha: {2 * ALPHA:g} was given, the checkpoint says {ALPHA:g}"):
        write_trained_captioner(folder, tmp_path / "out", base=None, alpha=2 * ALPHA)
    (folder.parent / POLICY_FOLDER).mkdir()
    write_trained_captioner(folder, tmp_path / "out", base=None, alpha=2 * ALPHA)


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


# ---------------------------------------------------------------- adapters alone


def step(root: Path, captioner: Path, shards: dict[str, Tensor], meta: dict[str, Any] | None) -> Path:
    """A complete step whose captioner is `actor`."""
    folder = actor(root / "global_step_2", captioner, shards, meta).parent
    mark_complete(folder, 2)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return export._logits(model, Path(model.config._name_or_path))


@pytest.mark.parametrize("precision", ["fp32", "bf16 weights"])
def test_stock_peft_computes_what_the_trained_captioner_does(
    tiny_models: Path, tmp_path: Path, trained: dict[str, Tensor], precision: str
) -> None:
    """Against the adapted layers computed by hand, and the export that multiplies them in."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    captioner = tiny_models / "captioner"
    if precision != "fp32":
        # As FSDP2 holds them: weights in bf16, adapters in fp32.
        trained = {name: load if ".lora_" in name else load.bfloat16() for name, load in trained.items()}
    folder = step(tmp_path, captioner, trained, META)
    export_adapters(folder, tmp_path / "adapter", ExportSettings(captioner=str(captioner)), "peft")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (RANK, ALPHA, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == str(captioner) and sorted(config["target_modules"]) == sorted(LAYERS)

    def stock() -> Any:
        return AutoModelForImageTextToText.from_pretrained(captioner, dtype=torch.float32).eval()

    reference, before = stock(), logits(stock())
    for layer in LAYERS:
        a_RI, b_OR = (trained[f"base_model.model.{layer}.lora_{half}.default.weight"] for half in "AB")
        reference.get_submodule(layer).register_forward_hook(
            lambda _, inputs, out, a_RI=a_RI, b_OR=b_OR: out + ALPHA / RANK * inputs[0] @ a_RI.T @ b_OR.T
        )
    wanted = logits(reference)
    adapted = PeftModel.from_pretrained(stock(), str(tmp_path / "adapter"))
    adapted.config._name_or_path = str(captioner)
    found = logits(adapted)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.1
    if precision == "fp32":
        write_trained_captioner(folder / "actor", tmp_path / "out", base=None, alpha=None)
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=1e-5)


def test_the_quickstart_measures_the_product(tiny_models: Path, tmp_path: Path, trained: dict[str, Tensor]) -> None:
    """Of a folder that verl wrote with peft's names, which transformers would start at random."""
    folder = step(tmp_path, tiny_models / "captioner", trained, META)
    with pytest.raises(CheckpointError, match="saved no transformers folder"):
        trained_captioner(tmp_path, 2)
    save_file(trained, folder / "actor" / HUGGINGFACE / "model.safetensors", {"format": "pt"})
    for _ in range(2):
        found = tensors_of(trained_captioner(tmp_path, 2))
    write_trained_captioner(folder / "actor", tmp_path / "out", base=None, alpha=None)
    wanted = tensors_of(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_whose_adapters_are_written_is_said_or_found(
    tiny_models: Path, tmp_path: Path, base: dict[str, Tensor], trained: dict[str, Tensor]
) -> None:
    captioner = tiny_models / "captioner"
    folder = step(tmp_path, captioner, trained, META)

    def refused(
        kind: type[Exception], message: str, folder: Path = folder, layout: str = "peft", **settings: Any
    ) -> None:
        with pytest.raises(kind, match=message):
            export_adapters(folder, tmp_path / "out", ExportSettings(**settings), layout)
        assert not (tmp_path / "out").exists()

    refused(ConfigError, r"--lora: diffusers is a layout of decoders", layout="diffusers")
    refused(CheckpointError, rf"has no {POLICY_FOLDER}: its run trained no adapters of the decoder", part="decoder")
    refused(ConfigError, r"--lora-alpha: 5 was given, the checkpoint says 6", lora_alpha=5)
    full = step(tmp_path / "full", captioner, base, None)
    refused(CheckpointError, rf"has no actor/{LORA_META} and no {POLICY_FOLDER}: .* captioner or the decoder", full)
    lost = step(tmp_path / "lost", captioner, base, META)
    refused(CheckpointError, r"says that adapters were trained, but the step holds none", lost)
    (folder / POLICY_FOLDER).mkdir()
    refused(ConfigError, r"--part: needed: captioner and decoder were trained")
    export_adapters(folder, tmp_path / "out", ExportSettings(part="captioner"), "peft")

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.assemble import tensors_of
from verl_uae.checkpoints.export import ExportSettings, export_adapters, export_checkpoint, read_evaluation
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.checkpoints.names import BASE_FILE
from verl_uae.checkpoints.step import mark_complete
from verl_uae.errors import CheckpointError, ConfigError, UAEError


@pytest.fixture
def run(tiny_models: Path, tmp_path: Path) -> Path:
    """Folder of a run on the tiny models, with its configuration and without checkpoints."""
    config = {
        "actor_rollout_ref": {"model": {"path": str(tiny_models / "captioner")}},
        "uae": {
            "stage": "u4g",
            "decoder": {"path": str(tiny_models / "decoder")},
            "conditioner": {"path": "${actor_rollout_ref.model.path}", "length": 20, "role": "generate"},
            "reward": {"terms": [{"name": "pixel", "weight": 0.7}]},
        },
    }
    (tmp_path / "hydra" / ".hydra").mkdir(parents=True)
    (tmp_path / "hydra" / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def step(run: Path, shards: Path, tiny_models: Path) -> Callable[..., Path]:
    """Makes a complete step folder of the shards of a kind, with what the engine exported and a captioner."""

    def make(kind: str | None, *, exported: bool = True, captioner: bool = False) -> Path:
        folder = run / "checkpoints" / "global_step_2"
        if kind:
            shutil.copytree(shards / kind, folder)
            if exported:
                shutil.copytree(shards / f"{kind}_ema", folder / "decoder")
        if captioner:
            trained = folder / "actor" / "huggingface"
            shutil.copytree(tiny_models / "captioner", trained)
            state = load_file(trained / "model.safetensors")
            state["lm_head.weight"] += 1.0
            save_file(state, trained / "model.safetensors", metadata={"format": "pt"})
        mark_complete(folder, 2)
        return folder

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return Decoder.from_pretrained(str(folder)).state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("kind", "exported", "weights", "wanted"),
    [
        ("full", True, None, "full_ema"),
        ("full", False, None, "full_ema"),
        ("full", True, "live", "full_live"),
        ("uneven", True, None, "uneven_ema"),
        ("uneven", False, None, "uneven_ema"),
        ("uneven", False, "live", "uneven_live"),
        ("empty", True, "live", "empty_live"),
        ("replicated", False, "ema", "replicated_ema"),
    ],
)
def test_the_decoder_is_what_was_trained(
    step: Callable[..., Path], shards: Path, kind: str, exported: bool, weights: str | None, wanted: str
) -> None:
    checkpoint = step(kind, exported=exported)
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings(weights=weights))
    assert same(tensors(out), tensors(shards / wanted))
    assert Decoder.from_pretrained(str(out)).family.shift(4, 32, 32) == 3.0
    verify_folder(out)


def test_a_folder_of_stage_u4g_holds_the_frozen_captioner(step: Callable[..., Path], tiny_models: Path) -> None:
    checkpoint = step("full")
    out = checkpoint.parent / "out"
    manifest = export_checkpoint(checkpoint, out, ExportSettings())
    assert same(tensors_of(out / "captioner"), tensors_of(tiny_models / "captioner"))
    assert not (out / "language_model").exists()
    index = json.loads((out / "model_index.json").read_text())
    assert (index["condition_length"], index["condition_role"]) == (20, "generate")
    card = (out / "README.md").read_text()
    assert "stage u4g, 2 steps" in card and "| 0: pixel | weight=0.7 |" in card
    assert "| transformer, vae, scheduler, conditioner | decoder |" in card and str(tiny_models) not in card
    assert not [name for name in manifest["files"] if name.endswith(".pt")]


def test_a_trained_captioner_comes_with_the_language_model_from_before(
    step: Callable[..., Path], tiny_models: Path
) -> None:
    """Stage g4u: the decoder is the one the run started from."""
    checkpoint = step(None, captioner=True)
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings())
    trained, before = tensors_of(out / "captioner"), tensors_of(tiny_models / "captioner")
    assert torch.equal(trained["lm_head.weight"], before["lm_head.weight"] + 1.0)
    assert same(tensors_of(out / "language_model"), before)
    assert same(tensors(out), tensors(tiny_models / "decoder"))


def test_a_captioner_that_the_conditioner_followed_is_the_language_model_too(
    step: Callable[..., Path], run: Path, tiny_models: Path
) -> None:
    checkpoint = step(None, captioner=True)
    path = run / "hydra" / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["uae"]["conditioner"]["weights"] = "synced"
    path.write_text(yaml.safe_dump(config))
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings())
    before = tensors_of(tiny_models / "captioner")
    assert torch.equal(tensors_of(out / "captioner")["lm_head.weight"], before["lm_head.weight"] + 1.0)
    assert not (out / "language_model").exists()
    # Somebody may want to compare.
    other = ExportSettings(language_model=str(tiny_models / "captioner"))
    export_checkpoint(checkpoint, out.with_name("other"), other)
    assert same(tensors_of(out.with_name("other") / "language_model"), before)


def test_a_captioner_of_the_cold_start_is_the_language_model_too(
    step: Callable[..., Path], tiny_models: Path, tmp_path: Path
) -> None:
    folder = step("full")
    shutil.copytree(tiny_models / "captioner", folder / "captioner")
    state = load_file(folder / "captioner" / "model.safetensors")
    state["lm_head.weight"] += 1.0
    save_file(state, folder / "captioner" / "model.safetensors", metadata={"format": "pt"})
    mark_complete(folder, 2)
    export_checkpoint(folder, tmp_path / "model", ExportSettings())
    assert torch.equal(
        load_file(tmp_path / "model" / "captioner" / "model.safetensors")["lm_head.weight"], state["lm_head.weight"]
    )
    assert not (tmp_path / "model" / "language_model").exists()


def test_what_the_configuration_says_can_be_said_instead(step: Callable[..., Path], tiny_models: Path) -> None:
    checkpoint = step("full", captioner=True)
    shutil.rmtree(checkpoint.parents[1] / "hydra")
    out = checkpoint.parent / "out"
    given = ExportSettings(
        weights="live",
        decoder=str(tiny_models / "decoder"),
        language_model=str(tiny_models / "captioner"),
        condition_length=24,
    )
    needed = {"condition_length": "--condition-length", "language_model": "--language-model"}
    for field, key in needed.items():
        with pytest.raises(ConfigError, match=key):
            export_checkpoint(checkpoint, out, replace(given, **{field: None}))
    export_checkpoint(checkpoint, out, given)
    assert json.loads((out / "model_index.json").read_text())["condition_length"] == 24
    assert (out / "language_model").is_dir()


def test_the_decoder_alone_needs_no_captioner(step: Callable[..., Path]) -> None:
    checkpoint = step("full")
    shutil.rmtree(checkpoint.parents[1] / "hydra")
    out = checkpoint.parent / "out"
    with pytest.raises(ConfigError, match="--captioner: needed, or --decoder-only"):
        export_checkpoint(checkpoint, out, ExportSettings(condition_length=20))
    export_checkpoint(checkpoint, out, ExportSettings(condition_length=20, decoder_only=True))
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"transformer", "vae", "scheduler", "conditioner"}


def test_vae_and_scheduler_must_come_from_somewhere(step: Callable[..., Path]) -> None:
    checkpoint = step("full", exported=False)
    shutil.rmtree(checkpoint.parents[1] / "hydra")
    (checkpoint / "decoder_policy" / BASE_FILE).unlink()
    mark_complete(checkpoint, 2)
    with pytest.raises(ConfigError, match="--decoder: needed"):
        export_checkpoint(checkpoint, checkpoint.parent / "out", ExportSettings(condition_length=20))


def test_a_captioner_in_shards_is_put_together(step: Callable[..., Path]) -> None:
    checkpoint = step("full", captioner=True)
    saved = checkpoint / "actor" / "huggingface" / "model.safetensors"
    state = load_file(saved)
    torch.save(state, checkpoint / "actor" / "model_world_size_1_rank_0.pt")
    saved.unlink()
    mark_complete(checkpoint, 2)
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings())
    assert same(tensors_of(out / "captioner"), state)


def test_a_captioner_with_adapters_that_is_not_the_product_publishes_nothing(step: Callable[..., Path]) -> None:
    """verl's merger would give the base here."""
    checkpoint = step("full", captioner=True)
    (checkpoint / "actor" / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4}')
    mark_complete(checkpoint, 2)
    with pytest.raises(CheckpointError, match="actor"):
        export_checkpoint(checkpoint, checkpoint.parent / "out", ExportSettings())
    assert {path.name for path in checkpoint.parent.iterdir()} == {"global_step_2"}


@pytest.mark.parametrize("damage", ["shard", "marker", "export"])
def test_a_damaged_checkpoint_publishes_nothing(step: Callable[..., Path], damage: str) -> None:
    checkpoint = step("full", exported=damage == "export")
    if damage == "marker":
        (checkpoint / "uae_complete.json").unlink()
    elif damage == "shard":
        (checkpoint / "decoder_policy" / "model_world_size_2_rank_1.pt").write_bytes(b"x")
    else:
        (checkpoint / "decoder" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    if damage != "marker":
        mark_complete(checkpoint, 2)
    with pytest.raises(UAEError):
        export_checkpoint(checkpoint, checkpoint.parent / "out", ExportSettings())
    assert {path.name for path in checkpoint.parent.iterdir()} == {"global_step_2"}


def test_an_export_is_never_written_over(step: Callable[..., Path]) -> None:
    checkpoint = step("full")
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings(decoder_only=True))
    before = verify_folder(out)
    with pytest.raises(CheckpointError, match="exists already"):
        export_checkpoint(checkpoint, out, ExportSettings(weights="live"))
    assert verify_folder(out) == before


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_adapters_alone_load_on_the_decoder_of_the_start(
    step: Callable[..., Path], shards: Path, tiny_models: Path, layout: str
) -> None:
    from tests.engines.test_decoder_module import SIGMA, STATES, X

    checkpoint = step("uneven")
    out = checkpoint.parent / "adapter"
    export_adapters(checkpoint, out, ExportSettings(weights="live"), layout)
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"))
    with torch.no_grad():
        base = decoder.velocity(X, SIGMA, STATES)
        if layout == "peft":
            from peft import PeftModel

            decoder.transformer = PeftModel.from_pretrained(decoder.transformer, str(out)).eval()
        else:
            decoder.transformer.load_lora_adapter(out, prefix="transformer", use_safetensors=True)
        adapted = decoder.velocity(X, SIGMA, STATES)
        merged = Decoder.from_pretrained(str(shards / "uneven_live")).velocity(X, SIGMA, STATES)
    torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=0)
    assert (adapted - base).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="--lora: unknown layout 'gguf'"):
        export_adapters(checkpoint, out, ExportSettings(), "gguf")


def test_a_run_that_trained_no_decoder_has_no_adapters_of_it(step: Callable[..., Path]) -> None:
    checkpoint = step(None, captioner=True)
    with pytest.raises(CheckpointError, match=r"global_step_2: has no actor/lora_train_meta\.json and no decoder_pol"):
        export_adapters(checkpoint, checkpoint.parent / "adapter", ExportSettings(), "peft")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "b"}', '{"a": null}', '{"a": NaN}', '{"a": {}}'])
def test_figures_are_finite_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(ConfigError, match="--evaluation"):
        read_evaluation(str(tmp_path / "figures.json"))


def test_figures_reach_the_card(step: Callable[..., Path], tmp_path: Path) -> None:
    assert read_evaluation(None) == {}
    figures: dict[str, Any] = {"reward": 0.25, "n": 128}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    checkpoint = step("full")
    settings = ExportSettings(evaluation=str(tmp_path / "figures.json"), decoder_only=True)
    export_checkpoint(checkpoint, checkpoint.parent / "out", settings)
    card = (checkpoint.parent / "out" / "README.md").read_text()
    assert "| reward | 0.25 |" in card and "| n | 128 |" in card


def test_the_decoder_of_the_start_may_be_gone_where_the_step_has_one(
    step: Callable[..., Path], shards: Path, tiny_models: Path
) -> None:
    """VAE and scheduler are in the step's own decoder folder; what adapters are merged into is not."""
    checkpoint = step("uneven")
    config = checkpoint.parents[1] / "hydra" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_models / "decoder"), "/gone"))
    out = checkpoint.parent / "out"
    export_checkpoint(checkpoint, out, ExportSettings(weights="live"))
    assert same(tensors(out), tensors(shards / "uneven_live"))
    (checkpoint / "decoder_policy" / BASE_FILE).unlink()
    mark_complete(checkpoint, 2)
    with pytest.raises(CheckpointError, match="/gone: there is no such folder"):
        export_checkpoint(checkpoint, checkpoint.parent / "other", ExportSettings(weights="live"))
    given = ExportSettings(weights="live", decoder=str(tiny_models / "decoder"))
    export_checkpoint(checkpoint, checkpoint.parent / "other", given)
    assert same(tensors(checkpoint.parent / "other"), tensors(shards / "uneven_live"))

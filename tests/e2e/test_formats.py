# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From the training command to a model folder that stock libraries load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import PeftModel

from tests.e2e.world import build_world, train
from verl_uae.cli import main
from verl_uae.decoder.decoder import Decoder
from verl_uae.formats.assemble import tensors_of
from verl_uae.formats.manifest import verify_folder
from verl_uae.trainer.checkpoint import mark_complete

LORA = ["uae.policy.lora.rank=4", "uae.policy.lora.alpha=8", "uae.policy.train_projector=false"]
FULL = ["uae.policy.lora.rank=0", "uae.policy.train_projector=true"]
TURNS = ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1", "uae.policy.lora.rank=0"]


def trained(root: Path, config: str, overrides: list[str]) -> tuple[Path, Path]:
    """World, and the checkpoint of its second step."""
    world, out = build_world(root / "world"), root / "out"
    result = train(world, out, [*overrides, "trainer.save_freq=2"], config=config)
    assert result.returncode == 0, result.stdout[-3000:]
    return world, out / "checkpoints" / "global_step_2"


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [LORA, FULL], ids=["lora", "full"])
def test_an_exported_run_of_u4g_loads_in_stock_classes(tmp_path: Path, overrides: list[str]) -> None:
    world, checkpoint = trained(tmp_path, "uae_u4g", overrides)
    started, folders = world / "decoder", {}
    for weights in ("saved", "ema", "live"):
        folders[weights] = tmp_path / weights
        words = [] if weights == "saved" else ["--weights", weights]
        assert main(["export", str(checkpoint), "--out", str(folders[weights]), *words]) == 0
        assert main(["verify", str(folders[weights])]) == 0
    # The shards put together here are what the ranks gathered when they saved.
    states = {weights: Decoder.from_pretrained(str(folder)).state_dict() for weights, folder in folders.items()}
    assert same(states["saved"], states["ema"]) and not same(states["saved"], states["live"])
    transformer = SD3Transformer2DModel.from_pretrained(folders["ema"], subfolder="transformer", use_safetensors=True)
    saved = tensors_of(checkpoint / "decoder" / "transformer")
    assert same(transformer.state_dict(), saved) and not same(saved, tensors_of(started / "transformer"))
    vae = AutoencoderKL.from_pretrained(folders["ema"], subfolder="vae", use_safetensors=True)
    assert same(vae.state_dict(), tensors_of(started / "vae"))
    assert same(tensors_of(folders["ema"] / "encoder"), tensors_of(world / "encoder"))
    assert json.loads((folders["ema"] / "model_index.json").read_text())["condition_length"] == 20
    assert "| uae.stage | u4g |" in (folders["ema"] / "README.md").read_text()
    adapter = ["export", str(checkpoint), "--out", str(tmp_path / "adapter"), "--lora", "peft"]
    if overrides is FULL:
        assert main(adapter) == 2
        return
    assert main(adapter) == 0
    base = SD3Transformer2DModel.from_pretrained(started, subfolder="transformer", use_safetensors=True)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_an_exported_run_of_both_stages_holds_both_language_models(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    world, checkpoint = trained(tmp_path, "uae_unified", TURNS)
    out = tmp_path / "model"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 0
    verify_folder(out)
    trained_state = AutoModelForImageTextToText.from_pretrained(out / "encoder").state_dict()
    wanted = AutoModelForImageTextToText.from_pretrained(checkpoint / "actor" / "huggingface").state_dict()
    assert same(trained_state, wanted)
    assert same(tensors_of(out / "language_model"), tensors_of(world / "encoder"))
    assert not same(tensors_of(out / "encoder"), tensors_of(world / "encoder"))
    # The same captioner from its shards, by verl's own tool.
    shutil.copytree(checkpoint, tmp_path / "shards" / "global_step_2")
    (tmp_path / "shards" / "global_step_2" / "actor" / "huggingface" / "model.safetensors").unlink()
    mark_complete(tmp_path / "shards" / "global_step_2", 2)
    config = checkpoint.parents[1] / "hydra" / ".hydra" / "config.yaml"
    words = ["export", str(tmp_path / "shards" / "global_step_2"), "--run-config", str(config)]
    assert main([*words, "--out", str(tmp_path / "refused")]) == 2 and not (tmp_path / "refused").exists()
    assert main([*words, "--merge-captioner", "--out", str(tmp_path / "merged")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged" / "encoder").state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(merged[name].float(), tensor.float(), atol=0, rtol=2**-8)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From the training command to a model folder that stock libraries load."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import PeftModel
from safetensors.torch import load_file

from tests.e2e.world import build_world, environment, train
from verl_uae import UAEPipeline
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.assemble import tensors_of
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.checkpoints.record import RunConfig
from verl_uae.checkpoints.shards import read_shards
from verl_uae.checkpoints.step import mark_complete
from verl_uae.cli import main
from verl_uae.data.images import decode_image, encode_jpeg, image_digest
from verl_uae.seeding import normal

LORA = ["uae.train.lora.rank=4", "uae.train.lora.alpha=8", "uae.train.train_projector=false"]
FULL = ["uae.train.lora.rank=0", "uae.train.train_projector=true"]
GREEDY = [f"actor_rollout_ref.rollout.val_kwargs.{entry}" for entry in ("do_sample=false", "temperature=0")]
PANEL_ROW = re.compile(r'<td class="caption">(.*?)</td>\s*<td><img [^>]*base64,(.*?)">')
ADAPTERS = [
    "captioner/training=lora",
    *("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16"),
]
TURNS = ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1", "uae.train.lora.rank=0"]


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
    assert same(tensors_of(folders["ema"] / "captioner"), tensors_of(world / "captioner"))
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

    def loaded(folder: Path) -> dict[str, torch.Tensor]:
        """As it is stored: verl writes bfloat16 into the configuration of every captioner, whatever its weights are."""
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()

    trained_state, wanted = loaded(out / "captioner"), loaded(checkpoint / "actor" / "huggingface")
    assert same(trained_state, wanted)
    assert same(tensors_of(out / "language_model"), tensors_of(world / "captioner"))
    assert not same(tensors_of(out / "captioner"), tensors_of(world / "captioner"))
    # The same captioner from its shards, without the folder that verl wrote.
    shutil.copytree(checkpoint, tmp_path / "shards" / "global_step_2")
    (tmp_path / "shards" / "global_step_2" / "actor" / "huggingface" / "model.safetensors").unlink()
    mark_complete(tmp_path / "shards" / "global_step_2", 2)
    config = checkpoint.parents[1] / "hydra" / ".hydra" / "config.yaml"
    words = ["export", str(tmp_path / "shards" / "global_step_2"), "--run-config", str(config)]
    assert main([*words, "--out", str(tmp_path / "merged")]) == 0
    assert same(loaded(tmp_path / "merged" / "captioner"), wanted)


@pytest.mark.slow
def test_the_printed_commands_give_what_validation_showed(tmp_path: Path) -> None:
    """Greedy captions are those of the caption server; from the same noise the pictures are those of the panel."""
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    validation = ["trainer.test_freq=2", "uae.panel.probes=8", f"trainer.validation_data_dir={out}/validation"]
    result = train(world, out, [*GREEDY, *validation, "trainer.save_freq=2"])
    assert result.returncode == 0, result.stdout[-3000:]
    *_, end = result.stdout.partition("verl_uae: stage g4u done: 2 of 2 steps")
    commands = [shlex.split(line.removeprefix("  use it")) for line in end.splitlines() if "verl-uae " in line]
    assert [command[1] for command in commands] == ["export", "sample"] and "verl_uae: stage" not in end
    for command in commands:
        done = subprocess.run(command, cwd=out, env=environment(out), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]

    lines = (out / "validation" / "2.jsonl").read_text(encoding="utf-8").splitlines()
    shown = {row["gts"]: row["output"] for row in map(json.loads, lines)}
    rows = {row["reward_model"]["ground_truth"]: row for row in pq.read_table(world / "data/val.parquet").to_pylist()}
    assert [record["caption"] for record in records] == [shown[scene] for scene in list(rows)[: len(records)]]
    assert len(set(shown.values())) > 1

    pipe = UAEPipeline.from_pretrained(commands[0][-1])
    images = [decode_image(rows[scene]["images"][0]["bytes"]) for scene in shown]
    assert pipe.caption(images) == list(shown.values())
    seed = RunConfig.of(out / "checkpoints" / "global_step_2").get("uae.seed")
    shape = pipe.decoder.latent_shape(*pipe.picture_size)
    noise = torch.stack([normal(shape, seed, "decoder noise", 2, image_digest(image), 0) for image in images])
    drawn = pipe.generate(list(shown.values()), latents=noise, output_type="pt").images
    expected = sorted((caption, encode_jpeg(image)) for caption, image in zip(shown.values(), drawn, strict=True))
    panel = (out / "checkpoints" / "panels" / "step_000002.html").read_text(encoding="utf-8")
    found = [(html.unescape(caption), base64.b64decode(jpeg)) for caption, jpeg in PANEL_ROW.findall(panel)]
    assert sorted(found) == expected


@pytest.mark.slow
def test_an_exported_captioner_with_adapters_is_their_product_with_the_base(tmp_path: Path) -> None:
    """From the folder that verl wrote, whose names are peft's, and from shards alone; the frozen tower has none."""
    from transformers import AutoModelForImageTextToText

    world, checkpoint = trained(tmp_path, "uae_g4u", ADAPTERS)
    state = read_shards(checkpoint / "actor")
    layers = {name.partition(".lora_A.")[0] for name in state if ".lora_A." in name}
    assert layers and not [name for name in layers if ".visual." in name]
    assert any(float(state[f"{layer}.lora_B.default.weight"].abs().max()) > 0 for layer in layers)
    shards = tmp_path / "shards" / "global_step_2"
    shutil.copytree(checkpoint, shards)
    (shards / "actor" / "huggingface" / "model.safetensors").unlink()
    mark_complete(shards, 2)
    base = load_model(AutoModelForImageTextToText, world / "captioner").state_dict()
    for number, words in enumerate(([str(checkpoint)], [str(shards)])):
        out = tmp_path / f"model{number}"
        assert main(["export", *words, "--out", str(out)]) == 0
        verify_folder(out)
        found = load_model(AutoModelForImageTextToText, out / "captioner").state_dict()
        for name, tensor in base.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            wanted = tensor.double()
            if layer in layers:
                a_RI, b_OR = (state[f"{layer}.lora_{half}.default.weight"].double() for half in "AB")
                wanted = wanted + 16 / 8 * b_OR @ a_RI
            torch.testing.assert_close(found[name].double(), wanted, atol=1e-7, rtol=1e-6)
        assert not same(found, base)
        assert same(tensors_of(out / "language_model"), tensors_of(world / "captioner"))
    # The adapters alone, which a run can go on with.
    adapter = ["export", str(checkpoint), "--lora", "peft", "--out", str(tmp_path / "adapter")]
    assert main(adapter) == 0
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {f"{name.removesuffix('.weight')}.default.weight" for name in halves} == {k for k in state if ".lora_" in k}
    # What verl wrote is no model as it is.
    rows = ["--rows", str(world / "data" / "val.parquet"), "--first", "1", "--caption-only"]
    assert main(["sample", str(out), "--captioner", str(checkpoint / "actor" / "huggingface"), *rows]) == 2
    assert main(["sample", str(out), *rows]) == 0

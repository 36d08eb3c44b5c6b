# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The user's commands on tiny models of every family that needs no projector: both RL stages, export, stock classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.world import build_world, metrics, train
from tests.families import tiny
from verl_uae import UAEPipeline
from verl_uae.checkpoints.load import load_model
from verl_uae.cli import main

NAMES = sorted(set(tiny.BUILDERS) - {"sd3"})
LORA = ["uae.train.lora.rank=4", "uae.train.lora.alpha=8", "uae.train.train_projector=false"]


#: Those whose language model is that of a captioner.
SHARED = ("flux3", "krea2", "qwen_image", "qwen_image21")


def overrides(folder: Path) -> list[str]:
    """Of a run whose decoder is of that family, and whose captioner is that of the scenes."""
    language = next(path for path in (folder / "captioner", folder / "language_model") if path.is_dir())
    return [
        f"uae.decoder.path={folder}/decoder",
        f"uae.conditioner.path={language}",
        "uae.conditioner.length=640",
        "uae.decoder.height=64",
        "uae.decoder.width=64",
        "uae.decoder.num_steps=3",
        "uae.decoder.negative_prompt=''",
        "uae.decoder.guidance=2.0",
        "trainer.save_freq=2",
        *LORA,
    ]


#: Captions hardly move the pictures of random weights.
RL = ["uae.u4g.guidance=2.0", "uae.reward.min_std=0", "uae.u4g.advantage.min_std=0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_stages_train_and_what_they_save_is_exported_and_drawn_with(name: str, tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    tiny.build(name).save(world / name)
    for stage in ("g4u", "u4g"):
        out = tmp_path / stage
        result = train(world, out, [*overrides(world / name), *RL], config=f"uae_{stage}")
        assert result.returncode == 0, result.stdout[-3000:]
        last = metrics(out)[2]
        assert last["reward/invalid_frac"] == 0.0 and last["reward/score/std"] > 0
        assert last["actor/grad_norm" if stage == "g4u" else "train/grad_norm"] > 0
    assert last["train/ratio/max"] == pytest.approx(1.0, abs=0.5)
    step = tmp_path / "u4g" / "checkpoints" / "global_step_2"
    assert main(["export", str(step), "--out", str(tmp_path / "model")]) == 0
    pipe = UAEPipeline.from_pretrained(tmp_path / "model")
    assert torch.isfinite(pipe("red", height=64, width=64, num_inference_steps=2, output_type="pt").images).all()
    # In its stock class, and with weights that training has moved.
    kind, moved = type(pipe.transformer), pipe.transformer.state_dict()
    stock = kind.from_pretrained(tmp_path / "model", subfolder="transformer").state_dict()
    before = load_model(kind, world / name / "decoder", subfolder="transformer").state_dict()
    assert all(torch.equal(tensor, moved[part]) for part, tensor in stock.items())
    assert any(not torch.equal(tensor, before[part]) for part, tensor in stock.items())
    assert main(["export", str(step), "--lora", "diffusers", "--out", str(tmp_path / "lora")]) == 0
    fresh = load_model(kind, world / name / "decoder", subfolder="transformer")
    fresh.load_lora_adapter(tmp_path / "lora", prefix="transformer", use_safetensors=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_cold_start_trains_the_decoder_and_the_captioner_that_it_reads(name: str, tmp_path: Path) -> None:
    """A captioner that the decoder does not read stays as it is."""
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    tiny.build(name).save(world / name)
    shared = name in SHARED
    own = ["uae.cold_start.num_steps=2", "uae.cold_start.guidance=1.0", "uae.cold_start.states=text_only"]
    captioner = (
        f"actor_rollout_ref.model.path={world}/{name}/captioner" if shared else "uae.cold_start.captioner.train=false"
    )
    result = train(world, out, [*overrides(world / name), *own, captioner], config="uae_cold_start")
    assert result.returncode == 0, result.stdout[-3000:]
    for record in metrics(out).values():
        assert record["train/grad_norm"] > 0 and -1 <= record["train/cosine/mean"] <= 1
        assert ("train/captioner_grad_norm" in record) == shared

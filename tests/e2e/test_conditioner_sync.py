# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The conditioner that follows the captioner, through the user's command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.world import build_world, metrics, train
from verl_uae import UAEPipeline
from verl_uae.chain.conditioner import Conditioner
from verl_uae.checkpoints.export import ExportSettings, export_checkpoint
from verl_uae.scenes import tiny_flux3
from verl_uae.scenes.codec import build_codec
from verl_uae.scenes.joint_training import save_captioner
from verl_uae.scenes.tokenizer import build_processor

SYNCED = "uae.conditioner.weights=synced"
#: So large that one update moves the states; every step is saved.
MOVING = ["actor_rollout_ref.actor.optim.lr=1e-3", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=null"]
#: What depends on the condition, and what on everything before.
REWARD = ("reward/score/mean", "reward/score/std", "reward/pixel/mean", "actor/grad_norm", "response_length/mean")


def of(record: dict[str, Any], names: tuple[str, ...] = REWARD) -> dict[str, str]:
    return {name: float(record[name]).hex() for name in names}


def run(world: Path, out: Path, overrides: list[str], config: str = "uae_g4u") -> dict[int, dict[str, Any]]:
    result = train(world, out, overrides, config=config)
    assert result.returncode == 0, result.stdout[-4000:]
    return metrics(out)


def replay(world: Path, out: Path, source: Path, choice: list[str], config: str = "uae_g4u") -> dict[str, Any]:
    """The step behind a step folder once more, with a frozen conditioner of the captioner that lies in it."""
    captioner = out / "captioner"
    export_checkpoint(source, out / "model", ExportSettings())
    shutil.copytree(out / "model" / "captioner", captioner)
    resumed = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={source}"]
    frozen = ["uae.conditioner.weights=frozen", f"uae.conditioner.path={captioner}", "trainer.save_freq=-1"]
    return run(world, out, [*choice, *resumed, *frozen], config)[int(source.name.rpartition("_")[2]) + 1]


def test_rewards_are_drawn_with_the_captioner_that_wrote_and_the_export_draws_so_too(tmp_path: Path) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "run"
    synced = run(world, out, [*MOVING, SYNCED])
    assert [synced[step]["conditioner/syncs"] for step in (1, 2)] == [0.0, 1.0]
    assert synced[1]["conditioner/state_drift"] == 0.0 < 0.01 < synced[2]["conditioner/state_drift"]
    assert synced[2]["timing_s/sync_conditioner"] > 0
    step = out / "checkpoints" / "global_step_1"
    # Resumed, the conditioner's language model comes out of a file.
    again = replay(world, tmp_path / "again", step, MOVING)
    assert of(again) == of(synced[2]) and "conditioner/syncs" not in again
    models = {"synced": tmp_path / "again" / "model", "frozen": tmp_path / "frozen"}
    export_checkpoint(step, models["frozen"], ExportSettings(language_model=str(world / "captioner")))
    assert (models["synced"] / "captioner").is_dir() and not (models["synced"] / "language_model").exists()
    pipes = {name: UAEPipeline.from_pretrained(folder) for name, folder in models.items()}
    states = {name: pipe.encode_prompt(["a red circle"])[0].states for name, pipe in pipes.items()}
    for name, folder in (("synced", models["synced"] / "captioner"), ("frozen", world / "captioner")):
        own = Conditioner.from_pretrained(str(folder), pipes[name].family)
        assert torch.equal(states[name], own.encode(["a red circle"]).states)
    pipes["synced"].save_pretrained(tmp_path / "saved")
    pipes["again"] = UAEPipeline.from_pretrained(tmp_path / "saved")
    drawn = {name: picture(pipe) for name, pipe in pipes.items()}
    assert torch.equal(drawn["synced"], drawn["again"]) and not torch.equal(drawn["synced"], drawn["frozen"])


def picture(pipe: UAEPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=2, generator=generator, output_type="pt").images


ADAPTERS = [
    "captioner/training=lora",
    # With which the caption server of a GPU would be sent adapters alone.
    "actor_rollout_ref.model.lora.merge=true",
]
OWN = ["uae.decoder.pool=own", "uae.decoder.schedule=streamed", "uae.decoder.max_wait_ms=10"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [["trainer.n_gpus_per_node=2"], OWN, ["uae.decoder.offload=true"], ADAPTERS],
    ids=["two ranks", "streamed", "offloaded", "adapters"],
)
def test_wherever_decoders_and_weights_are(tmp_path: Path, choice: list[str]) -> None:
    world, out, choice = build_world(tmp_path / "world"), tmp_path / "run", [*MOVING, *choice]
    synced = run(world, out, [*choice, SYNCED])
    assert synced[2]["conditioner/state_drift"] > 0.001
    again = replay(world, tmp_path / "again", out / "checkpoints" / "global_step_1", choice)
    for name in REWARD:
        # Streamed, neighbours depend on arrival; adapters are multiplied in by peft here and by the export there.
        exact = not {*OWN, *ADAPTERS} & set(choice)
        assert again[name] == pytest.approx(synced[2][name], rel=0 if exact else 1e-4, abs=0), name


@pytest.mark.slow
def test_both_models_learn_on_the_newest_conditions(tmp_path: Path) -> None:
    """Steps 1 and 3 are the captioner's, step 2 is the decoder's."""
    world, out = build_world(tmp_path / "world"), tmp_path / "run"
    turns = ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1", "trainer.total_training_steps=3", *MOVING]
    synced = run(world, out, [*turns, SYNCED], "uae_unified")
    assert [synced[step]["conditioner/syncs"] for step in (1, 2, 3)] == [0.0, 1.0, 1.0]
    assert synced[2]["conditioner/state_drift"] == synced[3]["conditioner/state_drift"] > 0.01
    policy = ("reward/score/mean", "reward/score/std", "train/grad_norm", "train/loss")
    again = replay(world, tmp_path / "again", out / "checkpoints" / "global_step_1", turns, "uae_unified")
    assert of(again, policy) == of(synced[2], policy)
    assert synced[2]["train/first/ratio/max"] == 1.0


def flux3_world(root: Path) -> Path:
    """The tests' world with the pair whose captioner is the published text encoder: Qwen3-VL and FLUX 3."""
    world = build_world(root)
    shutil.rmtree(world / "captioner")
    shutil.rmtree(world / "decoder")
    processor = build_processor("qwen3_vl")
    save_captioner(tiny_flux3.build_captioner(0, processor.tokenizer), processor, world / "captioner")
    decoder = tiny_flux3.build_decoder(0, build_codec(0, fit_scenes=200))
    weight, generator = decoder.transformer.proj_out.weight, torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    decoder.save_pretrained(str(world / "decoder"))
    return world


@pytest.mark.slow
def test_states_of_several_layers_follow_too(tmp_path: Path) -> None:
    world, out = flux3_world(tmp_path / "world"), tmp_path / "run"
    choice = [*MOVING, "uae.reward.min_std=0"]
    synced = run(world, out, [*choice, SYNCED])
    assert synced[2]["conditioner/state_drift"] > 0.001
    again = replay(world, tmp_path / "again", out / "checkpoints" / "global_step_1", choice)
    assert of(again) == of(synced[2])

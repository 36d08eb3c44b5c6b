# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.e2e.world import build_world, metrics, train
from verl_uae.chain.decoder import Decoder

SAVED = ["trainer.test_freq=2", "trainer.save_freq=2"]


def test_two_steps_train_the_decoder_and_nothing_else(tmp_path: Path) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    files = [f"trainer.rollout_data_dir={out}/rollouts", f"trainer.validation_data_dir={out}/validation"]
    decided = ["uae.train.gradient_checkpointing=null", "uae.supervision.peak_tflops=0.1"]
    result = train(world, out, SAVED + files + decided, config="uae_u4g")
    assert result.returncode == 0, result.stdout[-3000:]
    assert "uae.train.gradient_checkpointing=false: on a CPU activations are kept" in result.stdout
    logged = metrics(out)
    # The command counts for some seconds.
    used = {name: value for name, value in logged[2].items() if name.startswith("perf/mfu/")}
    assert used.keys() == {"perf/mfu/draw", "perf/mfu/update_policy"} and all(0 < value < 1 for value in used.values())
    assert not any(name.startswith("perf/device_memory_gib") for name in logged[2])
    assert sorted(logged) == [1, 2]
    for record in logged.values():
        # On policy: sampling and training use the same weights, module and micro-batches.
        assert record["train/first/ratio/min"] == record["train/first/ratio/max"] == 1.0
        assert record["train/grad_norm"] > 0
        assert record["train/ratio/max"] != 1.0
        assert record["reward/invalid_frac"] == 0
    assert any(name.startswith("val-core/") for name in logged[2])
    panel = (out / "checkpoints" / "panels" / "step_000002.html").read_text()
    assert "eval sampler" in panel and "train sampler" in panel
    # 4 images x 4 samples a step; 8 validation rows.
    lines = {name: (out / name / "2.jsonl").read_text().splitlines() for name in ("rollouts", "validation")}
    assert {name: len(found) for name, found in lines.items()} == {"rollouts": 16, "validation": 8}
    assert json.loads(lines["rollouts"][0])["score"] is not None
    before = Decoder.from_pretrained(str(world / "decoder")).state_dict()
    after = Decoder.from_pretrained(str(out / "checkpoints" / "global_step_2" / "decoder")).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("transformer"))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("vae"))


@pytest.mark.slow
def test_ranks_micro_batches_a_replica_steps_together_and_a_shared_prefix_do_not_change_the_run(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    micro = ["uae.train.micro_batch_size=4"]
    ranks = [*micro, "trainer.n_gpus_per_node=2"]
    runs = {"one": [], "micro": micro, "ranks": ranks, "replica": [*ranks, "uae.u4g.sampler=replica"]}
    runs["together"] = [*ranks, "uae.u4g.replay_steps=null"]
    runs["alike"] = [*micro, "uae.u4g.share_noise=true"]
    runs["prefix"] = [*runs["alike"], "uae.u4g.shared_prefix=true", "trainer.n_gpus_per_node=2"]
    logged = {}
    for name, overrides in runs.items():
        result = train(world, tmp_path / name, overrides, config="uae_u4g")
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(tmp_path / name)
    for record in (*logged["replica"].values(), *logged["together"].values()):
        assert record["train/sampler_log_prob_difference/max"] <= 1e-6
        assert record["train/first/ratio/min"] == record["train/first/ratio/max"] == 1.0
    for record in logged["prefix"].values():
        assert record["train/first/ratio/min"] == record["train/first/ratio/max"] == 1.0
    pairs = [("one", name) for name in ("micro", "ranks", "replica", "together")] + [("alike", "prefix")]
    for base, name in pairs:
        for step, record in logged[base].items():
            for key in ("train/loss", "reward/score/mean", "train/grad_norm"):
                assert logged[name][step][key] == pytest.approx(record[key], abs=1e-6), (name, step, key)


POOLS = {
    "previews": ["uae.u4g.pool.size=8", "uae.u4g.pool.steps=2", "uae.u4g.pool.keep_captions=2", "uae.u4g.ties=skip"],
    # No group is a signal under this floor, so every step draws as many batches as it may.
    "refill": ["uae.u4g.ties=refill", "uae.u4g.advantage.min_std=9", "uae.u4g.reference_kl.coef=0.1"],
    "drawn once": ["uae.u4g.pool.size=6", "uae.u4g.pool.choose=diverse", "uae.u4g.pool.keep_captions=2"],
}


@pytest.mark.slow
def test_the_chosen_of_a_pool_train(tmp_path: Path) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    rollouts = [f"trainer.rollout_data_dir={out}/rollouts"]
    micro = ["uae.train.micro_batch_size=4"]
    result = train(world, out, [*SAVED, *POOLS["previews"], *rollouts, *micro], config="uae_u4g")
    assert result.returncode == 0, result.stdout[-3000:]
    logged = metrics(out)
    for record in logged.values():
        # 4 captions of 8 previews by 2 of 10 steps; 2 captions of 4 pictures.
        assert record["train/drawn_pictures"] == 40 and record["train/full_drawings"] == pytest.approx(8 + 32 * 2 / 10)
        assert record["train/first/ratio/min"] == record["train/first/ratio/max"] == 1.0
        assert record["train/grad_norm"] > 0 and record["reward/groups"] == 2
        assert record["pool/captions_left_out"] == 2 and -1 <= record["pool/rank_agreement"] <= 1
        assert record["pool/chosen_group_std"] > record["pool/group_std"] > 0
        assert record["train/skipped_groups"] == 0
    rows = [json.loads(line) for line in (out / "rollouts" / "2.jsonl").read_text().splitlines()]
    members = [[row["member"] for row in rows[first : first + 4]] for first in (0, 4)]
    assert all(some == sorted(set(some)) and max(some) < 8 for some in members)


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_ranks_do_not_change_what_is_chosen(tmp_path: Path, name: str) -> None:
    world = build_world(tmp_path / "world")
    files = lambda run: f"trainer.rollout_data_dir={tmp_path}/{run}/rollouts"  # noqa: E731
    words = [*POOLS[name], "uae.train.micro_batch_size=2"]
    logged, chosen = {}, {}
    for run, ranks in (("one", []), ("two", ["trainer.n_gpus_per_node=2"])):
        result = train(world, tmp_path / run, [*words, *ranks, files(run)], config="uae_u4g")
        assert result.returncode == 0, result.stdout[-3000:]
        logged[run] = metrics(tmp_path / run)
        lines = [(tmp_path / run / "rollouts" / f"{step}.jsonl").read_text().splitlines() for step in (1, 2)]
        chosen[run] = [[(row["digest"], row["member"]) for row in map(json.loads, step)] for step in lines]
    assert chosen["one"] == chosen["two"]
    for step, record in logged["one"].items():
        if name == "refill":
            assert record["train/updates_left_out"] == 2 and record["train/skipped_groups"] == 4
            assert record["pool/refill_batches"] == 1 and record["train/drawn_pictures"] == 32
        else:
            assert record["train/grad_norm"] > 0 and record["train/first/ratio/max"] == 1.0
        for key in ("reward/score/mean", "pool/score/mean", "train/drawn_pictures", "train/loss", "train/grad_norm"):
            assert logged["two"][step].get(key) == pytest.approx(record.get(key), abs=1e-6), (step, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["flow_grpo", "flow_grpo_fast", "mix_grpo", "grpo_guard", "nft", "awm", "dgpo", "crd"]
)
def test_every_preset_trains(tmp_path: Path, preset: str) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    sizes = [
        "uae.u4g.num_steps=6",
        "uae.u4g.window.size=2",
        "uae.u4g.window.high=null",
        "uae.u4g.objective.num_sigmas=2",
    ]
    result = train(world, out, [f"decoder/objective={preset}", *sizes], config="uae_u4g")
    assert result.returncode == 0, result.stdout[-3000:]
    for record in metrics(out).values():
        assert record["train/grad_norm"] > 0
        assert record["reward/invalid_frac"] == 0


@pytest.mark.slow
def test_lora_and_the_reference_penalty_train(tmp_path: Path) -> None:
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    lora = ["uae.train.lora.rank=4", "uae.train.lora.alpha=8", "uae.train.train_projector=false"]
    result = train(world, out, [*SAVED, *lora, "uae.u4g.reference_kl.coef=0.1"], config="uae_u4g")
    assert result.returncode == 0, result.stdout[-3000:]
    logged = metrics(out)
    assert logged[1]["train/grad_norm"] > 0
    assert logged[2]["train/reference_kl/mean"] > 0
    Decoder.from_pretrained(str(out / "checkpoints" / "global_step_2" / "decoder"))

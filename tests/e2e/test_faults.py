# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Bad data and bad rewards through the whole trainer: the run goes on, each fault is counted and named."""

from __future__ import annotations

import json
import math
import signal
import struct
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.e2e.world import Started, build_world, metrics, train
from verl_uae.checkpoints.step import complete_steps
from verl_uae.stages.g4u.caption_loops import CaptionAgentLoopWorker

REWARD = """
import math, time

FAULTS = {faults}

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    assert extra_info["source_image"].size == extra_info["reconstruction"].size == (32, 32)
    fault = FAULTS.get(extra_info["index"])
    if fault == "nan":
        return math.nan
    if fault == "raise":
        raise RuntimeError("bad luck")
    if fault == "hang":
        time.sleep(600)
    pixels = zip(extra_info["source_image"].tobytes(), extra_info["reconstruction"].tobytes())
    return 1.0 - sum(abs(a - b) for a, b in pixels) / (255 * 3 * 32 * 32)
"""


def _huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _spoil(parquet: Path) -> int:
    """Replace the images of four rows; return how many."""
    table = pq.read_table(parquet)
    rows = table.to_pylist()
    good = rows[0]["images"][0]["bytes"]
    bad = [good[: len(good) // 2], _huge_png(), b"<html>not an image</html>", b""]
    for row, data in zip(rows[3:], bad, strict=False):
        row["images"] = [{"bytes": data, "path": None}]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), parquet)
    return len(bad)


def _scores(out: Path) -> dict[tuple[str, str], float]:
    found = {}
    for path in sorted((out / "rollouts").glob("*.jsonl")):
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            found[(path.stem, record["uid"])] = record["score"]
    return found


def _run(world: Path, out: Path, faults: dict[int, str]) -> tuple[dict, dict]:
    out.mkdir()
    reward = out / "reward.py"
    reward.write_text(REWARD.format(faults=repr(faults)))
    result = train(
        world,
        out,
        [
            "trainer.total_training_steps=1",
            "data.train_batch_size=8",
            f"reward.custom_reward_function.path={reward}",
            "uae.reward.terms=[]",
            "uae.reward.timeout_s=3",
            f"data.uae_quarantine_dir={out}/quarantine",
            "data.uae_max_bad_share=0.5",
            f"trainer.rollout_data_dir={out}/rollouts",
        ],
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return metrics(out)[1], _scores(out)


@pytest.mark.slow
def test_bad_images_and_rewards_cost_their_samples_only(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world", train=12)
    spoiled = _spoil(world / "data" / "train.parquet")
    clean, clean_scores = _run(world, tmp_path / "clean", {})
    quarantined = [
        json.loads(line)
        for path in (tmp_path / "clean" / "quarantine").rglob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(quarantined) == spoiled, quarantined
    assert all(entry["reason"] for entry in quarantined)
    assert clean["reward/invalid_frac"] == 0.0

    faults = {0: "nan", 1: "raise", 2: "hang"}
    record, scores = _run(world, tmp_path / "faulty", faults)
    assert record["reward/invalid_frac"] == pytest.approx(3 / 8)
    assert record["reward/status/timeout"] == pytest.approx(1 / 8)
    assert record["reward/status/error"] == pytest.approx(1 / 8)
    assert record["reward/dropped_groups"] == 3
    # verl's own means leave out what has no reward.
    assert record["critic/score/mean"] == pytest.approx(record["reward/score/mean"], rel=1e-6)
    unequal = [uid for uid, score in scores.items() if score != clean_scores[uid]]
    # Four captions of each of the three faulty images lose their score; all others keep it to the last bit.
    assert len(unequal) == 12
    assert all(scores[uid] == 0.0 for uid in unequal), "a masked row holds no score"
    assert len(scores) == 32


DEADLY = """
import os

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    # Runs inside the decoder worker: an even row takes the process with it, once per mark.
    for mark in {marks}:
        if extra_info["index"] in {rows} and not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(9)
    return float(len(solution_str) % 7)
"""


def _deadly_run(world: Path, out: Path, deaths: int, overrides: list[str]):
    out.mkdir()
    marks = [str(out / f"death{number}") for number in range(deaths)]
    (out / "reward.py").write_text(DEADLY.format(marks=marks, rows=list(range(0, 64, 2))))
    return train(
        world,
        out,
        [
            "trainer.total_training_steps=3",
            "trainer.save_freq=10",
            "trainer.resume_mode=auto",
            "trainer.n_gpus_per_node=2",
            f"reward.custom_reward_function.path={out}/reward.py",
            "uae.reward.terms=[]",
            "uae.supervision.max_invalid_fraction=0.6",
            *overrides,
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["frozen", "synced"])
def test_a_dead_decoder_rank_costs_its_samples_and_comes_back(tmp_path: Path, weights: str) -> None:
    """A synced one draws nothing before it has the captioner again."""
    world = build_world(tmp_path / "world")
    out = tmp_path / "revived"
    result = _deadly_run(world, out, deaths=1, overrides=[f"uae.conditioner.weights={weights}"])
    assert result.returncode == 0, result.stdout[-4000:]
    record = metrics(out)
    assert record[1]["reward/status/error"] == pytest.approx(0.5)
    assert record[1]["decoder/restarts"] == 1
    assert record[2]["reward/invalid_frac"] == record[3]["reward/invalid_frac"] == 0.0
    assert record[3].get("conditioner/syncs") == (2.0 if weights == "synced" else None)


@pytest.mark.slow
def test_a_rank_that_cannot_come_back_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    out = tmp_path / "stopped"
    result = _deadly_run(world, out, deaths=1, overrides=["uae.decoder.max_restarts=0"])
    assert result.returncode != 0
    assert "could not be started again (uae.decoder.max_restarts=0)" in result.stdout


@pytest.mark.slow
def test_a_dead_streamed_rank_costs_what_it_was_working_on(tmp_path: Path) -> None:
    """The other rank takes the rest, although the dead one has nothing to do."""
    world = build_world(tmp_path / "world")
    streamed = ["uae.decoder.schedule=streamed", "uae.decoder.pool=own", "uae.decoder.n_gpus_per_node=2"]
    out = tmp_path / "streamed"
    result = _deadly_run(
        world, out, deaths=1, overrides=[*streamed, "uae.decoder.batch_size=2", "trainer.n_gpus_per_node=1"]
    )
    assert result.returncode == 0, result.stdout[-4000:]
    record = metrics(out)
    assert 0 < record[1]["reward/status/error"] <= 0.5
    assert record[1]["decoder/restarts"] == 1
    assert record[2]["reward/invalid_frac"] == record[3]["reward/invalid_frac"] == 0.0


ALTERNATING = """
import collections

calls = collections.Counter()

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    # Four pictures of two captions a step; in the second step one of the two has no value.
    drawn, calls[extra_info["index"]] = calls.total(), calls[extra_info["index"]] + 1
    if 8 <= drawn < 16 and calls[extra_info["index"]] == 2:
        raise RuntimeError("no value")
    return float(calls.total() % 5) / 5
"""


@pytest.mark.slow
@pytest.mark.parametrize("config", ["uae_g4u", "uae_unified"])
def test_a_step_in_which_nothing_trains_moves_nothing_and_the_run_goes_on(tmp_path: Path, config: str) -> None:
    """Half of the samples have no reward, so no group has two: not too many to go on, and nothing to learn from."""
    world, out = build_world(tmp_path / "world"), tmp_path / "out"
    out.mkdir()
    (out / "reward.py").write_text(ALTERNATING)
    overrides = [
        "trainer.total_training_steps=3",
        "trainer.save_freq=1",
        "trainer.max_actor_ckpt_to_keep=3",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.optim.lr=0.01",
        "actor_rollout_ref.actor.optim.weight_decay=0.1",
        f"trainer.rollout_data_dir={out}/rollouts",
        f"reward.custom_reward_function.path={out}/reward.py",
        "uae.reward.terms=[]",
    ]
    if config == "uae_unified":
        overrides += ["uae.unified.g4u_steps=3"]
    result = train(world, out, overrides, config=config)
    assert result.returncode == 0, result.stdout[-4000:]
    record = metrics(out)
    assert [record[step]["actor/updates_left_out"] for step in (1, 2, 3)] == [0, 2, 0]
    assert not {"actor/loss", "actor/pg_loss", "actor/grad_norm"} & set(record[2])
    assert all(math.isfinite(value) for step in record.values() for value in step.values())
    weights = [_actor_state(out / "checkpoints" / f"global_step_{step}") for step in (1, 2, 3)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert any(not torch.equal(weights[1][name], tensor) for name, tensor in weights[2].items())
    assert all("actor/lr" in record[step] for step in (1, 2, 3))


def _actor_state(step: Path) -> dict[str, torch.Tensor]:
    shard = torch.load(step / "actor" / "model_world_size_1_rank_0.pt", weights_only=False)
    return {name: getattr(value, "_local_tensor", value) for name, value in shard.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "number", "under"),
    [
        ("uae_g4u", signal.SIGTERM, ()),
        ("uae_u4g", signal.SIGINT, ()),
        ("uae_pretrain", signal.SIGTERM, ("timeout", "3000")),
        ("uae_cold_start", signal.SIGINT, ()),
        ("uae_unified", signal.SIGTERM, ()),
    ],
)
def test_a_signal_saves_the_step_and_ends_cleanly(
    tmp_path: Path, config: str, number: int, under: tuple[str, ...]
) -> None:
    """To the driver alone, or to it and its process group, as ``timeout`` passes a signal on."""
    out = tmp_path / "run"
    out.mkdir()
    run = Started(build_world(tmp_path / "world"), out, [], config, under)
    run.wait_for_step(2)
    run.process.send_signal(number)
    code, line = run.end()
    steps = complete_steps(out / "checkpoints")
    assert code == 128 + number and len(steps) == 1 and steps[0] >= 2
    assert line == (
        f"verl_uae: stopped by {signal.Signals(number).name}; step {steps[0]} is saved in "
        f"{out}/checkpoints/global_step_{steps[0]}; the same command goes on from there"
    )


@pytest.mark.slow
def test_a_stopped_decoder_is_replaced_and_a_dead_agent_loop_ends_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    run = Started(build_world(tmp_path / "world"), out, ["uae.decoder.timeout_s=90"])
    run.wait_for_step(1)
    run.send("DecoderWorker", signal.SIGSTOP)
    run.wait_for_step(run.step + 2)
    assert max(record["decoder/restarts"] for record in metrics(out).values()) == 1
    assert all(record["reward/invalid_frac"] == 0.0 for record in metrics(out).values()), "drawn once more"
    run.send(CaptionAgentLoopWorker.__name__, signal.SIGKILL)
    code, line = run.end()
    assert code == 1 and "agent-loop worker 0" in line
    assert len(complete_steps(out / "checkpoints")) == 1 and "is saved in" in line


@pytest.mark.slow
def test_a_dead_caption_server_ends_the_run_with_its_step_saved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    run = Started(build_world(tmp_path / "world"), out, [])
    run.wait_for_step(2)
    run.send("CaptionServer", signal.SIGKILL)
    code, line = run.end()
    assert code == 1 and "is saved in" in line
    assert len(complete_steps(out / "checkpoints")) == 1


@pytest.mark.slow
def test_a_stopped_policy_rank_ends_the_run_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    settings = ["trainer.n_gpus_per_node=2", "uae.train.micro_batch_size=4", "uae.supervision.stall_timeout_s=60"]
    run = Started(build_world(tmp_path / "world"), out, settings, "uae_u4g")
    run.wait_for_step(1)
    run.send("DecoderPolicyWorker", signal.SIGSTOP, which=1)
    code, line = run.end()
    assert code == 1 and "is stopped" in line and "learner rank" in line


@pytest.mark.slow
def test_a_dead_task_runner_ends_the_driver(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    run = Started(build_world(tmp_path / "world"), out, ["trainer.save_freq=1"], "uae_u4g")
    run.wait_for_step(2)
    run.send("TaskRunner", signal.SIGKILL)
    code, line = run.end()
    assert (
        code == 1 and line.startswith("verl_uae: the trainer's process died") and "the newest complete step is" in line
    )

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of G4U with captions one step ahead against steps without, on a Ray cluster of two nodes on this machine.

python -m benchmarks.ahead --pairs 3 --steps 8 --json outputs/ahead.json

Captioner and decoder have a node each, and tiny models of the built-in scenes; every pair is the training command
twice, first without and then with ``uae.g4u.ahead=1``. The gain is bounded by what runs side by side: sizes are such
that captioning and decoding take about as long as each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: 128 captions of 192 tokens, and as many pictures of 60 denoising steps; no reference model.
SIZES = [
    "data.train_batch_size=32",
    "data.max_response_length=192",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.ignore_eos=true",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.actor.use_kl_loss=false",
    "uae.decoder.pool=own",
    "uae.decoder.num_steps=60",
    "trainer.save_freq=-1",
]
ARMS = {"phased": [], "ahead": ["uae.g4u.ahead=1", "algorithm.rollout_correction.rollout_is=token"]}
PHASES = (
    "step",
    "caption",
    "caption_ahead",
    "decode",
    "score",
    "old_log_prob",
    "ref",
    "update_actor",
    "update_weights",
)

#: The first steps of a run load and compile.
WARM_UP = 2


def seconds(record: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Median of the steps after the first two, by phase."""
    steps = [record[step] for step in sorted(record) if step > WARM_UP]
    # The last step writes nothing ahead.
    found = {
        phase: [data[f"timing_s/{phase}"] for data in steps[:-1] if f"timing_s/{phase}" in data] for phase in PHASES
    }
    return {phase: statistics.median(values) for phase, values in found.items() if values}


def run(world: Path, out: Path, overrides: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    """One command; its seconds by phase."""
    # Imported here: what makes worlds and clusters is the tests'.
    from tests.e2e.world import metrics, train

    result = train(world, out, overrides, extra_env=environment, timeout=900)
    if result.returncode:
        raise SystemExit(result.stdout[-4000:])
    return seconds(metrics(out))


def main() -> int:
    """The command."""
    from tests.cluster import cluster
    from tests.e2e.world import build_world

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each arm")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run; the first two and the last are left out")
    parser.add_argument("--set", action="append", default=[], help="another override of both arms")
    parser.add_argument("--json", type=Path, help="file for all repetitions")
    arguments = parser.parse_args()
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, cluster((8, 1), (8, 1)) as nodes:
        world = build_world(Path(folder, "world"), train=64)
        for number in range(arguments.pairs):
            pair: dict[str, Any] = {}
            for arm, chosen in ARMS.items():
                overrides = [*SIZES, f"trainer.total_training_steps={arguments.steps}", *chosen, *arguments.set]
                pair[arm] = run(world, Path(folder, f"{arm}{number}"), overrides, nodes.environment)
                times = ", ".join(f"{phase} {value:.2f}" for phase, value in pair[arm].items())
                sys.stdout.write(f"{arm}: {times}; load {os.getloadavg()[0]:.1f}\n")
                sys.stdout.flush()
            pair["ratio"] = pair["phased"]["step"] / pair["ahead"]["step"]
            pairs.append(pair)
    ratios = [pair["ratio"] for pair in pairs]
    sys.stdout.write(f"phased / ahead: {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(pairs, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

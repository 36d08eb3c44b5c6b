# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules of G4U on a Ray cluster of two nodes on this machine, against each other and against ``verl-uae plan``.

    python -m benchmarks.schedules --rounds 3 --out outputs/schedules

A round is the training command once per schedule: phased on shared ranks, and with a pool of decoders on the second
node phased, streamed, and with captions one step ahead (``uae.g4u.ahead=1``). Models are the small ones of
``plan_validation.py``, with one thread a process. The gain is bounded by what runs side by side: sizes are such that
captioning and decoding take about as long as each other. Rates of the machine are measured before and after each
round, and the plan is made of their medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import provenance
from benchmarks.plan_validation import SIZES, build, median_rates, planned, rates, words
from verl_uae.bench.results import markdown_table
from verl_uae.plan.schedules import AHEAD, OWN, PHASED, STREAMED

#: Tokens of every caption, and denoising steps of every picture.
TOKENS, DENOISING = 128, 6

_OWN = ["uae.decoder.pool=own", "uae.decoder.n_gpus_per_node=1", "uae.decoder.nnodes=1"]
ARMS: Mapping[str, Sequence[str]] = {
    PHASED: ["trainer.nnodes=2", "uae.decoder.pool=colocated"],
    OWN: _OWN,
    STREAMED: [*_OWN, "uae.decoder.schedule=streamed"],
    AHEAD: [*_OWN, "uae.g4u.ahead=1", "algorithm.rollout_correction.rollout_is=token"],
}
STEPS, WARM = 7, 2


def overrides(root: Path) -> list[str]:
    """Of every arm; as many captions a rank and update whatever the ranks."""
    return [
        *(word for word in words("g4u", root, SIZES["small"]) if not word.startswith("++ray")),
        f"data.max_response_length={TOKENS}",
        "actor_rollout_ref.rollout.ignore_eos=true",
        # Those of a rank where two share the captions.
        *(
            f"actor_rollout_ref.{key}_micro_batch_size_per_gpu=32"
            for key in ("actor.ppo", "ref.log_prob", "rollout.log_prob")
        ),
        "actor_rollout_ref.actor.use_kl_loss=false",
        # Four batches of a step's captions, however they arrive.
        "+actor_rollout_ref.rollout.engine_kwargs.hf.max_batch_size=16",
        f"uae.decoder.num_steps={DENOISING}",
        "uae.decoder.batch_size=16",
        f"trainer.total_training_steps={STEPS}",
    ]


def run(root: Path, out: Path, arm: str, environment: Mapping[str, str]) -> dict[str, float]:
    """One command; medians of its steps by phase, without the first two, and the last, which writes nothing ahead.

    Raises:
        SystemExit: it failed, with the end of its output.
    """
    # Imported here: what makes clusters and the command is the tests'.
    from tests.e2e.world import metrics, train

    result = train(root, out, [*overrides(root), *ARMS[arm]], extra_env=environment, timeout=900)
    if result.returncode:
        raise SystemExit(result.stdout[-4000:])
    record = metrics(out)
    steps = [record[step] for step in sorted(record)][WARM:-1]
    names = sorted({name for step in steps for name in step if name.startswith("timing_s/")})
    return {name.partition("/")[2]: statistics.median(step.get(name, 0.0) for step in steps) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    from tests.cluster import cluster

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each schedule")
    parser.add_argument("--out", type=Path, default=Path("outputs/schedules"))
    args = parser.parse_args(argv)
    out = args.out.resolve()
    root = out / "world"
    build(root, SIZES["small"])
    found: list[dict[str, Any]] = []
    calibrations = [out / f"rates_{number}.json" for number in range(args.rounds + 1)]
    rates(calibrations[0])
    with cluster((8, 1), (8, 1)) as nodes:
        for number in range(args.rounds):
            for arm in ARMS:
                load = os.getloadavg()[0]
                seconds = run(root, out / f"{number}_{list(ARMS).index(arm)}", arm, nodes.environment)
                found.append({"round": number, "schedule": arm, "load": load, "seconds": seconds})
                shown = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items() if value > 0.05)
                print(f"{arm}: {shown}; load {load:.1f}", flush=True)
            rates(calibrations[number + 1])
    rows = planned("g4u", root, overrides(root), median_rates(calibrations, out / "rates.json"), nodes=2)
    predicted = {row.schedule: row.timeline.step_s for row in rows}
    measured = {arm: [run["seconds"]["step"] for run in found if run["schedule"] == arm] for arm in ARMS}
    gains = {
        arm: [alone / each for alone, each in zip(measured[OWN], times, strict=True)] for arm, times in measured.items()
    }
    table = [
        (
            arm,
            f"{statistics.median(measured[arm]):.2f}",
            f"{predicted[arm]:.2f}",
            f"{statistics.median(gains[arm]):.2f} ({min(gains[arm]):.2f} to {max(gains[arm]):.2f})",
            f"{predicted[OWN] / predicted[arm]:.2f}",
        )
        for arm in sorted(ARMS, key=lambda arm: statistics.median(measured[arm]))
    ]
    header = ("schedule", "step, s", "planned, s", f"times as fast as {OWN}", "planned")
    print("\n".join(markdown_table(header, table)))
    report = {**provenance("cpu"), "runs": found, "planned": predicted}
    (out / "schedules.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

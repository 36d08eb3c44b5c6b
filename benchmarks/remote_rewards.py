# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What asking a reward server costs over scoring in place: wall clock and processor time per sample, by picture size.

A server process on this machine and the same terms in this process score the same batch in turn. Pictures are noise
over a gradient, which PNG compresses about as little as photographs. Members of a group share a source, as in training.

    python -m benchmarks.remote_rewards --sizes 256 512 --json outputs/remote_rewards.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil
import torch

from benchmarks.measure import provenance, write_json
from verl_uae.bench.results import markdown_table
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.reward.remote.protocol import encode_picture, to_levels


def pictures(count: int, size: int, group: int, seed: int) -> RewardBatch:
    """``count`` samples of 8-bit pictures, ``group`` of them with one source."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.2, 0.8, size).expand(1, 3, size, size)

    def draw(number: int) -> torch.Tensor:
        noise = 0.02 * torch.randn(number, 3, size, size, generator=generator)
        return ((ramp + noise).clamp(0, 1) * 255).round() / 255

    source = draw(-(-count // group)).repeat_interleave(group, 0)[:count]
    return RewardBatch(source, draw(count), captions=["a caption"] * count, rows=[{}] * count)


def cost(scorer: RewardScorer, batch: RewardBatch, server: psutil.Process) -> tuple[float, float, float]:
    """Seconds of one call: wall clock, processor time here, processor time of the server."""

    def clocks() -> tuple[float, float, float]:
        theirs = server.cpu_times()
        return time.perf_counter(), time.process_time(), theirs.user + theirs.system

    before = clocks()
    records = scorer.score(batch)
    after = clocks()
    assert all(record.ok for record in records), records[0].reason
    wall, here, there = (end - start for start, end in zip(before, after, strict=True))
    return wall, here, there


def measure(url: str, pid: int, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over pairs of calls, after one unmeasured pair; milliseconds per sample."""
    batch, server = pictures(args.samples, size, args.group, args.seed), psutil.Process(pid)
    params = {"url": url, "timeout_s": 300.0, "concurrency": args.concurrency}
    remote = RewardScorer([("remote", 1.0, params)], timeout_s=400.0)
    local = RewardScorer([(args.term, 1.0, {})], timeout_s=400.0)
    pairs = [(cost(local, batch, server), cost(remote, batch, server)) for _ in range(args.repetitions + 1)][1:]

    def median(which: int, clock: int) -> float:
        return 1000 * statistics.median(pair[which][clock] for pair in pairs) / args.samples

    kib = len(encode_picture(to_levels(batch.reconstruction_B3HW[:1])[0])) / 1024
    return {
        "size": size,
        "picture_kib": kib,
        "local_ms": median(0, 0),
        "remote_ms": median(1, 0),
        "local_processor_ms": median(0, 1),
        "client_processor_ms": median(1, 1),
        "server_processor_ms": median(1, 2),
        "pairs_s": pairs,
    }


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides, pixels")
    parser.add_argument("--term", default="pixel", help="registered term without parameters")
    parser.add_argument("--samples", type=int, default=64, help="in a batch")
    parser.add_argument("--group", type=int, default=8, help="samples of one source")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = [sys.executable, "-m", "verl_uae.cli", "reward-server", "--port", "0", "--term", args.term]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            rows = [measure(url, server.pid, size, args) for size in args.sizes]
        finally:
            server.terminate()
    names = [name for name in rows[0] if name not in ("size", "pairs_s")]
    cells = [[str(row["size"]), *(f"{row[name]:.1f}" for name in names)] for row in rows]
    print("\n".join(markdown_table(["size", *names], cells, words=())))
    setting = {name: value for name, value in vars(args).items() if name != "json"}
    write_json(args.json, {"provenance": provenance("cpu", args.seed), "setting": setting, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

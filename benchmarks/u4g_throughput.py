# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Paired measurement of one batch of stage U4G: the package against a single-file script on diffusers.

    python -m benchmarks.u4g_throughput                                      # CPU, verl's FSDP2 engine on one rank
    python -m benchmarks.u4g_throughput --device cuda --size sd35_medium     # one GPU
    python -m benchmarks.u4g_throughput --ranks 2 --micro 1                  # benchmarks/replay.py on two gloo ranks

The same on both sides: weights, dtype, captions, picture size, noise levels, kernel, trained window, group, samples per
forward pass, optimiser and its number of updates, objective, and (checked first, see benchmarks/agreement.py) latents,
old log-probabilities, loss and gradient. Pictures are neither decoded nor scored. Captions are new in every repetition.

What differs, and is the measurement:

* condition: the package encodes a caption once, eight captions together, filled up; a script encodes every sample's.
* sampling: the package draws its noise by name on the host and keeps trajectories in host memory; with the verl engine
  the module is sharded by FSDP2. A script has neither, and looks a step up by its timestep for every sample.
* old log-probabilities: the package takes the sampler's, because the same module in the same micro-batches gives a
  ratio of exactly 1. The baseline is timed both ways: scoring again by a forward pass (``recomputed``, what trainers
  with a separate sampler do, verl's default among them), and keeping the sampler's (``stored``, what Flow-GRPO's own
  scripts do); ``total`` and ``total, stored`` are the two.
* update: the package checks and blanks its mini-batch, clips per sample, and gathers a dozen figures per step and
  sample. A script keeps three means.

Both project the condition in every call, take one backward pass per micro-batch and step, and clip the gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.agreement import GATE, TOLERANCES, Agreement, Gate, check_agreement, log_prob_gate
from benchmarks.baseline import Script
from benchmarks.flops import count_flops, policy_flops
from benchmarks.measure import Part, Run, add_options, compare, interleave, matmul_rate, provenance, write_json
from benchmarks.ours import Ours, build_engine, verl_available
from benchmarks.replay import measure as measure_replay
from benchmarks.replay import rows as replay_rows
from benchmarks.sizes import SIZES, VAE_FACTOR, build_conditioner, build_policy, transformer_config
from benchmarks.work import Work, make_plan
from verl_uae.bench.results import NOTHING, markdown_table, number

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("condition", "sampling", "old_log_probs", "update")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    work = make_work(options)
    if options.ranks:
        return replayed(work, options)
    dtype = DTYPES[options.dtype]
    ours, script = build_sides(work, options.engine, dtype, reshard=options.reshard, compiled=options.compile)
    ours.together = options.replay
    agreement = check_agreement(ours, script)
    print(_agreement_line(agreement, dtype))
    memory: dict[str, float] = {}
    runs = [_with_memory(side, name, work.device, memory) for side, name in ((ours, "ours"), (script, "baseline"))]
    seconds = interleave(runs, options.repetitions, options.warmup)
    gates = measure_gates(ours)
    parts = compare_parts(*seconds)
    report = {
        "benchmark": "u4g_throughput",
        "provenance": provenance(work.device, work.seed),
        "engine": ours.engine.name,
        "replay_steps": options.replay,
        "compile": options.compile,
        "dtype": str(dtype).removeprefix("torch."),
        "reshard_after_forward": options.reshard if options.engine == "verl" else None,
        "work": describe(work, options.size, options.repetitions),
        "agreement": dataclasses.asdict(agreement),
        "seconds": {"ours": seconds[0], "baseline": seconds[1]},
        "parts": {name: dataclasses.asdict(part) for name, part in parts.items()},
        "rates": rates(work, parts, dtype),
        "peak_memory_gib": memory,
        "gate": {name: [dataclasses.asdict(gate) for gate in found] for name, found in gates.items()},
    }
    _print(report, parts, gates)
    write_json(options.json, report)
    return report


def replayed(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Measure steps together against one after the other on several ranks, print, and return what ``--json`` writes."""
    found = measure_replay(work, options.ranks, options.repetitions, options.warmup)
    report = {
        "benchmark": "u4g_throughput --ranks",
        "provenance": provenance(work.device, work.seed),
        "ranks": options.ranks,
        "work": describe(work, options.size, options.repetitions),
        "replay": dataclasses.asdict(found),
    }
    print(", ".join(f"{name} {value}" for name, value in report["work"].items() if name != "clock"))
    header = ("steps trained", "clock", "one after the other, s", "together, s", "ratio", "of single pairs")
    print("\n".join(markdown_table(header, replay_rows(found, work, options.ranks))))
    share = found.gather_s * found.bytes_gathered / found.bytes_once / (found.wall.baseline_median or 1.0)
    print(
        f"one after the other gathers {found.bytes_gathered / 2**20:.0f} MiB a rank; all weights once take "
        f"{found.gather_s * 1e3:.1f} ms: {share:.0%} of its time on the wall"
    )
    write_json(options.json, report)
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="U4G: the package against a single-file script on diffusers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", choices=("verl", "plain"), help="default: verl on a CPU where it is installed")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="to compute in; default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--pixels", type=int, help="side of the picture; default: of the size")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--window", type=int, default=3, help="trained steps, from step 1 on")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="samples per prompt")
    parser.add_argument("--micro", type=int, help="samples per forward pass; default: of the size")
    parser.add_argument("--updates", type=int, default=2, help="optimiser updates per batch")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="default: of the size")
    parser.add_argument(
        "--reshard",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fsdp_config.reshard_after_forward (default off, as hardware=cpu has it)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--replay", type=int, default=1, help="trained steps of a sample in one pass (replay_steps)")
    parser.add_argument(
        "--shared-prefix",
        action="store_true",
        help="a group starts from one noise on both sides (share_noise), and the package computes what it has in "
        "common once (shared_prefix)",
    )
    parser.add_argument("--compile", action="store_true", help="the package's blocks compiled (uae.decoder.compile)")
    parser.add_argument(
        "--ranks",
        type=int,
        default=0,
        help="the update alone, on so many gloo ranks of a CPU: all trained steps in one pass against one by one",
    )
    add_options(parser, repetitions=7)
    options = parser.parse_args(arguments)
    if options.dtype is None:
        options.dtype = "bf16" if options.device == "cuda" else "fp32"
    if options.engine is None:
        options.engine = "verl" if options.device == "cpu" and verl_available() else "plain"
    if (options.replay != 1 or options.compile or options.shared_prefix) and options.engine != "verl":
        parser.error("--replay, --compile and --shared-prefix need --engine verl")
    if options.ranks and (options.device, options.dtype) != ("cpu", "fp32"):
        parser.error("--ranks are of a CPU, in fp32")
    try:
        make_work(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def make_work(options: argparse.Namespace) -> Work:
    """The batch that the options describe."""
    size = SIZES[options.size]
    changed = {"pixels": options.pixels, "checkpointing": options.checkpointing}
    size = dataclasses.replace(size, **{name: value for name, value in changed.items() if value is not None})
    plan = make_plan(options.steps, options.window)
    micro = options.micro or size.micro
    return Work(
        size=size,
        plan=plan,
        prompts=options.prompts,
        group=options.group,
        micro=micro,
        updates=options.updates,
        seed=options.seed,
        device=options.device,
        shared_prefix=options.shared_prefix,
        processor_time=options.clock == "processor",
    )


def build_sides(
    work: Work, engine: str, dtype: torch.dtype, *, reshard: bool = True, compiled: bool = False
) -> tuple[Ours, Script]:
    """Both sides, of the same weights; in one process without sharding they share the module itself."""
    module = build_policy(work.size, work.seed, device=work.device, dtype=dtype)
    conditioner = build_conditioner(work.size, work.seed, device=work.device, dtype=dtype)
    chosen = build_engine(engine, module, work.size, work.device, dtype, reshard=reshard, compiled=compiled)
    return Ours(chosen, conditioner, work), Script(module, conditioner, work, dtype)


def measure_gates(ours: Ours) -> dict[str, list[Gate]]:
    """Rollout against trainer: in the same micro-batches, and with a rollout in micro-batches of half the size."""
    conditions, repetition = ours.encode(-1), -1
    sizes = {"same": ours.work.micro, "halved": max(1, ours.work.micro // 2)}
    return {name: log_prob_gate(ours, ours.sample(conditions, repetition, micro)) for name, micro in sizes.items()}


def compare_parts(ours: list[dict[str, float]], baseline: list[dict[str, float]]) -> dict[str, Part]:
    """Statistics by part, of the two totals, and of old log-probabilities and update together."""
    sums = {
        **{name: (name,) for name in PARTS},
        "old_log_probs + update": ("old_log_probs", "update"),
        "total": PARTS,
        "total, stored": tuple(name for name in PARTS if name != "old_log_probs"),
    }
    found = {}
    for name, names in sums.items():
        columns = [[sum(run.get(part, 0.0) for part in names) for run in side] for side in (ours, baseline)]
        found[name] = compare(*(column if any(column) else [] for column in columns))
    return found


def rates(work: Work, parts: dict[str, Part], dtype: torch.dtype) -> dict[str, float]:
    """Pictures per second and share of the measured rate of matrix products, of ours by its medians."""
    side, all_weights = work.size.pixels // VAE_FACTOR, not work.size.lora_rank
    config = transformer_config(work.size)
    flops = count_flops(config, side, work.size.text_tokens, work.size.lora_rank)
    sampling, update = policy_flops(
        flops, steps=work.plan.num_steps, window=len(work.plan.window), all_weights=all_weights
    )
    peak = matmul_rate(work.device, dtype, processor=work.processor_time)
    found = {"matmul_tflops": peak / 1e12, "forward_tflop_per_picture": flops.forward / 1e12}
    for name, part, work_flops in (("sampling", "sampling", sampling), ("update", "update", update)):
        found[f"mfu_{name}"] = work_flops * work.samples / (parts[part].ours_median or 1.0) / peak
    for side_name in ("ours", "baseline"):
        seconds = getattr(parts["total"], f"{side_name}_median")
        found[f"pictures_per_second_{side_name}"] = work.samples / seconds
    found["mfu_total"] = (sampling + update) * work.samples / (parts["total"].ours_median or 1.0) / peak
    return found


def describe(work: Work, size: str, repetitions: int) -> dict[str, Any]:
    """The batch in plain numbers."""
    return {
        "size": size,
        "pixels": work.size.pixels,
        "text_tokens": work.size.text_tokens,
        "lora_rank": work.size.lora_rank,
        "checkpointing": work.size.checkpointing,
        "steps": work.plan.num_steps,
        "window": list(work.plan.window),
        "prompts": work.prompts,
        "group": work.group,
        "micro": work.micro,
        "updates": work.updates,
        "shared prefix": work.shared_prefix,
        "repetitions": repetitions,
        "clock": "processor" if work.processor_time else "wall",
    }


def _with_memory(side: Ours | Script, name: str, device: str, memory: dict[str, float]) -> Run:
    """A side's run, noting the most device memory any repetition took, in GiB."""

    def run(repetition: int) -> dict[str, float]:
        if device == "cpu":
            return side.run(repetition)
        torch.cuda.reset_peak_memory_stats()
        seconds = side.run(repetition)
        memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
        return seconds

    return run


def _agreement_line(found: Agreement, dtype: torch.dtype) -> str:
    names = ("latents", "old_log_probs", "loss", "gradient")
    figures = ", ".join(
        f"{name} {getattr(found, name):.1e} (limit {limit:.0e})"
        for name, limit in zip(names, TOLERANCES[dtype], strict=True)
    )
    return f"same result: {'yes' if found.passed else 'NO'}; largest differences: {figures}"


def _print(report: dict[str, Any], parts: dict[str, Part], gates: dict[str, list[Gate]]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in report["work"].items()))
    origin = report["provenance"]
    print(f"engine {report['engine']}, {report['dtype']}, {origin['device']}, {origin['threads']} thread(s)\n")
    header = (
        "part",
        "ours min, s",
        "median, s",
        "baseline min, s",
        "median, s",
        "ratio",
        "of the minima",
        "of single pairs",
    )
    rows = [
        [
            name.replace("_", " ").replace("log probs", "log-probs"),
            *(number(v, ".3f") for v in (part.ours_min, part.ours_median, part.baseline_min, part.baseline_median)),
            number(part.ratio),
            number(part.ratio_of_minima),
            NOTHING if part.ratio is None else f"{part.ratio_low:.2f} to {part.ratio_high:.2f}",
        ]
        for name, part in parts.items()
    ]
    print("\n".join(markdown_table(header, rows)) + "\n")
    for name, value in {
        **report["rates"],
        **{f"peak_memory_gib_{k}": v for k, v in report["peak_memory_gib"].items()},
    }.items():
        print(f"{name}: {value:.4g}")
    print(f"\ngate, rollout against trainer: p50 < {GATE[0]:.0e}, p99 < {GATE[1]:.0e}")
    for name, found in gates.items():
        for gate in found:
            verdict = "pass" if gate.passed else "FAIL"
            print(f"  {name} micro-batches, step {gate.step}: p50 {gate.p50:.1e}, p99 {gate.p99:.1e}: {verdict}")


if __name__ == "__main__":
    main()

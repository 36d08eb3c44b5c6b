# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One CUDA machine in minutes: first whether it computes what a CPU does, then what fits and how fast it is.

    python -m benchmarks.gpu --budget 420 --out outputs/gpu.jsonl                       # random weights of real size
    python -m benchmarks.gpu --device cpu --sizes tiny --out outputs/gpu_smoke.jsonl    # the same code without a GPU

Needs no weights and no data. Every cell writes its line of JSON when it is done, also when it fails or memory runs out;
cells that stand in the file already are left out, so that a run that was stopped goes on. A cell starts only inside
the budget.

Shape legend: B pictures, C H W latents, L text positions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import log_prob_gate
from benchmarks.flops import count_flops, policy_flops
from benchmarks.measure import matmul_rate, provenance
from benchmarks.ours import Ours, VerlEngine
from benchmarks.sizes import SIZES, VAE_FACTOR, build_conditioner, build_policy, build_vae, transformer_config
from benchmarks.work import Work, make_plan
from verl_uae.chain.conditioner import Conditioner
from verl_uae.devices import is_out_of_memory
from verl_uae.families.sd3 import SD3
from verl_uae.seeding import normal

#: Length of a condition in the recipes.
TEXT_TOKENS = 640
#: Denoising steps and trained steps of a picture, as in the paper's preset.
STEPS, WINDOW = 10, 3

Cell = Callable[["Bench"], dict[str, Any]]


@dataclass
class Bench:
    """What cells share.

    Args:
        device: ``cuda`` or ``cpu``.
        dtype: to compute in.
        seed: of weights, captions and noise.
    """

    device: str
    dtype: torch.dtype
    seed: int = 0
    rate: float = 0.0
    """FLOP per second of a large matrix product in ``dtype``; 0 until it is measured."""
    _side: tuple[str, VerlEngine, Any] | None = field(default=None, repr=False)

    def ours(self, name: str, **changes: Any) -> Ours:
        """The U4G side of a size, around one engine that stays until another size is asked for.

        Args:
            name: of the size.
            changes: fields of :class:`~benchmarks.work.Work`, and of its size.
        """
        size = SIZES[name]
        if self._side is None or self._side[0] != name:
            self.release()
            module = build_policy(size, self.seed, device=self.device, dtype=self.dtype)
            engine = VerlEngine(module, size, self.device, self.dtype, reshard=False)
            del module
            conditioner = build_conditioner(size, self.seed, device=self.device, dtype=self.dtype)
            self._side = (name, engine, conditioner)
        _, engine, conditioner = self._side
        own = {key: changes.pop(key) for key in ("pixels", "text_tokens") if key in changes}
        size = dataclasses.replace(size, **own)
        conditioner = Conditioner(
            conditioner.language_model, conditioner.tokenizer, SD3({}, {}, length=size.text_tokens)
        )
        defaults = {"prompts": 2, "group": 8, "micro": 8, "updates": 1}
        plan = make_plan(STEPS, WINDOW)
        return Ours(
            engine, conditioner, Work(size, plan, seed=self.seed, device=self.device, **{**defaults, **changes})
        )

    def transformer(self) -> Any:
        """What the engine trains, as FSDP holds it."""
        assert self._side is not None
        return self._side[1].inner.module.transformer

    def release(self) -> None:
        """Free the engine."""
        self._side = None
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], Any], times: int = 3) -> float:
        """Fastest of several calls, after one that is not counted; device work included."""
        best = float("inf")
        for number in range(times + 1):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if number:
                best = min(best, time.perf_counter() - start)
        return best

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        """Most device memory since :func:`run_cell` began the cell, GiB."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None


def machine(bench: Bench) -> dict[str, Any]:
    """Versions, rate of matrix products, and bytes per second between host and device."""
    bench.rate = matmul_rate(bench.device, bench.dtype)
    found: dict[str, Any] = {**provenance(bench.device, bench.seed), "matmul_tflops": bench.rate / 1e12}
    if bench.device == "cuda":
        count = 2**30
        on_device = torch.empty(count, dtype=torch.uint8, device="cuda")
        for kind in ("pageable", "pinned"):
            host = torch.empty(count, dtype=torch.uint8, pin_memory=kind == "pinned")
            host.zero_()
            found[f"to_device_gb_s_{kind}"] = count / bench.seconds(partial(on_device.copy_, host)) / 1e9
            found[f"to_host_gb_s_{kind}"] = count / bench.seconds(partial(host.copy_, on_device)) / 1e9
    return found


def parity(bench: Bench) -> dict[str, Any]:
    """Largest differences of device and CPU in fp32, relative to the largest value: condition, velocity, VAE."""
    size = SIZES["small"]
    parts: dict[str, list[Tensor]] = {}
    noise_BCHW = normal((2, size.latent_channels, 8, 8), bench.seed, "parity")
    for device in ("cpu", bench.device):
        # Weights are drawn on the CPU for both: generators of devices differ.
        module = build_policy(size, bench.seed).to(device)
        conditioner = build_conditioner(size, bench.seed).to(device)
        vae = build_vae("cpu", bench.seed).to(device)
        with torch.no_grad():
            condition = conditioner.encode(["a red circle", "two blue squares"], device=device)
            latent_BCHW = noise_BCHW.to(device)
            velocity = module(latent_BCHW, torch.tensor([0.3, 0.9], device=device), condition)
            picture = module.family.decode_latent(vae, latent_BCHW)
            found = {
                "condition": condition.states,
                "velocity": velocity,
                "decode": picture,
                "encode": module.family.encode_image(vae, picture),
            }
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: ((a - b).abs().max() / a.abs().max()).item() for name, (a, b) in parts.items()}


def gate(name: str, bench: Bench) -> dict[str, Any]:
    """Log-probabilities of sampler and trainer, nats per dimension; also with a sampler in micro-batches of half."""
    ours = bench.ours(name)
    states = ours.encode(-1)
    found: dict[str, Any] = {}
    for kind, micro in (("same", ours.work.micro), ("halved", ours.work.micro // 2)):
        gates = log_prob_gate(ours, ours.sample(states, -1, micro))
        found[kind] = [dataclasses.asdict(each) for each in gates]
    found["ratio_is_one"] = all(each["p99"] == 0.0 for each in found["same"])
    return found


def u4g(name: str, changes: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Seconds of sampling and update, pictures a second, share of the measured rate, and peak memory.

    Args:
        name: of the size.
        changes: see :meth:`Bench.ours`; ``checkpointing`` and ``compile`` change the engine's module.
        bench: see there.
    """
    changes = dict(changes)
    checkpointing, compiled = changes.pop("checkpointing", False), changes.pop("compile", False)
    micro = changes.setdefault("micro", 8)
    ours = bench.ours(name, prompts=2, group=max(8, micro), **changes)
    transformer = bench.transformer()
    _set_checkpointing(transformer, checkpointing)
    blocks = list(transformer.transformer_blocks)
    for block in blocks if compiled else ():
        block.compile()
    try:
        start = time.perf_counter()
        ours.run(0)
        warm_up = time.perf_counter() - start
        seconds = ours.run(1)
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    size, samples = ours.work.size, ours.work.samples
    flops = count_flops(transformer_config(size), size.pixels // VAE_FACTOR, ours.work.size.text_tokens, size.lora_rank)
    sampling, update = policy_flops(flops, steps=STEPS, window=WINDOW, all_weights=not size.lora_rank)
    peak = bench.rate or matmul_rate(bench.device, bench.dtype)
    return {
        "seconds": seconds,
        "warm_up_s": warm_up,
        "samples": samples,
        "pictures_per_second": samples / sum(seconds.values()),
        "mfu_sampling": sampling * samples / seconds["sampling"] / peak,
        "mfu_update": update * samples / seconds["update"] / peak,
        "forward_tflop_per_picture": flops.forward / 1e12,
    }


def vae(dtype: torch.dtype, batch: int, pixels: int, bench: Bench) -> dict[str, Any]:
    """Seconds a picture of SD3.5's VAE, and how far its pictures are from those in fp32 on [0, 1]."""
    codec = build_vae(bench.device, bench.seed)
    side = pixels // VAE_FACTOR
    latent_BCHW = normal((batch, 16, side, side), bench.seed, "vae").to(bench.device)
    decode_latent = SD3({}, {}).decode_latent
    wanted = decode_latent(codec, latent_BCHW[:1])
    codec = codec.to(dtype)
    if bench.device == "cuda":
        codec = codec.to(memory_format=torch.channels_last)
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(lambda: decode_latent(codec, latent_BCHW))
    difference = (decode_latent(codec, latent_BCHW[:1]) - wanted).abs()
    return {
        "seconds_per_picture": seconds / batch,
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
    }


def conditioner(name: str, length: int, bench: Bench) -> dict[str, Any]:
    """Seconds of eight captions through a size's language model."""
    size = dataclasses.replace(SIZES[name], text_tokens=length)
    model = build_conditioner(size, bench.seed, device=bench.device, dtype=bench.dtype)
    captions = [f"a red circle {number}" for number in range(8)]
    return {"seconds": bench.seconds(lambda: model.encode(captions))}


def moves(name: str, bench: Bench) -> dict[str, Any]:
    """Seconds of a decoder's way to the host and back, to pageable memory as modules travel, and up from pinned."""
    module = build_policy(SIZES[name], bench.seed, device=bench.device, dtype=bench.dtype)
    count = sum(p.nbytes for p in module.parameters())
    found: dict[str, Any] = {"gib": count / 2**30}
    for kind, call in (("down", partial(module.to, "cpu")), ("up", partial(module.to, bench.device))):
        bench.wait()
        start = time.perf_counter()
        call()
        bench.wait()
        found[f"pageable_{kind}_s"] = time.perf_counter() - start
    if bench.device == "cuda":
        master = [p.detach().cpu().pin_memory() for p in module.parameters()]
        targets = [p.detach() for p in module.parameters()]

        def up() -> None:
            for target, source in zip(targets, master, strict=True):
                target.copy_(source, non_blocking=True)

        found["pinned_up_s"] = bench.seconds(up)
    return found


def trace(name: str, bench: Bench) -> dict[str, Any]:
    """Kernels of one batch by their share of device time, and how long the device was idle."""
    ours = bench.ours(name, prompts=1, group=8)
    _set_checkpointing(bench.transformer(), False)
    ours.run(0)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        start = time.perf_counter()
        ours.run(1)
        bench.wait()
        wall = time.perf_counter() - start
    on_device = bench.device == "cuda"
    time_of = (lambda e: e.self_device_time_total) if on_device else (lambda e: e.self_cpu_time_total)
    events = [e for e in profile.key_averages() if not on_device or e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=time_of, reverse=True)
    busy = sum(map(time_of, events)) / 1e6
    top = {e.key[:90]: round(time_of(e) / 1e6 / busy, 4) for e in events[:20]}
    return {"wall_s": wall, "busy_share": busy / wall, "shares": top}


def cells(sizes: Sequence[str], *, smoke: bool) -> dict[str, Cell]:
    """All cells by name, in order.

    Args:
        sizes: of :data:`~benchmarks.sizes.SIZES`.
        smoke: one small cell of every kind.
    """
    found: dict[str, Cell] = {"machine": machine, "parity": parity}
    text = {} if smoke else {"text_tokens": TEXT_TOKENS}
    for name in sizes:
        found[f"gate/{name}"] = partial(gate, name)
        sweep: list[dict[str, Any]] = [{}]
        if not smoke:
            sweep += [{"micro": micro} for micro in (4, 16, 32)]
            sweep += [{"checkpointing": True}, {"compile": True}, {"text_tokens": 256}, {"pixels": 1024, "micro": 4}]
        for changes in sweep:
            label = ",".join(f"{key}={value}" for key, value in changes.items()) or "micro=8"
            found[f"u4g/{name}/{label}"] = partial(u4g, name, {**text, **changes})
        found[f"trace/{name}"] = partial(trace, name)
    pixels = 64 if smoke else 512
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1,) if smoke else (1, 4, 8):
            found[f"vae/{str(dtype).removeprefix('torch.')}/{batch}"] = partial(vae, dtype, batch, pixels)
    found["conditioner"] = partial(conditioner, sizes[-1], 64 if smoke else TEXT_TOKENS)
    for name in sizes:
        found[f"moves/{name}"] = partial(moves, name)
    return found


def run_cell(name: str, cell: Cell, bench: Bench) -> dict[str, Any]:
    """A cell's line: what it found, or why it did not."""
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    line: dict[str, Any] = {"cell": name, "status": "ok"}
    try:
        line |= cell(bench)
        line["peak_gib"] = bench.peak_gib()
    except Exception as error:  # The next cell may well run: that is what the sweep is for.
        memory = is_out_of_memory(error)
        line |= {"status": "out of memory" if memory else "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
        if not memory:
            line["traceback"] = traceback.format_exc()[-3000:]
            bench.release()
    line["cell_s"] = time.perf_counter() - start
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    return line


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run cells inside the budget; returns their lines."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["cell"] for line in out.read_text().splitlines()} if out.exists() else set()
    bench = Bench(options.device, torch.bfloat16 if options.device == "cuda" else torch.float32, options.seed)
    chosen = cells(options.sizes, smoke=options.device == "cpu")
    end, lines = time.monotonic() + options.budget, []
    for name, cell in chosen.items():
        if name in done or not any(name.startswith(prefix) for prefix in options.cells or [""]):
            continue
        if time.monotonic() > end:
            print(f"budget of {options.budget} s is spent: {name} and what follows were not run", flush=True)
            break
        line = run_cell(name, cell, bench)
        lines.append(line)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(_shown(line), flush=True)
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="one CUDA machine: correctness, then sweeps", allow_abbrev=False)
    parser.add_argument("--budget", type=float, default=420.0, help="seconds after which no cell starts (default 420)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["sd35_medium", "sd35_large"])
    parser.add_argument("--cells", nargs="+", metavar="PREFIX", help="only cells whose names begin so")
    parser.add_argument("--threads", type=int, default=4, help="of torch on the CPU (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="outputs/gpu.jsonl", help="lines of JSON, added to (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --sizes tiny runs the same code without one")
    return options


def _set_checkpointing(transformer: Any, on: bool) -> None:
    transformer.enable_gradient_checkpointing() if on else transformer.disable_gradient_checkpointing()


def _flat(line: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, float):
            yield f"{before}{key} {value:.4g}"
        elif value is not None and key not in ("cell", "traceback"):
            yield f"{before}{key} {value}"


def _shown(line: dict[str, Any]) -> str:
    return f"{line['cell']}: {', '.join(_flat(line))}"


if __name__ == "__main__":
    main()

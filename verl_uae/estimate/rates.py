# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What GPUs do in a second: data sheets, assumptions by name, and what was measured on a machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from verl_uae.errors import ConfigError
from verl_uae.registry import known

Clock: TypeAlias = Callable[[], float]

GIB = 1024**3

#: Share of the peak that large products reach in eager mode. Nobody publishes one for these models and RL; 0.4 lies
#: between the 13.9 and 29.3 % of whole training steps in the Mage-Flow report and the 58 % that UniRL's forward passes
#: of SD3.5-Medium reach on an H20 (their issue 144, by our count of operations).
ASSUMED_MFU = 0.4
#: The same of a rate that was measured with one large product: such a product reaches about 0.7 of the data sheet.
ASSUMED_SHARE_OF_PRODUCT = 0.57
#: How many times as fast the blocks of a diffusion transformer are when they are compiled: the least that is published
#: for GPUs of the H100's kind. FLUX.1-dev: 5.58 s and 4.32 s on an H200 (SGLang's pull request 19673), 6.7 s and 4.5 s
#: on an H100 (PyTorch's devlog "torch.compile and Diffusers"). Others: 1.51 for a training step with adapters on B200s
#: (DiffSynth-Studio's pull request 1680), 1.16 for sampling on an A100 (xDiT's pull request 223).
ASSUMED_COMPILED = 1.29
#: Share of the memory bandwidth that token-by-token generation reaches.
ASSUMED_BANDWIDTH_SHARE = 0.5
#: Share of a link that collectives and copies reach: NCCL's bus bandwidth on eight H100 is about 300 of 450 GB/s.
ASSUMED_LINK_SHARE = 0.67
#: Seconds of a step of a ring inside a node and between nodes: NCCL's own model of rings with its protocol "Simple"
#: over NVLink and network (hwLat in src/graph/tuning.cc, release 2.18 and later).
ASSUMED_HOP_S, ASSUMED_HOP_ACROSS_S = 3.4e-6, 14e-6
#: GB/s of a copy between device and memory of the host that is not pinned, which is how modules travel.
ASSUMED_PAGEABLE_GBS = 4.0
#: Share of a GPU that phases may fill, for what the allocator cannot use.
ASSUMED_USABLE = 0.92


@dataclass(frozen=True, slots=True)
class Rates:
    """A GPU type. Numbers are those of data sheets: dense peaks, one direction of a link."""

    memory_gib: float
    bf16_tflops: float
    tf32_tflops: float
    fp32_tflops: float
    bandwidth_gbs: float
    """Of the GPU's memory."""
    nvlink_gbs: float
    """To the other GPUs of its node: NVLink where there is any, else PCIe."""
    pcie_gbs: float
    """To pinned memory of the host."""
    network_gbs: float
    """Of its share of the node's network: a 400 Gb/s adapter for each GPU of a training node, else one of 100 Gb/s
    for all eight."""
    usd_per_hour: float
    """A typical on-demand price; an assumption, prices differ by provider and month."""
    pageable_gbs: float = ASSUMED_PAGEABLE_GBS
    mfu: float = ASSUMED_MFU
    """Share of the peaks that is reached."""
    bandwidth_share: float = ASSUMED_BANDWIDTH_SHARE
    link_share: float = ASSUMED_LINK_SHARE
    hop_s: float = ASSUMED_HOP_S
    hop_across_s: float = ASSUMED_HOP_ACROSS_S
    operator_s: float = 0.0
    """Of a call of an operator, whatever it computes. 0 on GPUs, where calls are made ahead of their kernels."""
    touched_gbs: float = 0.0
    """Of what operators read and write that are no products; 0 counts none of it, as the share of the peak does."""
    measured: str = ""
    """Where from, if these were measured."""

    def peak_tflops(self, dtype: str) -> float:
        """Of work in that dtype, as :attr:`~verl_uae.estimate.meter.Meter.flops` names them."""
        return {"float32": self.fp32_tflops, "tf32": self.tf32_tflops}.get(dtype, self.bf16_tflops)

    def flops_per_second(self, dtype: str) -> float:
        """That are reached of the peak."""
        return self.mfu * self.peak_tflops(dtype) * 1e12


GPUS: Mapping[str, Rates] = {
    "A100-40GB": Rates(40, 312, 156, 19.5, 1555, 300, 25, 50, 1.3),
    "A100-80GB": Rates(80, 312, 156, 19.5, 2039, 300, 25, 50, 1.8),
    "H100-80GB": Rates(80, 989, 495, 67, 3350, 450, 55, 50, 2.9),
    "H200-141GB": Rates(141, 989, 495, 67, 4800, 450, 55, 50, 3.5),
    "B200-180GB": Rates(180, 2250, 1100, 75, 7700, 900, 55, 50, 5.5),
    "L4-24GB": Rates(24, 121, 60, 30, 300, 25, 25, 1.6, 0.7),
    "L40S-48GB": Rates(48, 362, 183, 91.6, 864, 25, 25, 1.6, 1.2),
    # Tensor cores of GeForce sum bf16 in fp32 at half of the rate that is advertised.
    "RTX3090-24GB": Rates(24, 71, 35.6, 35.6, 936, 25, 25, 1.6, 0.25),
    "RTX4090-24GB": Rates(24, 165, 82.6, 82.6, 1008, 25, 25, 1.6, 0.5),
    "RTX5090-32GB": Rates(32, 210, 105, 105, 1792, 50, 50, 1.6, 0.7),
}

#: The type that is taken where none is named.
USUAL_GPU = "H100-80GB"

#: Words in the name of a device that is slower, or faster, than what the rest of its name says: parts of a GPU, other
#: boards, other chips.
_OTHER_BOARDS = {"MIG", "NVL", "LAPTOP", "D", "TI", "SUPER", "MAX"}
#: An H100 with less power for its cores; of an A100 only the power differs.
_SLOWER_WITH_PCIE = "H100"
#: Share by which the memory that a device has differs at most from that of its type, which is in GB.
_MEMORY_DIFFERS = 0.25


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU at hand."""

    name: str
    """As its driver says it."""
    memory_gib: float

    @property
    def type(self) -> str | None:
        """Key of :data:`GPUS`; None where the type is none of those."""
        words = self.name.upper().replace("GEFORCE RTX ", "RTX").replace("-", " ").split()
        if _OTHER_BOARDS & set(words) or {"PCIE", _SLOWER_WITH_PCIE} <= set(words):
            return None
        apart = {
            gpu: abs(self.memory_gib / rates.memory_gib - 1.0)
            for gpu, rates in GPUS.items()
            if gpu.partition("-")[0] in words
        }
        nearest = min(apart, key=lambda gpu: apart[gpu], default=None)
        return nearest if nearest is not None and apart[nearest] <= _MEMORY_DIFFERS else None


#: Prints name and bytes of the first GPU, or null.
_ASK = """
import json, torch
found = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
print(json.dumps(found and [found.name, found.total_memory]))
"""
#: Seconds in which torch is imported and answers.
_ANSWER_S = 120.0


def device_here() -> Device | None:
    """The first GPU of this machine, which stands for all of a run; None where there is none.

    A process of its own asks: one that has asked a GPU holds memory there until it ends, which a caption server would
    miss.
    """
    try:
        done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, timeout=_ANSWER_S, check=True)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if found is None else Device(str(found[0]), found[1] / GIB)


#: Fields that a calibration of a CPU holds beside those of all: there operators are not called ahead of their work, and
#: what is no product takes a share of the time that counts.
CALIBRATED_ON_CPU = ("operator_s", "touched_gbs")
#: Fields that a calibration holds.
CALIBRATED = ("bf16_tflops", "tf32_tflops", "fp32_tflops", "bandwidth_gbs", "pcie_gbs", "pageable_gbs")


def rates_of(gpu: str, calibration: Path | None = None) -> Rates:
    """Rates of a GPU type, with what was measured in place of the data sheet.

    Args:
        gpu: a key of :data:`GPUS`.
        calibration: file of :func:`calibrate`.

    Raises:
        ConfigError: the type is not known, or the file is none of ours.
    """
    if gpu not in GPUS:
        raise ConfigError("--gpu", f"unknown type {gpu!r}.{known(gpu.upper(), GPUS)}")
    if calibration is None:
        return GPUS[gpu]
    try:
        found = json.loads(calibration.read_text(encoding="utf-8"))
        on_cpu = CALIBRATED_ON_CPU[0] in found["rates"]
        names = (*CALIBRATED, *(CALIBRATED_ON_CPU if on_cpu else ()))
        measured = {name: float(found["rates"][name]) for name in names}
        device = str(found["device"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{calibration} is no calibration ({type(error).__name__}: {error}); write one with --calibrate"
        raise ConfigError("--calibration", reason) from error
    if not all(0 < value < 1e9 for value in measured.values()):
        raise ConfigError("--calibration", f"{calibration}: rates must be positive numbers, got {measured}")
    # On a CPU what keeps from the rate of a product is counted beside it.
    share = 1.0 if on_cpu else ASSUMED_SHARE_OF_PRODUCT
    return dataclasses.replace(
        GPUS[gpu], **measured, mfu=share, bandwidth_share=0.7, measured=f"{device}, {calibration}"
    )


def calibrate(path: Path, *, seconds: float = 0.5, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Measure products, memory and copies on the machine at hand, on a CPU what an operator costs besides, and write
    them to a file.

    Args:
        path: of the file, JSON.
        seconds: that each measurement takes at least.
        clock: ``time.process_time`` on a machine that others use too.

    Returns:
        What was written: device, and rates by the names of :class:`Rates`.

    Raises:
        ConfigError: the file cannot be written, which is said before anything is measured.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError("--calibrate", f"{path} cannot be written; name a file in a folder that exists")
    import torch

    from verl_uae.seeding import normal

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    side, count = (8192, 2**30) if device == "cuda" else (1024, 2**26)
    numbers = normal((side, side), "calibration")
    timed = functools.partial(_seconds, device=device, least=seconds, clock=clock)

    def product(dtype: torch.dtype) -> float:
        # Of what a model holds: products of zeros draw less power and may run at a higher clock.
        a, b = (numbers.to(device, dtype) for _ in range(2))
        return 2 * side**3 / timed(lambda: torch.mm(a, b)) / 1e12

    def copy(source: Any, target: Any) -> float:
        return count / timed(lambda: target.copy_(source)) / 1e9

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    fp32 = product(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True
    tf32 = product(torch.float32) if device == "cuda" else fp32
    torch.backends.cuda.matmul.allow_tf32 = before
    on_device = [torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2)]
    host = torch.zeros(count, dtype=torch.uint8)
    pinned = host.pin_memory() if device == "cuda" else host
    rates = {
        "bf16_tflops": product(torch.bfloat16),
        "tf32_tflops": tf32,
        "fp32_tflops": fp32,
        # Read and written.
        "bandwidth_gbs": 2 * copy(on_device[0], on_device[1]),
        "pcie_gbs": copy(pinned, on_device[0]),
        # Into memory that is new each time, as modules travel.
        "pageable_gbs": count / timed(lambda: on_device[0].to("cpu", copy=True)) / 1e9,
    }
    if device == "cpu":
        rates["operator_s"] = _of_operator(timed)
        rates["touched_gbs"] = _touched(fp32 * 1e12, rates["operator_s"], timed)
    found = {"device": name, "torch": torch.__version__, "rates": rates}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _of_operator(timed: Callable[[Callable[[], object]], float]) -> float:
    """Seconds of an operator that has next to nothing to compute, within the modules that call it."""
    import torch
    from torch import nn

    from verl_uae.estimate.meter import Meter

    width = 8
    block = [nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)]
    model = nn.Sequential(*(part for _ in range(25) for part in block))
    row = torch.ones(1, width)
    with torch.no_grad(), Meter("cpu") as meter:
        model(row)
    with torch.no_grad():
        return timed(lambda: model(row)) / meter.operators


def _touched(product_flops: float, operator_s: float, timed: Callable[[Callable[[], object]], float]) -> float:
    """GB/s of what stands between the products of blocks: what these take longer than their products and the calls of
    their operators. Memory that is asked for anew is part of it, so it is measured among products, as it occurs."""
    import torch

    from verl_uae.estimate.meter import Meter
    from verl_uae.seeding import normal

    width, rows, tokens = 128, 32, 84
    layer = torch.nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    given = normal((rows, tokens, width), "calibration of blocks")

    def step() -> None:
        model(given).square().mean().backward()
        model.zero_grad()

    with Meter("cpu") as meter:
        step()
    counted = sum(meter.flops.values()) / product_flops + meter.operators * operator_s
    # On a machine whose products are slower among others nothing may be left.
    rest = max(timed(step) - counted, 0.05 * counted)
    return meter.touched / rest / 1e9


def _seconds(call: Callable[[], object], *, device: str, least: float, clock: Clock) -> float:
    """The median call: a step meets slow moments too."""
    import torch

    def once() -> float:
        start = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    once()
    end, calls = time.perf_counter() + least, list[float]()
    while not calls or time.perf_counter() < end:
        calls.append(once())
    return statistics.median(calls)

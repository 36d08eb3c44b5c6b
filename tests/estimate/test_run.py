# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training command does with its own estimate: a choice before it starts, the share of the peak in its log."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.estimate import world
from tests.estimate.test_estimator import SANA
from tests.estimate.test_stages import U4G, photograph, sized
from verl_uae.chain.records import Caption, Sample
from verl_uae.config.left_open import KEEP, RECOMPUTE
from verl_uae.estimate import composing, rates, run
from verl_uae.estimate.composing import Command, changed, command_of
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.rates import GPUS, Device
from verl_uae.estimate.run import decide, peak_of_run, useful_work
from verl_uae.estimate.work import Asking
from verl_uae.stages.u4g.worker import Layout, sampling_plan


@pytest.mark.parametrize(
    ("name", "memory", "gpu"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 79.3, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100-80GB"),
        ("NVIDIA H200", 139.8, "H200-141GB"),
        ("NVIDIA B200", 178.4, "B200-180GB"),
        ("NVIDIA L4", 22.0, "L4-24GB"),
        ("NVIDIA L40S", 44.4, "L40S-48GB"),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX3090-24GB"),
        ("NVIDIA GeForce RTX 4090", 23.5, "RTX4090-24GB"),
        ("NVIDIA GeForce RTX 5090", 31.4, "RTX5090-32GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, None),
        ("NVIDIA GeForce RTX 4090 D", 23.5, None),
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, None),
        ("NVIDIA H100 PCIe", 79.1, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.5, None),
        ("NVIDIA GH200 480GB", 94.5, None),
        ("NVIDIA RTX A6000", 47.4, None),
        ("AMD Instinct MI300X", 191.7, None),
    ],
)
def test_the_type_of_a_device(name: str, memory: float, gpu: str | None) -> None:
    assert Device(name, memory).type == gpu


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'["NVIDIA H200", 150107979776]', Device("NVIDIA H200", 139.8)),
        (b"null", None),
        (b"Traceback", None),
        (subprocess.CalledProcessError(1, "python"), None),
        (subprocess.TimeoutExpired("python", 1.0), None),
    ],
)
def test_a_process_of_its_own_asks_the_gpu(monkeypatch: pytest.MonkeyPatch, answer: Any, found: Device | None) -> None:
    def answered(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess([], 0, answer)

    monkeypatch.setattr(rates.subprocess, "run", answered)
    device = rates.device_here()
    assert (device is None) == (found is None)
    if device is not None and found is not None:
        assert device.name == found.name and device.memory_gib == pytest.approx(found.memory_gib, abs=0.1)


def test_where_torch_sees_no_gpu_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert rates.device_here() is None


# ---------------------------------------------------------------- activations that are kept

#: As a run has them: nothing is missing.
_THERE = ["uae.decoder.path=org/sana", "uae.conditioner.path=google/gemma-2-2b-it"]
_THERE += [f"data.{name}_files={__file__}" for name in ("train", "val")]
#: Enough pictures at a time for activations to count.
_LARGE = ["uae.u4g.captions.source=column", "uae.train.micro_batch_size=72"]


def composed(*words: str) -> Any:
    """As Hydra gives it to a callback."""
    return composing.composed("uae_u4g", [*SANA, *_THERE, *_LARGE, *words])


@pytest.fixture(scope="module")
def peaks() -> tuple[float, float]:
    """GiB without and with recomputing, on an H100."""
    estimator = Estimator(command_of(composed()))
    without, recomputed = (estimator.estimate("H100-80GB", changes={RECOMPUTE: value}) for value in (False, True))
    return without.peak_gib, recomputed.peak_gib


def decided(monkeypatch: pytest.MonkeyPatch, device: Device | None, *words: str) -> Any:
    monkeypatch.setattr(rates, "device_here", lambda: device)
    config = composed(*words)
    decide(config)
    return config.uae.train.gradient_checkpointing


def test_activations_are_kept_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, peaks: tuple[float, float]
) -> None:
    """On a device that no table has, by its memory alone."""
    without, recomputed = peaks
    assert recomputed < 0.9 * without
    caplog.set_level(logging.INFO, run.logger.name)
    for size, wanted in ((1.01 * without, False), (0.99 * without, True)):
        device = Device("some GPU", size / rates.ASSUMED_USABLE)
        assert decided(monkeypatch, device, f"{RECOMPUTE}=null") is wanted
        said = f"{without:.1f} GiB with false and {recomputed:.1f} GiB with true; {size:.1f} GiB of some GPU are usable"
        assert caplog.messages[-1] == f"{RECOMPUTE}={str(wanted).lower()}: the estimated peak is {said}"


def test_what_is_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_decided", lambda *_: pytest.fail("nothing is left to decide"))
    for value in (True, False):
        assert decided(monkeypatch, None, f"{RECOMPUTE}={str(value).lower()}") is value
    # G4U trains no decoder.
    config = composing.composed("uae_g4u", [*_THERE, f"{RECOMPUTE}=null"])
    decide(config)
    assert config.uae.train.gradient_checkpointing is None


@pytest.mark.parametrize(
    ("words", "device", "wanted", "why"),
    [
        (["trainer.device=cpu"], Device("H100", 80.0), False, "on a CPU activations are kept"),
        ([], None, True, "the memory of the GPUs is not known"),
        (["uae.decoder.path=org/other", "uae.conditioner.path=org/lm"], Device("x", 80.0), True, "cannot be estimated"),
    ],
)
def test_what_cannot_be_estimated(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    words: list[str],
    device: Device | None,
    wanted: bool,
    why: str,
) -> None:
    caplog.set_level(logging.INFO, run.logger.name)
    assert decided(monkeypatch, device, f"{RECOMPUTE}=null", *words) is wanted
    assert why in caplog.messages[-1]


def test_an_estimate_decides_as_the_run_does(peaks: tuple[float, float]) -> None:
    estimator = Estimator(command_of(composed(f"{RECOMPUTE}=null")))
    without, recomputed = peaks
    sizes = {"B200-180GB": without, "L4-24GB": recomputed}
    assert without > rates.ASSUMED_USABLE * GPUS["L4-24GB"].memory_gib, "the case needs more than the small one has"
    for gpu, peak in sizes.items():
        found = estimator.estimate(gpu)
        assert found.peak_gib == pytest.approx(peak)
        assert found.command.config.uae.train.gradient_checkpointing is (gpu == "L4-24GB")
    assert all(RECOMPUTE not in changes for changes, _ in estimator.remedies("L4-24GB"))


#: Ten steps, of which the gradient goes through four.
_COLD = ["uae/decoder=sd35_medium", "uae.decoder.path=org/medium", *_THERE[2:]]
_COLD += ["uae.cold_start.gradient_steps=4", "data.train_batch_size=32", "uae.train.micro_batch_size=4"]


def cold(*words: str) -> Any:
    return composing.composed("uae_cold_start", [*_COLD, *words])


_WORKS: dict[Any, Any] = {}


def estimator_of(asked: Command) -> Estimator:
    """What pieces of the cold start cost is counted once for all tests."""
    found = Estimator(asked)
    found._works = _WORKS
    return found


@pytest.fixture(scope="module")
def kept_peaks() -> list[float]:
    """GiB with 0 to 4 kept steps."""
    estimator = estimator_of(command_of(cold()))
    return [estimator.estimate("H100-80GB", changes={KEEP: kept}).peak_gib for kept in range(5)]


def test_as_many_steps_are_kept_as_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept_peaks: list[float]
) -> None:
    """And what the run decides, an estimate does."""
    caplog.set_level(logging.INFO, run.logger.name)
    monkeypatch.setattr("verl_uae.estimate.estimator.Estimator", estimator_of)
    assert kept_peaks == sorted(kept_peaks) and kept_peaks[4] > 1.5 * kept_peaks[1] > 0
    estimator = estimator_of(command_of(cold(f"{KEEP}=null")))
    sizes = {kept: peak + 0.1 for kept, peak in enumerate(kept_peaks)}
    for wanted, size in {**sizes, 0: kept_peaks[0] - 1.0}.items():
        device = Device("some GPU", size / rates.ASSUMED_USABLE)
        monkeypatch.setattr(rates, "device_here", lambda device=device: device)
        config = cold(f"{KEEP}=null")
        decide(config)
        assert config.uae.cold_start.kept_steps == wanted
        more = min(4, wanted + 1)
        peaks = f"{kept_peaks[more]:.1f} GiB with {more} and {kept_peaks[more - 1]:.1f} GiB with {more - 1}"
        said = f"{KEEP}={wanted}: the estimated peak is {peaks}; {size:.1f} GiB of some GPU are usable"
        assert caplog.messages[-1] == said
        gpu = dataclasses.replace(GPUS["H100-80GB"], memory_gib=size / rates.ASSUMED_USABLE)
        monkeypatch.setitem(GPUS, "H100-80GB", gpu)
        assert estimator.estimate("H100-80GB").decided == {KEEP: wanted}
    # Nothing is left that would make it fit by keeping less.
    assert all(KEEP not in changes for changes, _ in estimator.remedies("H100-80GB"))


def test_both_are_decided_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are kept with what the first choice leaves."""
    monkeypatch.setattr("verl_uae.estimate.estimator.Estimator", estimator_of)
    estimator = estimator_of(command_of(cold()))

    def peak(again: bool, kept: int) -> float:
        return estimator.estimate("H100-80GB", changes={RECOMPUTE: again, KEEP: kept}).peak_gib

    for again, kept, size in ((True, 4, peak(False, 0) - 0.1), (False, 1, peak(False, 1) + 0.1)):
        monkeypatch.setattr(rates, "device_here", lambda size=size: Device("x", size / rates.ASSUMED_USABLE))
        config = cold(f"{KEEP}=null", f"{RECOMPUTE}=null")
        decide(config)
        assert (config.uae.train.gradient_checkpointing, config.uae.cold_start.kept_steps) == (again, kept)


@pytest.mark.parametrize(
    ("words", "device", "wanted"),
    [
        (["trainer.device=cpu"], None, 4),
        ([], None, 0),
        (["uae.train.fsdp_config.strategy=fsdp"], Device("x", 1000.0), 0),
        (["uae.decoder.path=org/other", "uae.conditioner.path=org/lm"], None, 0),
    ],
)
def test_how_many_steps_are_kept_without_an_estimate(
    monkeypatch: pytest.MonkeyPatch, words: list[str], device: Device | None, wanted: int
) -> None:
    monkeypatch.setattr(rates, "device_here", lambda: device)
    config = cold(f"{KEEP}=null", *words)
    decide(config)
    assert config.uae.cold_start.kept_steps == wanted


def test_kept_steps_that_are_too_many_or_too_few_are_named(
    monkeypatch: pytest.MonkeyPatch, kept_peaks: list[float]
) -> None:
    """Where four do not fit and two do, as many as fit are a remedy, not none."""
    asked, gpu = estimator_of(command_of(cold(f"{KEEP}=4"))), "H100-80GB"
    size = (kept_peaks[2] + kept_peaks[3]) / 2 / rates.ASSUMED_USABLE
    monkeypatch.setitem(GPUS, gpu, dataclasses.replace(GPUS[gpu], memory_gib=size))
    found = asked.estimate(gpu)
    assert found.decided == {} and not found.fits
    assert [remedy.decided for changes, remedy in asked.remedies(gpu) if changes == {KEEP: None}] == [{KEEP: 2}]
    better = estimator_of(command_of(cold(f"{KEEP}=0"))).faster("B200-180GB")
    assert better is not None and KEEP in better[0] and better[0][KEEP] is None
    assert better[1].decided == {KEEP: 4}


# ---------------------------------------------------------------- useful operations


def test_the_peak_is_typed_or_the_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(device: Device | None, *words: str) -> Any:
        monkeypatch.setattr(rates, "device_here", lambda: device)
        return peak_of_run(composed(*words))

    typed = peak(None, "uae.supervision.peak_tflops=1.5", "trainer.device=cpu")
    assert typed("bfloat16") == typed("float32") == 1.5
    sheet = peak(Device("NVIDIA H100 80GB HBM3", 79.1))
    assert (sheet("bfloat16"), sheet("tf32"), sheet("float32")) == (989, 495, 67)
    assert peak(Device("some GPU", 80.0)) is None and peak(None) is None
    assert peak(Device("NVIDIA H100 80GB HBM3", 79.1), "trainer.device=cpu") is None


#: TFLOP/s.
PEAK = 0.5


@pytest.fixture
def u4g(tiny: Callable[[str], Path]) -> Command:
    # Nothing is computed twice, so that all is useful.
    return world.asked("u4g", tiny("sd3"), *U4G, *sized("sd3"), "uae.train.lora.rank=2", f"{RECOMPUTE}=false")


def test_use_of_the_peak_against_torchs_counter(u4g: Command, cpu: Any, one_rank: Any) -> None:
    """Of one rank of U4G: operations that its worker really does, over seconds and peak."""
    estimator = Estimator(u4g)
    worker = world.policy_worker(u4g)
    sample = Sample(photograph(u4g.config.uae.decoder.height), Caption(estimator.work.caption, "digest"))
    plan = sampling_plan(u4g.config, worker.family, 0)
    worker.painter.conditions.negative(u4g.config.uae.decoder.negative_prompt)
    drawn = world.counted(lambda: worker.explore([sample], Layout(1, 4, 1, 1), plan.to_dict(), 1))
    learnt = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    work = useful_work(u4g, lambda dtype: PEAK)
    tokens = float(estimator.work.caption_tokens)
    found = work.metrics("u4g", {"draw": 3.0, "update_policy": 7.0, "caption": 0.5}, tokens)
    assert found == {
        # A batch of conditions is always full, and one caption is useful.
        "perf/mfu/draw": pytest.approx(drawn / 3.0 / PEAK / 1e12, rel=0.1),
        "perf/mfu/update_policy": pytest.approx(learnt / 7.0 / PEAK / 1e12, rel=0.1),
    }


def test_what_is_done_again_is_not_useful(u4g: Command) -> None:
    plain, again = (useful_work(changed(u4g, {RECOMPUTE: value}), lambda dtype: PEAK) for value in (False, True))
    # Twice the peak of a dtype is half the seconds of what is computed in it.
    fast = useful_work(u4g, lambda dtype: {"float32": 2 * PEAK}[dtype] if dtype != "tf32" else PEAK)
    for timer, pair in plain.seconds["u4g"].items():
        assert again.seconds["u4g"][timer] == pytest.approx(pair)
    share = {timer: fast.seconds["u4g"][timer][0] / pair[0] for timer, pair in plain.seconds["u4g"].items()}
    # The convolution of patches is the only one of the decoder; those of the VAE are computed in TF32 too.
    assert share["update_policy"] == pytest.approx(0.5, rel=0.01) and 0.51 < share["draw"] < 1.0


_SUPERVISED = {"pretrain": ["uae.pretrain.buckets=false"], "cold_start": ["uae.train.train_projector=false"]}


def every_stage() -> Iterator[Any]:
    learnt = {"caption", "draw", "old_log_prob", "ref", "update_actor"}
    yield pytest.param("g4u", [], {"g4u": learnt}, id="g4u")
    alone = ["actor_rollout_ref.actor.use_kl_loss=false"]
    yield pytest.param("g4u", alone, {"g4u": learnt - {"ref"}}, id="g4u without a reference")
    policy = {"draw", "update_policy"}
    yield pytest.param("u4g", [*U4G, "uae.u4g.reference_kl.coef=0.1"], {"u4g": policy}, id="u4g")
    yield pytest.param("unified", ["uae.train.micro_batch_size=1"], {"g4u": learnt, "u4g": policy}, id="unified")
    joint = ["uae.train.micro_batch_size=1", "uae.unified.schedule=joint"]
    yield pytest.param("unified", joint, {"joint": learnt | policy}, id="joint")
    dgpo = [*U4G, "decoder/objective=dgpo", "uae.u4g.objective.num_sigmas=1"]
    yield pytest.param("u4g", dgpo, {"u4g": policy}, id="u4g that compares the pictures of a group")
    for stage, words in _SUPERVISED.items():
        yield pytest.param(stage, words, {stage: {"learn"}}, id=stage)


@pytest.mark.parametrize(("stage", "words", "timers"), every_stage())
def test_every_stage_has_its_timers(
    stage: str, words: list[str], timers: dict[str, set[str]], tiny: Callable[[str], Path]
) -> None:
    """And captions of any length lie between those that were counted."""
    asked = world.asked(stage, tiny("sd3"), *words, *sized("sd3"), "uae.train.lora.rank=2")
    work = useful_work(asked, lambda dtype: PEAK)
    assert {turn: set(found) for turn, found in work.seconds.items()} == timers
    exact = run._at_peak(Estimator(asked, Asking(24)), lambda dtype: PEAK)
    for turn, found in exact.items():
        expected = {f"perf/mfu/{timer}": pytest.approx(seconds, rel=0.02) for timer, seconds in found.items()}
        assert work.metrics(turn, dict.fromkeys(found, 1.0), 24.0) == expected
        assert all(value > 0 for value in work.metrics(turn, dict.fromkeys(found, 1.0), None).values())

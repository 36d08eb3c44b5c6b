# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import agreement, u4g_cost, u4g_throughput
from benchmarks.agreement import check_agreement, gradient_difference, log_prob_gate
from benchmarks.baseline import Script
from benchmarks.measure import compare, fit_line, interleave
from benchmarks.ours import Ours
from benchmarks.sizes import SIZES
from benchmarks.work import Work, make_plan

TINY = ["--engine", "plain", "--size", "tiny", "--steps", "4", "--window", "2", "--prompts", "2", "--group", "4"]
SHORT = [*TINY, "--micro", "4", "--repetitions", "2", "--warmup", "0"]


def sides(lora_rank: int = 0) -> tuple[Ours, Script]:
    size = replace(SIZES["tiny"], lora_rank=lora_rank, train_projector=not lora_rank)
    work = Work(size, make_plan(4, 2), prompts=2, group=4, micro=4, updates=1, seed=0, device="cpu")
    return u4g_throughput.build_sides(work, "plain", torch.float32)


@pytest.mark.parametrize("rank", [0, 4])
def test_both_sides_give_the_same_latents_loss_and_gradient(rank: int) -> None:
    found = check_agreement(*sides(rank))
    assert found.passed
    assert found.gradient < 1e-4 and found.latents < 1e-4


@pytest.mark.parametrize("groups", [1, 2])
def test_samples_of_a_group_start_alike_on_both_sides_where_that_is_asked(groups: int) -> None:
    size = replace(SIZES["tiny"], lora_rank=0)
    work = Work(
        size, make_plan(4, 2), prompts=2, group=4, micro=4, updates=groups, seed=0, device="cpu", shared_prefix=True
    )
    _, script = u4g_throughput.build_sides(work, "plain", torch.float32)
    # Each update has members of both prompts.
    assert work.origin_N.tolist() == ([0] * 4 + [1] * 4 if groups == 1 else [0, 0, 1, 1] * 2)
    for initial in (
        torch.cat([work.noise(0, 0), work.noise(0, 4)]),
        torch.cat([script._draw(0, -1), script._draw(4, -1)]),
    ):
        for one, origin in zip(initial, work.origin_N.tolist(), strict=True):
            assert torch.equal(one, initial[work.origin_N.tolist().index(origin)])
        assert len(initial.unique(dim=0)) == 2
    captions = work.captions(0)
    assert len(set(zip(captions, work.origin_N.tolist(), strict=True))) == len(set(captions)) == 2


def test_a_side_with_other_noise_levels_is_found() -> None:
    ours, script = sides()
    script.scheduler.sigmas[2] *= 1.01
    found = check_agreement(ours, script)
    assert not found.passed and found.latents > 1e-3


def test_a_side_with_another_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, script = sides()
    theirs = script.gradient

    def larger(*args: Any) -> float:
        loss = theirs(*args)
        for parameter in script.trained:
            parameter.grad.mul_(1.01)
        return loss

    monkeypatch.setattr(script, "gradient", larger)
    found = check_agreement(ours, script)
    assert not found.passed and found.gradient == pytest.approx(0.01 / 1.01, rel=1e-2)


def test_gradients_of_other_parameters_do_not_compare() -> None:
    one = {"a": torch.ones(2)}
    assert gradient_difference({"a": torch.tensor([1.0, 2.0])}, one) == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="gradients of 0 and 1"):
        gradient_difference({}, one)
    with pytest.raises(ValueError, match="all zero"):
        gradient_difference({"a": torch.zeros(2)}, {"a": torch.zeros(2)})


def test_the_gate_passes_and_fails() -> None:
    ours, _ = sides()
    samples = ours.sample(ours.encode(0), 0)
    assert [gate.step for gate in log_prob_gate(ours, samples)] == [1, 2]
    assert all(gate.passed for gate in log_prob_gate(ours, samples))
    samples.log_prob_NK[:, 1] += 2 * agreement.GATE[0]
    assert [gate.passed for gate in log_prob_gate(ours, samples)] == [True, False]


def test_throughput_writes_the_documented_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    u4g_throughput.main([*SHORT, "--json", str(file)])
    report = json.loads(file.read_text())
    assert {"provenance", "engine", "dtype", "work", "agreement", "seconds", "parts", "rates", "gate"} <= set(report)
    assert {"versions", "commit", "device", "seed", "threads"} <= set(report["provenance"])
    assert set(report["parts"]) == {*u4g_throughput.PARTS, "old_log_probs + update", "total", "total, stored"}
    assert len(report["seconds"]["ours"]) == len(report["seconds"]["baseline"]) == 2
    for side in ("ours", "baseline"):
        assert all(second > 0 for run in report["seconds"][side] for second in run.values())
    assert report["parts"]["old_log_probs"]["ours_min"] is None
    total, stored = report["parts"]["total"], report["parts"]["total, stored"]
    assert total["baseline_min"] > stored["baseline_min"] and total["ours_min"] == stored["ours_min"]
    out = capsys.readouterr().out
    assert "same result: yes" in out and "| total, stored |" in out and "pass" in out


@pytest.mark.slow  # Minutes, where a processor computes bf16 in software.
def test_throughput_computes_in_bf16_with_checkpointing() -> None:
    report = u4g_throughput.main([*SHORT, "--dtype", "bf16", "--checkpointing"])
    assert report["agreement"]["passed"] and report["dtype"] == "bfloat16"


@pytest.mark.slow  # Two processes that import verl.
def test_steps_together_are_measured_on_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ranks", "2", "--size", "tiny", "--steps", "6", "--window", "3", "--prompts", "2", "--group", "4"]
    file = tmp_path / "report.json"
    u4g_throughput.main([*words, "--micro", "2", "--repetitions", "2", "--warmup", "0", "--json", str(file)])
    found = json.loads(file.read_text())["replay"]
    assert found["together"] == 3
    # Four micro-batches of three steps, forward and back.
    assert found["bytes_gathered"] == 2 * 4 * 3 * found["bytes_once"] and found["gather_s"] > 0
    for clock in ("wall", "processor"):
        assert found[clock]["ratio"] > 0 and found[clock]["ours_min"] > 0
    assert "| 3 of 6, 8 samples, 2 updates, 2 ranks | wall |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--replay", "2"], "--replay, --compile and --shared-prefix need --engine verl"),
        (["--engine", "plain", "--compile"], "--replay, --compile and --shared-prefix need --engine verl"),
        (["--ranks", "2", "--dtype", "bf16"], "--ranks are of a CPU"),
        (["--group", "3"], "2 x 3 samples do not divide into 2 updates in micro-batches of"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        u4g_throughput.parse([*TINY, *words])
    assert error in capsys.readouterr().err


def test_work_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 3 samples do not divide into 1 updates in micro-batches of 4"):
        Work(SIZES["tiny"], make_plan(4, 2), prompts=2, group=3, micro=4, updates=1, seed=0, device="cpu")


def test_cost_writes_a_line_for_every_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(u4g_cost, "SWEEPS", {"group": (4, 8), "steps": (4, 5), "window": (1, 2)})
    file = tmp_path / "cost.json"
    u4g_cost.main(["--engine", "plain", "--repetitions", "1", "--warmup", "0", "--json", str(file)])
    report = json.loads(file.read_text())
    assert {name: found["x"] for name, found in report["sweeps"].items()} == {
        "group": [4.0, 8.0],
        "steps": [4.0, 5.0],
        "window": [1.0, 2.0],
    }
    assert {"versions", "commit", "device", "seed"} <= set(report["provenance"])
    for found in report["sweeps"].values():
        assert set(found["lines"]) == {"sampling", "update", "total"}
        assert found["seconds"]["total"][0] == pytest.approx(sum(found["seconds"][p][0] for p in u4g_cost.PARTS))


def test_a_line_is_found_exactly() -> None:
    line = fit_line([1.0, 2.0, 4.0, 8.0], [5.0, 7.0, 11.0, 19.0])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2.0, 3.0, 1.0))
    assert fit_line([0.0, 1.0, 2.0], [0.0, 1.0, 0.0]).r2 == pytest.approx(0.0)
    with pytest.raises(ValueError, match="two different x"):
        fit_line([1.0, 1.0], [1.0, 2.0])


def test_repetitions_take_turns_and_ratios_are_of_pairs() -> None:
    order: list[tuple[str, int]] = []
    runs = [lambda n, name=name: order.append((name, n)) or {"part": float(n)} for name in "ab"]
    assert interleave(runs, repetitions=2, warmup=1) == [[{"part": 1.0}, {"part": 2.0}]] * 2
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    part = compare([1.0, 2.0, 4.0], [3.0, 2.0, 8.0])
    assert (part.ratio, part.ratio_low, part.ratio_high, part.ours_min, part.baseline_median) == (
        2.0,
        1.0,
        3.0,
        1.0,
        3.0,
    )
    assert compare([], [1.0]).ratio is None

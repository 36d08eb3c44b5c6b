# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch

from verl_uae.flow.config import TABLES
from verl_uae.flow.schedule import sigma_schedule


def shifted(t: Fraction, shift: int) -> Fraction:
    return shift * t / (1 + (shift - 1) * t)


def grid(end: Fraction, points: int) -> list[Fraction]:
    return [1 - (1 - end) * Fraction(i, max(1, points - 1)) for i in range(points)]


def exact_table(steps: int, shift: int, table: str) -> list[Fraction]:
    """The three tables in exact arithmetic."""
    last = Fraction(1, 1000)
    if table == "even":
        return [shifted(t, shift) for t in grid(Fraction(0), steps + 1)]
    end = last if table == "terminal" else shifted(last, shift)
    return [*(shifted(t, shift) for t in grid(end, steps)), Fraction(0)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("steps", "shift"), [(1, 3), (2, 3), (4, 1), (10, 3), (20, 3), (28, 3), (40, 3), (7, 6)])
def test_the_closed_form_in_exact_arithmetic(steps: int, shift: int, table: str) -> None:
    found = sigma_schedule(steps, float(shift), table)
    assert found.dtype == torch.float32 and found.shape == (steps + 1,)
    for sigma, exact in zip(found.tolist(), exact_table(steps, shift, table), strict=True):
        assert sigma == pytest.approx(float(exact), rel=2**-23)
    assert found[0] == 1.0 and found[-1] == 0.0 and bool((found.diff() < 0).all())


#: Single shift 3 on even points; diffusers' own numbers for shift 3, which flow-matching code in the wild runs with.
GOLDEN_10 = {
    "even": [1, 0.9643, 0.9231, 0.8750, 0.8182, 0.7500, 0.6667, 0.5625, 0.4286, 0.2500, 0],
    "double_shift": [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0],
}
GOLDEN_TAIL = {
    (10, "terminal"): [0.2745, 0.0030, 0],
    (20, "terminal"): [0.1452, 0.0030, 0],
    (28, "terminal"): [0.1059, 0.0030, 0],
    (20, "double_shift"): [0.1498, 0.0089, 0],
    (28, "double_shift"): [0.1109, 0.0089, 0],
    (20, "even"): [0.2500, 0.1364, 0],
    (28, "even"): [0.1875, 0.1000, 0],
}


def test_golden_tables_of_shift_3() -> None:
    for table, golden in GOLDEN_10.items():
        assert sigma_schedule(10, 3.0, table).tolist() == pytest.approx(golden, abs=6e-5)
    for (steps, table), golden in GOLDEN_TAIL.items():
        assert sigma_schedule(steps, 3.0, table)[-3:].tolist() == pytest.approx(golden, abs=6e-5)


@pytest.mark.parametrize(
    ("steps", "table", "digest"),
    [
        (10, "even", "7e1b7168ff8e0a57"),
        (10, "terminal", "4969bde926368a43"),
        (10, "double_shift", "6e6dbb89d273c37f"),
        (20, "even", "2accacc2d00d2f4a"),
        (20, "terminal", "98d8e54e977c4903"),
        (20, "double_shift", "288c54b117a84f76"),
        (28, "even", "4569c08fc5ad6a92"),
        (28, "terminal", "41e4ff7c8c4c6c94"),
        (28, "double_shift", "aaca3c374d8d6dc6"),
    ],
)
def test_tables_never_change_by_a_bit(steps: int, table: str, digest: str) -> None:
    assert hashlib.sha256(sigma_schedule(steps, 3.0, table).numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("steps", [10, 20, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_double_shift_is_what_diffusers_yields_by_default(steps: int, shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.allclose(scheduler.sigmas, sigma_schedule(steps, shift, "double_shift"), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 20, 28])
def test_even_is_what_diffusers_yields_for_even_sigmas(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    assert torch.allclose(scheduler.sigmas, sigma_schedule(steps, 3.0), rtol=0.0, atol=1e-6)


def test_without_shift_the_two_diffusers_like_tables_are_one() -> None:
    assert torch.equal(sigma_schedule(10, 1.0, "terminal"), sigma_schedule(10, 1.0, "double_shift"))
    assert len({tuple(sigma_schedule(10, 3.0, table).tolist()) for table in TABLES}) == 3


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -2.0), (4, float("nan"))])
def test_out_of_range(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        sigma_schedule(steps, shift)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="table must be one of even, terminal, double_shift, got 'diffusers'"):
        sigma_schedule(10, 3.0, "diffusers")  # type: ignore[arg-type]

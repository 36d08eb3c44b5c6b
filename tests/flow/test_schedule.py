# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from verl_uae.flow.schedule import schedule_hash, sigma_schedule


@pytest.mark.parametrize(("steps", "shift"), [(1, 3), (4, 1), (10, 3), (40, 3), (7, 6)])
def test_the_closed_form_in_exact_arithmetic(steps: int, shift: int) -> None:
    table = sigma_schedule(steps, float(shift))
    assert table.dtype == torch.float32 and table.shape == (steps + 1,)
    for index, sigma in enumerate(table.tolist()):
        t = Fraction(steps - index, steps)
        exact = shift * t / (1 + (shift - 1) * t)
        assert sigma == pytest.approx(float(exact), rel=2**-23)
    assert table[0] == 1.0 and table[-1] == 0.0 and bool((table.diff() < 0).all())


def test_golden_values_of_the_default_table() -> None:
    assert sigma_schedule(10, 3.0).tolist() == [
        *(1.0, 0.9642857313156128, 0.9230769276618958, 0.875, 0.8181818127632141, 0.75),
        *(0.6666666865348816, 0.5625, 0.4285714328289032, 0.25, 0.0),
    ]
    assert schedule_hash(sigma_schedule(10, 3.0)) == "7e1b7168ff8e0a57"


def test_diffusers_shifts_its_end_point_too() -> None:
    """Our table is diffusers' when it is given even sigmas; its own default bends the tail twice."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10).tolist())
    assert torch.allclose(scheduler.sigmas, sigma_schedule(10, 3.0), atol=1e-6)
    scheduler.set_timesteps(10)
    low = 3 * 0.001 / (1 + 2 * 0.001)
    t = np.linspace(1.0, low, 10)
    assert np.allclose(scheduler.sigmas[:-1].numpy(), 3 * t / (1 + 2 * t), atol=1e-6)
    assert abs(scheduler.sigmas[-2].item() - sigma_schedule(10, 3.0)[-2].item()) > 0.2


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -2.0), (4, float("nan"))])
def test_out_of_range(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        sigma_schedule(steps, shift)


def test_the_hash_sees_one_bit() -> None:
    table = sigma_schedule(10, 3.0)
    changed = table.clone()
    changed[5] = torch.nextafter(changed[5], torch.tensor(1.0))
    assert schedule_hash(changed) != schedule_hash(table) == schedule_hash(table.clone().double())

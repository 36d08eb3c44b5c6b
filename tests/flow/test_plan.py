# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle

import pytest
import torch

from verl_uae.flow.config import WindowConfig
from verl_uae.flow.kernels import coefficients
from verl_uae.flow.plan import PlanMismatch, SamplingPlan, make_plan
from verl_uae.flow.schedule import sigma_schedule


def plan(**change) -> SamplingPlan:
    values = {"sigmas": tuple(sigma_schedule(10, 3.0).tolist()), "kernel": "cps", "noise_level": 0.8, "window": (1, 2)}
    return SamplingPlan(**{**values, **change})


def test_the_kernel_acts_inside_the_window_and_euler_outside() -> None:
    found = plan(kernel="flow_sde", noise_level=0.7, window=(0, 1, 2))
    table = found.sigmas
    assert found.num_steps == 10
    for index in range(10):
        kernel = "flow_sde" if index < 3 else "ode"
        assert found.coefficients(index) == coefficients(kernel, table[index], table[index + 1], 0.7, table[1])
    for index in (-1, 10):
        with pytest.raises(IndexError):
            found.coefficients(index)


def test_a_plan_is_a_value() -> None:
    assert plan() == plan() and len({plan(), plan()}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().guidance = 2.0  # type: ignore[misc]
    assert plan(sigmas=list(plan().sigmas), window=[1, 2]) == plan()
    assert plan(guidance=2).digest == plan(guidance=2.0).digest


def test_both_sides_have_one_digest_after_any_transport() -> None:
    there = plan(guidance=1.1, noise_level=1 / 3)
    for here in (
        SamplingPlan.from_dict(json.loads(json.dumps(there.to_dict()))),
        pickle.loads(pickle.dumps(there)),
        copy.deepcopy(there),
    ):
        assert here == there and here.digest == there.digest
        here.check(there.digest)
    assert len(there.digest) == 16 and int(there.digest, 16) >= 0


def test_the_digest_sees_the_last_bit_of_every_field() -> None:
    sigmas = list(plan().sigmas)
    sigmas[5] = torch.nextafter(torch.tensor(sigmas[5]), torch.tensor(1.0)).item()
    others = [
        plan(sigmas=tuple(sigmas)),
        plan(kernel="dance"),
        plan(noise_level=math.nextafter(0.8, 1.0)),
        plan(window=(1, 2, 3)),
        plan(window=()),
        plan(guidance=math.nextafter(1.0, 2.0)),
        plan(reduction="raw"),
    ]
    assert len(others) >= len(dataclasses.fields(SamplingPlan))
    assert len({plan().digest, *(other.digest for other in others)}) == 1 + len(others)


def test_the_digest_is_pinned() -> None:
    """Batches that were drawn before an update of the package stay valid after it, or fail here first."""
    assert plan().digest == "8443f25aee3c5adc"


def test_a_foreign_plan_is_named_and_refused() -> None:
    with pytest.raises(PlanMismatch, match=f"plan {plan(window=(3,)).digest}, here it is {plan().digest}") as caught:
        plan().check(plan(window=(3,)).digest)
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": (1.0,)}, "sigmas must be two or more"),
        ({"sigmas": (1.0, 0.5, 0.5, 0.0)}, "fall"),
        ({"sigmas": (0.0, 0.5, 1.0)}, "fall"),
        ({"sigmas": (1.5, 0.5, 0.0)}, "within"),
        ({"sigmas": (1.0, 0.5, -0.5)}, "within"),
        ({"sigmas": (1.0, math.nan, 0.0)}, "fall"),
        ({"sigmas": (1.0, 0.9, 0.5, 0.0)}, "fp32 numbers.*got 0.9"),
        ({"kernel": "sde"}, "kernel must be one of"),
        ({"noise_level": 1.5}, "noise_level of cps"),
        ({"window": (2, 1)}, "rising indices of 10 steps"),
        ({"window": (1, 1)}, "rising indices"),
        ({"window": (-1, 0)}, "rising indices"),
        ({"window": (9, 10)}, "rising indices"),
        ({"window": (8, 9)}, "step 9 is deterministic with kernel cps"),
        ({"kernel": "ode"}, "step 1 is deterministic with kernel ode"),
        ({"noise_level": 0.0}, "step 1 is deterministic"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"reduction": "none"}, "reduction must be one of"),
    ],
)
def test_impossible_plans_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**change)


def test_from_dict_refuses_missing_and_unknown_fields() -> None:
    values = plan().to_dict()
    for wrong in ({**values, "eta": 0.8}, {k: v for k, v in values.items() if k != "guidance"}):
        with pytest.raises(ValueError, match="a sampling plan has the fields"):
            SamplingPlan.from_dict(wrong)


def test_make_plan_draws_one_window_for_the_batch_of_an_iteration() -> None:
    table, settings = sigma_schedule(10, 3.0), WindowConfig()
    windows = set()
    for iteration in range(30):
        first = make_plan(table, "cps", 0.8, settings, iteration=iteration, seed=5)
        again = make_plan(table, "cps", 0.8, settings, iteration=iteration, seed=5)
        assert first == again and first.digest == again.digest
        assert first.sigmas == tuple(table.tolist())
        windows.add(first.window)
    assert windows == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    flow_grpo = make_plan(table, "flow_sde", 0.7, WindowConfig(mode="all"), iteration=0, seed=0, guidance=4.5)
    assert flow_grpo.window == tuple(range(9)) and flow_grpo.guidance == 4.5


def test_ode_plans_have_no_window() -> None:
    found = make_plan(sigma_schedule(4), "ode", 0.0, WindowConfig(), iteration=0, seed=0)
    assert found.window == () and all(found.coefficients(i).std == 0.0 for i in range(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_table_of_another_dtype_than_fp32_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"sigmas must be torch\.float32"):
        make_plan(sigma_schedule(10, 3.0).to(dtype), "cps", 0.8, WindowConfig(), iteration=0, seed=0)


def test_no_fitting_window_is_an_error_of_the_settings() -> None:
    with pytest.raises(ValueError, match=r"window\.min_std"):
        make_plan(sigma_schedule(40, 3.0), "dance", 0.1, WindowConfig(), iteration=0, seed=0)


def test_noise_weights_are_in_proportion_to_the_deviation_and_their_mean_is_one() -> None:
    """Over the nine trained steps of diffusers' table: TempFlow-GRPO's code multiplies the deviation by 2.25."""
    table = tuple(sigma_schedule(10, 3.0, "double_shift").tolist())
    found = plan(sigmas=table, kernel="flow_sde", noise_level=0.7, window=tuple(range(9)))
    stds = [0.7 * math.sqrt(s / (1 - (table[1] if s == 1 else s)) * (s - t)) for s, t in itertools.pairwise(table[:10])]
    factors = [weight / std for weight, std in zip(found.noise_weights, stds, strict=True)]
    assert sum(found.noise_weights) / 9 == pytest.approx(1.0)
    assert factors == pytest.approx([factors[0]] * 9) and factors[0] == pytest.approx(2.25, abs=0.005)
    assert plan().noise_weights[0] > 1.0 > plan().noise_weights[1], "early steps are noisier"
    assert plan(window=(3,)).noise_weights == (1.0,) and plan(kernel="ode", window=()).noise_weights == ()

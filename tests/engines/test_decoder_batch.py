# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cutting and blanking; tests/engines/test_decoder.py trains on mini-batches and has what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_uae.engines.decoder_batch import read_batch, stored
from verl_uae.families.family import Condition
from verl_uae.flow.kernels import step
from verl_uae.flow.objective import ForwardInputs, TransitionInputs
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.seeding import normal

PLAN = SamplingPlan(tuple(sigma_schedule(5).tolist()), "flow_sde", 0.7, (1, 3))
LATENT = (2, 4, 4)
ROWS = 5


def transitions() -> dict[str, torch.Tensor]:
    return {
        **stored(Condition(normal((ROWS, 3, 6), "states"), (3, 1, 2, 2, 1))),
        "weight_B": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]),
        "advantage_B": normal((ROWS,), "advantage"),
        "x_BKCHW": normal((ROWS, 2, *LATENT), "x"),
        "x_next_BKCHW": normal((ROWS, 2, *LATENT), "next"),
        "old_log_prob_BK": normal((ROWS, 2), "log_prob"),
        "old_mean_BKCHW": normal((ROWS, 2, *LATENT), "mean"),
    }


def forwards() -> dict[str, torch.Tensor]:
    return {
        **{name: transitions()[name] for name in ("states_BLE", "length_B", "weight_B", "advantage_B")},
        "x0_BCHW": normal((ROWS, *LATENT), "x0"),
        "noise_BTCHW": normal((ROWS, 3, *LATENT), "noise"),
        "sigma_BT": normal((ROWS, 3), "sigma").sigmoid(),
        "old_velocity_BTCHW": normal((ROWS, 3, *LATENT), "old"),
    }


def packed(fields: dict[str, torch.Tensor], **entries: Any) -> TensorDict:
    data = TensorDict(fields, batch_size=ROWS)
    settings = {"plan": PLAN.to_dict(), "plan_digest": PLAN.digest, "micro_batch_size_per_gpu": 2, "total_weight": 4.0}
    tu.assign_non_tensor(data, **{**settings, **entries})
    return data


def test_is_cut_into_consecutive_samples_the_last_cut_being_short() -> None:
    batch = read_batch(packed(transitions()))
    cuts = list(batch.micro_batches("cpu"))
    assert [len(cut.fields["weight_B"]) for cut in cuts] == [2, 2, 1] and batch.places == 2
    advantages = torch.cat([cut.fields["advantage_B"] for cut in cuts])
    assert torch.equal(advantages[[0, 1, 3, 4]], transitions()["advantage_B"][[0, 1, 3, 4]])
    # As long as the longest of a cut, as they were when they were sampled.
    assert [cut.condition.lengths for cut in cuts] == [(3, 1), (2, 2), (1,)]
    assert [cut.condition.states.shape[1] for cut in cuts] == [3, 2, 1]


def test_transition_inputs_are_those_of_the_windows_step() -> None:
    fields = transitions()
    (cut,) = read_batch(packed(fields, micro_batch_size_per_gpu=8)).micro_batches("cpu")
    velocity = normal((ROWS, *LATENT), "velocity")
    x, sigma = cut.position(1)
    assert torch.equal(x[0], fields["x_BKCHW"][0, 1]) and torch.equal(sigma, torch.full((ROWS,), PLAN.sigmas[3]))
    inputs = cut.inputs(1, velocity)
    c = PLAN.coefficients(3)
    expected = step(c, fields["x_BKCHW"][:, 1], velocity, x_next_BCHW=fields["x_next_BKCHW"][:, 1])
    assert isinstance(inputs, TransitionInputs)
    assert torch.equal(inputs.log_prob_B[[0, 4]], expected.log_prob_B[[0, 4]])
    assert torch.equal(inputs.mean_BCHW[4], expected.mean_BCHW[4])
    assert torch.equal(inputs.old_log_prob_B[[0, 4]], fields["old_log_prob_BK"][[0, 4], 1])
    assert (inputs.std, inputs.sigma, inputs.kernel) == (c.std, PLAN.sigmas[3], "flow_sde")
    assert inputs.step_size == PLAN.sigmas[3] - PLAN.sigmas[4]
    taken = cut.old(1, velocity)
    assert torch.equal(taken[0][4], expected.log_prob_B[4]) and torch.equal(taken[1][4], expected.mean_BCHW[4])


@pytest.mark.parametrize("fields", [transitions(), forwards()], ids=["transition", "forward"])
def test_invalid_samples_become_their_own_old_policy(fields: dict[str, torch.Tensor]) -> None:
    for name in set(fields) - {"weight_B", "length_B"}:
        fields[name][2] = float("nan")
    (cut,) = read_batch(packed(fields, micro_batch_size_per_gpu=8)).micro_batches("cpu")
    velocity = normal((ROWS, *LATENT), "velocity").requires_grad_()
    inputs = cut.inputs(0, velocity)
    if isinstance(inputs, TransitionInputs):
        assert torch.equal(inputs.log_prob_B[2], inputs.old_log_prob_B[2]) and inputs.log_prob_B.isfinite().all()
        assert not inputs.old_log_prob_B.requires_grad and not inputs.old_mean_BCHW.requires_grad
    else:
        assert torch.equal(inputs.old_velocity_BCHW[2], velocity[2]) and not inputs.old_velocity_BCHW.requires_grad
    assert inputs.advantage_B[2] == 0.0 and all(tensor.isfinite().all() for tensor in cut.fields.values())


def test_forward_inputs_are_noised_to_their_own_levels() -> None:
    fields = forwards()
    (cut,) = read_batch(packed(fields, micro_batch_size_per_gpu=8)).micro_batches("cpu")
    x, sigma = cut.position(2)
    assert torch.equal(sigma[4], fields["sigma_BT"][4, 2])
    torch.testing.assert_close(x[4], (1 - sigma[4]) * fields["x0_BCHW"][4] + sigma[4] * fields["noise_BTCHW"][4, 2])
    inputs = cut.inputs(2, normal((ROWS, *LATENT), "velocity"))
    assert isinstance(inputs, ForwardInputs) and torch.equal(inputs.x_sigma_BCHW, x)
    assert torch.equal(inputs.old_velocity_BCHW[4], fields["old_velocity_BTCHW"][4, 2])


def test_penalties_on_predicted_data_weigh_by_the_squared_noise_level() -> None:
    fields, velocity = forwards(), normal((ROWS, *LATENT), "velocity")
    found = {}
    for form in ("velocity", "x0"):
        data = packed(fields, micro_batch_size_per_gpu=8, reference_kl={"form": form, "coef": 1.0})
        (cut,) = read_batch(data).micro_batches("cpu")
        found[form] = cut.penalty(1, velocity, torch.zeros_like(velocity))
    torch.testing.assert_close(found["velocity"], velocity.square().flatten(1).mean(1))
    torch.testing.assert_close(found["x0"][4], found["velocity"][4] * fields["sigma_BT"][4, 1] ** 2)


def test_a_penalty_with_a_floor_weighs_by_the_reward() -> None:
    """From the floor at the worst to the coefficient at the best, linear between, cut beyond."""
    entry = {"form": "velocity", "coef": 0.5, "floor": 0.1, "advantage_max": 2.0, "guidance": None}
    penalty = read_batch(packed(forwards(), reference_kl=entry)).penalty
    found = penalty.weight(torch.tensor([-3.0, -2.0, 0.0, 1.0, 2.0, 9.0]))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.1, 0.3, 0.4, 0.5, 0.5]))
    assert read_batch(packed(forwards(), reference_kl={**entry, "floor": None})).penalty.weight(found) == 0.5


def test_means_of_groups_and_the_reference_reach_the_objective() -> None:
    fields = {**forwards(), "group_B": torch.tensor([3, 3, 4, 4, 4])}
    batch = read_batch(packed(fields, micro_batch_size_per_gpu=8))
    assert torch.equal(batch.fields["group_B"], fields["group_B"])
    means = normal((ROWS, 3), "means")
    (cut,) = dataclasses.replace(batch, fields={**batch.fields, "group_mean_BK": means}).micro_batches("cpu")
    velocity, reference = normal((ROWS, *LATENT), "velocity"), normal((ROWS, *LATENT), "reference")
    inputs = cut.inputs(2, velocity, reference)
    assert isinstance(inputs, ForwardInputs) and inputs.reference_velocity_BCHW is reference
    assert torch.equal(inputs.group_mean_B[[0, 4]], means[[0, 4], 2]) and inputs.group_mean_B[2] == 0.0


def test_steps_weigh_alike_unless_asked() -> None:
    assert read_batch(packed(transitions())).step_weights == ()
    found = read_batch(packed(transitions(), step_weights="noise")).step_weights
    stds = [PLAN.coefficients(index).std for index in PLAN.window]
    assert found == pytest.approx([std / (sum(stds) / 2) for std in stds])


@pytest.mark.parametrize(
    ("together", "passes"), [(1, [[0], [1], [2]]), (2, [[0, 1], [2]]), (3, [[0, 1, 2]]), (9, [[0, 1, 2]])]
)
def test_places_go_through_the_model_so_many_at_a_time(together: int, passes: list[list[int]]) -> None:
    batch = read_batch(packed(forwards(), replay_steps=together))
    assert [list(places) for places in batch.passes] == passes


def test_on_policy_every_sample_is_its_own_old_policy() -> None:
    fields = transitions()
    del fields["old_mean_BKCHW"]
    (cut,) = read_batch(packed(fields, micro_batch_size_per_gpu=8, on_policy=True)).micro_batches("cpu")
    velocity = normal((ROWS, *LATENT), "velocity").requires_grad_()
    inputs = cut.inputs(1, velocity)
    assert isinstance(inputs, TransitionInputs)
    assert torch.equal(inputs.old_log_prob_B, inputs.log_prob_B) and torch.equal(inputs.old_mean_BCHW, inputs.mean_BCHW)
    assert inputs.log_prob_B.requires_grad
    assert not inputs.old_log_prob_B.requires_grad and not inputs.old_mean_BCHW.requires_grad
    apart = cut.sampler_difference(1, inputs)
    expected = (inputs.log_prob_B - fields["old_log_prob_BK"][:, 1]).abs()
    assert torch.equal(apart[[0, 1, 3, 4]], expected[[0, 1, 3, 4]]) and not apart.requires_grad


def test_an_empty_window_has_nothing_to_train() -> None:
    plan = SamplingPlan(PLAN.sigmas, "ode", 0.0, ())
    fields = {name: tensor[:, :0] if "BK" in name else tensor for name, tensor in transitions().items()}
    with pytest.raises(ValueError, match="no step to train"):
        read_batch(packed(fields, plan=plan.to_dict(), plan_digest=plan.digest))


def test_settings_must_be_there() -> None:
    data = TensorDict(transitions(), batch_size=ROWS)
    with pytest.raises(ValueError, match="lacks plan"):
        read_batch(data)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of tests/engines/policy_probe.py: real FSDP2 on one and on two gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.policy_world import PLAN

Facts = dict[str, Any]


@pytest.mark.parametrize("run", ["one/4 at once", "one/1 at once", "two/4 at once", "two/replicated", "two/kept"])
def test_ranks_and_micro_batches_do_not_change_the_updates(policy: Facts, run: str) -> None:
    ranks, name = run.split("/")
    expected, found = policy["one"]["8 at once"], policy[ranks][name]
    assert len(expected["losses"]) == 4 and expected["losses"][0] - expected["losses"][-1] > 0.005
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-6)
    for figure, value in expected["figures"].items():
        assert found["figures"][figure] == pytest.approx(value, abs=1e-6), figure


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_the_ratio_of_the_first_update_is_exactly_one_and_its_gradient_is_not_zero(policy: Facts, ranks: str) -> None:
    facts = policy[ranks]["ratio"]
    for name in ("same", "recomputed"):
        assert facts[name]["ratio/min"] == facts[name]["ratio/max"] == 1.0
        assert facts[name]["k/max"] == facts[name]["log_prob_difference/max"] == facts[name]["clipped_low/mean"] == 0.0
    assert facts["same gradient"] > 1e-3
    assert 0.0 < facts["rebatched"]["log_prob_difference/max"] <= 1e-6
    assert facts["rebatched gradient"] == pytest.approx(facts["same gradient"], rel=1e-4)


@pytest.mark.parametrize("objective", ["flow_grpo", "dppo", "grpo_guard"])
def test_an_update_without_learning_rate_leaves_every_figure_on_policy(policy: Facts, objective: str) -> None:
    facts = policy["one"]["still"]
    assert facts[f"{objective} moved"] == 0.0 and facts[f"{objective} gradient"] > 1e-3
    second = facts[objective]
    assert second["ratio/min"] == second["ratio/max"] == 1.0
    assert second["k/max"] == second["log_prob_difference/max"] == 0.0
    sides = [value for name, value in second.items() if name.startswith(("clipped_", "masked_"))]
    assert sides == [0.0, 0.0]


def test_figures_are_per_step_and_over_all(policy: Facts) -> None:
    facts = policy["one"]["ratio"]["same"]
    both = [facts[f"{step}/velocity_rms/mean"] for step in ("step01", "step02")]
    assert facts["velocity_rms/mean"] == pytest.approx(sum(both) / 2) and both[0] != both[1]
    assert facts["valid"] == 8.0 and not any(name.startswith(("step00", "step03")) for name in facts)


def test_only_the_steps_of_the_window_are_trained(policy: Facts) -> None:
    facts = policy["one"]["gradient"]
    assert facts["asked"] == pytest.approx([600.0, 800.0]), "timesteps the transformer saw in an update"
    assert facts["trained"] == ["A.default.weight", "B.default.weight"]


def test_checkpointing_and_accumulation_change_no_gradient(policy: Facts) -> None:
    assert policy["one"]["gradient"]["checkpointing"] == 0.0
    assert policy["one"]["gradient"]["accumulation"] < 1e-7


def test_invalid_samples_count_for_nothing_whatever_they_hold(policy: Facts) -> None:
    facts = policy["one"]["mask"]
    assert facts["valid"] == [2.0] and abs(facts["loss"]) < 1e3
    assert facts["gradient difference"] < 1e-7


def test_a_mini_batch_without_valid_samples_moves_nothing(policy: Facts) -> None:
    facts = policy["one"]["mask"]
    assert facts["empty"] == {"loss": [], "metrics": {"valid": [0.0], "updates_left_out": [1.0]}}
    assert facts["empty moved"] == 0.0, "momentum and weight decay move weights without a gradient"


@pytest.mark.parametrize(
    ("kind", "trained", "shadows"),
    [
        ("lora", ["transformer"], []),
        ("full", ["transformer"], ["reference"]),
        ("both", ["projector", "transformer"], ["reference"]),
    ],
)
def test_the_reference_is_the_policy_before_training(
    policy: Facts, kind: str, trained: list[str], shadows: list[str]
) -> None:
    facts = policy["one"]["reference"]
    assert facts[f"{kind} is base"] and facts[f"{kind} restored"] and facts[f"{kind} moved"] > 0.1
    assert facts[f"{kind} trained"] == trained and facts[f"{kind} shadows"] == shadows


@pytest.mark.parametrize("kind", ["lora", "full", "both"])
def test_the_reference_penalty_is_the_divergence_of_the_transitions(policy: Facts, kind: str) -> None:
    facts = policy["one"]["reference"][kind]
    assert facts["metric"] == pytest.approx(facts["expected"], rel=1e-5) and facts["expected"] > 1e-3
    assert facts["difference"] == pytest.approx(10.0 * facts["expected"], rel=1e-4)


def test_a_reference_that_was_not_kept_is_an_error(policy: Facts) -> None:
    assert policy["one"]["reference"]["none kept"].startswith("ConfigError: uae.u4g.reference_kl.coef: no reference")


def test_weight_copies_of_shards_average_swap_and_restore(policy: Facts) -> None:
    facts = policy["two"]["shadow"]
    assert facts["error"] == "ZeroDivisionError: "
    assert facts["average"] < 1e-7
    assert facts["seen"], "the module went on with weights it had gathered before"
    assert facts["restored"] and facts["exact"]
    assert "no weights named 'old' are kept; there are ['ema']" in facts["unknown"]


def test_in_bf16_the_timestep_stays_exact_and_weights_and_velocity_fp32(policy: Facts) -> None:
    facts = policy["one"]["precision"]
    assert facts["compute"] == "torch.bfloat16", "the model did not compute in bf16, so this proves nothing"
    assert facts["timestep"] == facts["velocity"] == "torch.float32" and facts["exact"]
    assert facts["held"] == ["torch.float32"] and facts["ratio"] == [1.0, 1.0]
    assert facts["cast sigma"].startswith("TypeError: sigma must be torch.float32, got torch.bfloat16")


def test_an_adapter_that_trains_nothing_is_an_error(policy: Facts) -> None:
    facts = policy["two"]["useless"]
    assert facts["silent"] == "", "a batch without advantages has no gradient, and nothing to complain about"
    assert facts["loud"].startswith("TrainingError: samples have a signal, but the gradient of all 2 trained")
    assert "transformer_blocks.1.attn.add_q_proj.lora_A" in facts["loud"]


def test_steps_weigh_by_their_deviation_where_asked(policy: Facts) -> None:
    weighted, plain, *steps = policy["one"]["other"]["step weights"]
    stds = [PLAN.coefficients(index).std for index in PLAN.window]
    expected = [std / sum(stds) * loss for std, loss in zip(stds, steps, strict=True)]
    assert weighted == pytest.approx(sum(expected), rel=1e-6) and plain == pytest.approx(sum(steps) / 2, rel=1e-6)
    assert abs(weighted - plain) > 1e-5


def test_guidance_reaches_training(policy: Facts) -> None:
    facts = policy["one"]["other"]
    assert facts["guided"] == facts["plain"] == [1.0, 1.0] and facts["guidance matters"] > 1e-3


def test_runs_forward_only_and_offloaded(policy: Facts) -> None:
    facts = policy["one"]["other"]
    assert facts["forward only"] and facts["optimizer"] == "None" and facts["offloaded"]


def test_forward_objectives_train_against_an_old_copy(policy: Facts) -> None:
    facts = policy["one"]["forward"]
    assert facts["first distance"] == 0.0 and facts["gradient"] > 1e-3
    assert facts["second distance"] > 1e-4 and facts["same old"]
    assert facts["steps"] == [], "drawn noise levels are no steps of the sampler"
    assert facts["penalty"] > 1e-4
    assert "uae.u4g.reference_kl.form must be one of velocity, x0, got 'exact'" in facts["refused"]


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_losses_of_a_group_are_the_formulas_however_it_is_spread(policy: Facts, ranks: str) -> None:
    """Over ranks, micro-batches and passes, with a guided reference, its adaptive weight and the hinge."""
    facts = policy[ranks]["group"]
    assert facts["first"] == {"implicit_reward/mean": 0.0, "old_distance/mean": 0.0} and facts["gradient"] > 1e-3
    for name in ("crd", "dgpo"):
        for together in (1, 3):
            assert facts[f"{name} {together}"] == pytest.approx(facts[f"{name} expected"], rel=1e-5), name
    assert facts["excess"] > 1e-4
    assert facts["alone"] == "" and facts["useless"].startswith("TrainingError: samples have a signal")
    assert facts["lacks"] == "ValueError: a mini-batch of the objective 'crd' lacks group_B"


@pytest.mark.parametrize("ranks", ["one", "two"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_resumes_bit_for_bit(policy: Facts, ranks: str, kind: str) -> None:
    facts = policy[ranks]["resume"]
    assert all(facts[f"{kind} {what}"] for what in ("loaded", "parameters", "average", "moved"))


def test_a_checkpoint_without_the_copies_is_refused(policy: Facts) -> None:
    facts = policy["two"]["resume"]
    assert facts["missing"].startswith("CheckpointError") and "missing: the weights ['ema']" in facts["missing"]
    assert [name for name in facts["files"] if name.startswith("shadows")] == [
        f"shadows_world_size_2_rank_{rank}.pt" for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("plan", "PlanMismatch: the samples were drawn with sampling plan 0000000000000000"),
        ("total", "ValueError: total_weight is 3.0, the weights are [2.0, 2.0]"),
        ("ranks", "ValueError: ranks disagree"),
        ("window", "ValueError: 2 steps per sample, but the plan's window is (1,)"),
        ("old", "ValueError: a mini-batch of kind 'transition' lacks old_mean_BKCHW"),
        ("micro", "ValueError: micro_batch_size_per_gpu must be at least 1, got 0"),
        ("form", "ValueError: uae.u4g.reference_kl.form must be one of exact"),
        ("half", "TypeError: x_BKCHW must be torch.float32, got torch.bfloat16"),
        ("fsdp1", "ConfigError: uae.train.fsdp_config.strategy: fsdp needs an accelerator"),
        ("targets", "ConfigError: uae.train.lora.target_modules: 'nothing' matches no linear layer"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ranks_wait_for_each_other(
    policy: Facts, what: str, error: str
) -> None:
    assert policy["two"]["refusal"][what].startswith(error)


def test_verls_worker_and_trainer_keep_means_and_maxima(policy: Facts) -> None:
    facts = policy["two"]["worker"]
    assert facts["reduced"] == pytest.approx(facts["expected"]) and facts["expected"]["k/max"] > 1e-4
    assert facts["loss"] == pytest.approx(facts["expected"]["loss/mean"], rel=1e-6)


def test_is_registered(policy: Facts) -> None:
    assert policy["one"]["engine"] == policy["two"]["engine"] == "DecoderEngine"


def test_compiled_blocks_compute_what_the_blocks_do(policy: Facts) -> None:
    facts = policy["two"]["compiled"]
    assert facts["names"] and facts["programs"] >= 2 and facts["breaks"] == 0
    assert facts["ratio"] == [1.0, 1.0]
    assert facts["velocity"] < 1e-5 and facts["reference"] < 1e-5 and facts["replica"] < 1e-5
    assert facts["gradient"] < 1e-4


def test_frozen_weights_are_held_in_bf16_beside_adapters_in_fp32(policy: Facts) -> None:
    facts = policy["two"]["halved"]
    assert facts["fp32"] == [["float32"], ["float32"]] and facts["bf16"] == [["float32"], ["bfloat16"]]
    assert facts["bf16 ratio"] == [1.0, 1.0]
    # What is computed in is bf16 either way; only buffers are rounded too.
    assert facts["losses"] < 0.1 * facts["moved"]
    assert facts["merged"] == ["torch.bfloat16"] and facts["rounded"] and facts["replica"] < 1e-2
    # Adapters are multiplied out in fp32, and the sum is rounded once.
    assert 0.0 < facts["lost"] <= 2**-8
    assert facts["exported"] == ["torch.bfloat16"] and facts["loads"] > 10
    assert "trained weights are held in fp32, got torch.bfloat16" in facts["projector"]

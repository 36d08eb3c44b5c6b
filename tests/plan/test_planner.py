# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Plans of commands: against their estimates, what is searched, what is refused and what is said."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_uae.cli import main
from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import changed, command
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.phases import ASSUMED_SERVER_S, ASSUMED_STEP_S
from verl_uae.estimate.work import Asking
from verl_uae.plan import planner as planner_module
from verl_uae.plan.loads import DRAW_S, OTHER_STEP_S, SAMPLE_S, STEP_S, WAKING, g4u_load
from verl_uae.plan.planner import JOINT, TOGETHER, TURNS, Asked, Planner, plan, turns
from verl_uae.plan.report import as_json, best, efficiency, held_by, render, settings
from verl_uae.plan.schedules import AHEAD, CONTROL, OWN, PHASED, STREAMED, Timeline

#: The smallest decoder, whose pieces are executed in seconds.
SANA = ("uae/decoder=sana_1600m", "uae.decoder.num_steps=2", "uae.u4g.num_steps=4", "uae.u4g.window.size=1")
NODE = ("trainer.n_gpus_per_node=8", "data.train_batch_size=8", "uae.train.micro_batch_size=4")


@pytest.fixture(scope="module")
def g4u() -> Estimator:
    """Captions as long as they may be, as the estimate takes them."""
    words = [*SANA, *NODE, "data.max_response_length=64", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    return Estimator(command("uae_g4u", words), Asking(64))


@pytest.fixture(scope="module")
def u4g() -> Estimator:
    return Estimator(command("uae_u4g", [*SANA, *NODE]))


def planned(estimator: Estimator, *gpus: int, **options: Any) -> tuple[Planner, list[Any]]:
    planner = Planner(estimator, Asked("H100-80GB", gpus, **options))
    return planner, planner.rows()


def test_a_count_that_cannot_be_is_named(u4g: Estimator) -> None:
    with pytest.raises(ConfigError, match="with 7 GPUs: "):
        planned(u4g, 7, fixed_batch=True)


def test_a_step_of_all_ranks_is_the_estimate_with_its_controller(u4g: Estimator) -> None:
    (row,) = planned(u4g, 8)[1]
    assert row.schedule == TOGETHER
    estimated = u4g.estimate("H100-80GB").step_seconds - ASSUMED_STEP_S
    samples = 8 * u4g.asked.config.uae.u4g.samples_per_caption
    # The first part of the weights of a phase is waited for.
    assert row.timeline.step_s - DRAW_S * samples - OTHER_STEP_S == pytest.approx(estimated, rel=0.01)


def test_captions_of_one_length_in_turns_are_the_estimate_with_its_controller(g4u: Estimator) -> None:
    rows = {row.schedule: row for row in planned(g4u, 8, spread=0.0)[1]}
    assert list(rows) == [PHASED, OWN, STREAMED, AHEAD]
    load = g4u_load(rows[PHASED].estimate, g4u.phases(rows[PHASED].estimate.command), 0.0)
    arriving = load.captioning.captions / load.control.agents * load.control.agent_s  # type: ignore[union-attr]
    controlled = SAMPLE_S * load.samples + STEP_S + arriving
    estimated = g4u.estimate("H100-80GB").step_seconds - ASSUMED_STEP_S
    assert rows[PHASED].timeline.step_s - controlled == pytest.approx(estimated, rel=0.02)


def test_splits_that_the_command_allows_are_searched(g4u: Estimator) -> None:
    planner, rows = planned(g4u, 8, 16)
    for row in rows:
        config = row.estimate.command.config
        assert row.decoders + config.trainer.n_gpus_per_node * config.trainer.nnodes == row.gpus
        # Weak scaling: as many samples for a GPU, as many updates of a step.
        assert config.data.train_batch_size == row.gpus == config.actor_rollout_ref.actor.ppo_mini_batch_size
    ahead = next(row for row in rows if row.schedule == AHEAD and row.gpus == 8)
    # By hand: every split of the eight whose captioner ranks share the captions evenly, and none is faster.
    for captioner in (1, 2, 4):
        split = {"trainer.n_gpus_per_node": captioner, "uae.decoder.n_gpus_per_node": 8 - captioner}
        (other,) = planner._rows(8, (AHEAD,), {**ahead.changes, **split})
        assert other.timeline.step_s >= ahead.timeline.step_s
    assert settings(ahead, planner)["uae.g4u.ahead"] == 1 and settings(ahead, planner)["uae.decoder.pool"] == "own"
    # What is said is a command.
    for row in rows:
        assert changed(g4u.asked, settings(row, planner)).config.data.train_batch_size == row.gpus
    assert settings(ahead, planner)["algorithm.rollout_correction.rollout_is"] == "token"


def test_a_command_that_is_ahead_is_planned_in_all_schedules(g4u: Estimator) -> None:
    own = {"uae.decoder.pool": "own", "trainer.n_gpus_per_node": 4, "uae.decoder.n_gpus_per_node": 4}
    correction = "algorithm.rollout_correction.rollout_is"
    ahead = Estimator(changed(g4u.asked, {**own, "uae.g4u.ahead": 1, correction: "sequence"}), g4u.asking)
    ahead._works = g4u._works
    planner, rows = planned(ahead, 8)
    assert [row.schedule for row in rows] == [PHASED, OWN, STREAMED, AHEAD]
    for row in rows:
        found = changed(ahead.asked, settings(row, planner)).config
        assert found.uae.g4u.ahead == (row.schedule == AHEAD) and correction not in settings(row, planner)


def test_a_schedule_that_the_command_cannot_have_is_left_out(g4u: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one step ahead with a conditioner that follows the captioner."""

    def refused(asked: Any, keys: dict[str, Any]) -> Any:
        if keys["uae.g4u.ahead"]:
            raise ConfigError("uae.g4u.ahead", "no")
        return changed(asked, keys)

    monkeypatch.setattr(planner_module, "changed", refused)
    assert [row.schedule for row in planned(g4u, 8)[1]] == [PHASED, OWN, STREAMED]


def test_the_unified_stage_shares_its_gpus_whatever_the_command_has() -> None:
    words = [*SANA, *NODE, "data.max_response_length=64", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    words += ["trainer.n_gpus_per_node=4", "uae.decoder.pool=own", "uae.decoder.n_gpus_per_node=4"]
    planner, (row,) = planned(Estimator(command("uae_unified", words), Asking(64)), 8)
    assert row.estimate.gpus == row.gpus == 8 and settings(row, planner)["uae.decoder.pool"] == "colocated"


def test_a_fixed_batch_is_not_scaled(u4g: Estimator) -> None:
    grown = {row.gpus: row for row in planned(u4g, 4, 8)[1]}
    fixed = {row.gpus: row for row in planned(u4g, 4, 8, fixed_batch=True)[1]}
    assert fixed[8].timeline.step_s == grown[8].timeline.step_s
    assert grown[4].estimate.command.config.data.train_batch_size == 4
    assert fixed[4].estimate.command.config.data.train_batch_size == 8
    assert fixed[4].timeline.step_s > 1.7 * grown[4].timeline.step_s
    with pytest.raises(ConfigError) as caught:
        planned(u4g, 8 * 1024, fixed_batch=True)
    assert caught.value.key == "uae.train.micro_batch_size"


def test_weights_are_shared_within_nodes_where_the_network_is_slow(u4g: Estimator) -> None:
    key = "uae.train.fsdp_config.fsdp_size"
    planner = Planner(u4g, Asked("L40S-48GB", (16,)))
    (row,) = planner.rows()
    assert row.changes[key] == 8 and row.estimate.fits
    whole = planner._estimate({name: value for name, value in row.changes.items() if name != key})
    assert whole.step_seconds > 1.02 * row.estimate.step_seconds
    assert OmegaConf.select(row.estimate.command.config, key) == 8


def test_rings_of_collectives_grow_with_the_ranks(u4g: Estimator) -> None:
    few, many = (
        u4g.estimate("H100-80GB", changes={"trainer.nnodes": nodes, "data.train_batch_size": 8 * nodes})
        for nodes in (1, 64)
    )
    update = [next(phase for phase in found.phases if phase.name == "update") for found in (few, many)]
    assert update[0].collectives == update[1].collectives > 10
    assert [phase.hops for phase in update] == [7 * update[0].collectives, (511 - 63) * update[0].collectives]
    assert [phase.hops_across for phase in update] == [0, 63 * update[0].collectives]


def test_many_gpus_are_held_by_the_controller_and_it_is_said(u4g: Estimator) -> None:
    planner, rows = planned(u4g, 8, 512)
    row = best(rows, 512)
    assert efficiency(rows[0], rows) == 1.0 and efficiency(row, rows) == pytest.approx(row.rate / rows[0].rate)
    assert row.timeline.spent[CONTROL] == pytest.approx(
        64 * (rows[0].timeline.spent[CONTROL] - OTHER_STEP_S) + OTHER_STEP_S
    )
    text = render(rows, planner)
    # Weak scaling is by what can be had.
    small = dataclasses.replace(rows[0].estimate, rates=dataclasses.replace(rows[0].estimate.rates, memory_gib=1.0))
    assert efficiency(row, [dataclasses.replace(rows[0], estimate=small), *rows[1:]]) == 1.0
    assert "512 GPUs: all ranks together is fastest" in text and held_by(row) in text
    assert "set trainer.nnodes=64 data.train_batch_size=512" in text
    records = json.loads(json.dumps(as_json(rows, planner)))
    assert [record["gpus"] for record in records] == [8, 512] and records[1]["set"]["trainer.nnodes"] == 64


def test_turns_are_the_mean_step() -> None:
    first = Timeline(3.0, {"captions": 3.0}, {"GPUs": 1.0})
    second = Timeline(1.0, {"update": 1.0}, {"GPUs": 0.5})
    found = turns((first, 2), (second, 1))
    assert found.step_s == pytest.approx(7 / 3)
    assert (
        found.spent == pytest.approx({"captions": 2.0, "update": 1 / 3}) and sum(found.spent.values()) == found.step_s
    )
    assert found.use["GPUs"] == pytest.approx(6.5 / 7)


def test_the_unified_stage_takes_turns() -> None:
    words = [*SANA, *NODE, "data.max_response_length=64", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    (row,) = planned(Estimator(command("uae_unified", words), Asking(64)), 8)[1]
    assert row.schedule == TURNS and {"captions", "denoising", "update"} <= row.timeline.spent.keys()
    # Servers wake in every step, with new weights or, in one of U4G, without.
    assert row.timeline.spent[WAKING] == pytest.approx(ASSUMED_SERVER_S / 2)
    assert row.timeline.spent["weights to the server"] >= ASSUMED_SERVER_S / 2


def test_jointly_a_step_is_the_estimate_with_its_controller() -> None:
    words = [*SANA, *NODE, "data.max_response_length=64", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    estimator = Estimator(command("uae_unified", [*words, "uae.unified.schedule=joint"]), Asking(64))
    (row,) = planned(estimator, 8, spread=0.0)[1]
    assert row.schedule == JOINT and WAKING not in row.timeline.spent
    captions = 8 * int(estimator.asked.config.actor_rollout_ref.rollout.n)
    drawings = captions * int(estimator.asked.config.uae.u4g.samples_per_caption)
    assert row.timeline.spent[CONTROL] == pytest.approx(STEP_S + SAMPLE_S * captions + DRAW_S * drawings)
    behind = row.timeline.spent.keys() - {CONTROL, "captions", "the longest caption"}
    estimated = sum(row.estimate.parts(phase).alone for phase in row.estimate.phases if phase.name != "captions")
    assert {"denoising", "decoder's update", "captioner's update", "weights to the server"} <= behind
    assert sum(row.timeline.spent[name] for name in behind) >= estimated


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--gpus", "12"], "--gpus"),
        (["--gpus-per-node", "0"], "--gpus-per-node"),
        (["--gpu", "abacus"], "--gpu"),
        (["--spread", "7"], "--spread"),
        (["--caption-tokens", "0"], "--caption-tokens"),
        (["--calibration", __file__], "--calibration"),
        (["no.such.key=1"], "no.such.key"),
        (["trainer.n_gpus_per_node=3", "data.train_batch_size=4", "--gpus", "8"], "data.train_batch_size"),
    ],
)
def test_what_is_refused(words: list[str], key: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "uae_u4g", *SANA, "uae.train.micro_batch_size=1", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"verl-uae: {key}: ") and error.count("\n") == 1


def test_the_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "uae_u4g", *SANA, *NODE, "--gpu", "A100-80GB", "--gpus", "8", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["fits"] and record["set"] == {} and record["step_s"] > 0
    planner = plan("uae_u4g", [*SANA, *NODE], Asked("A100-80GB", (8,)))
    assert planner.base == 8 and dataclasses.replace(planner.asked, per_node=4).per_node == 4

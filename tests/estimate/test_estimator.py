# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Composition, seconds, what fits and what makes it fit, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import command
from verl_uae.estimate.estimator import Estimate, Estimator, ask
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.rates import ASSUMED_USABLE, CALIBRATED, CALIBRATED_ON_CPU, GPUS, calibrate, rates_of
from verl_uae.estimate.report import pictures, render
from verl_uae.estimate.work import Cost, measure

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "uae"
#: The smallest decoder, whose pieces are executed in seconds.
SANA = ("uae/decoder=sana_1600m", "uae.decoder.num_steps=2", "uae.u4g.num_steps=4", "uae.u4g.window.size=1")
_PATH = "uae.decoder.path"


@pytest.fixture(scope="module")
def sana() -> Estimator:
    return Estimator(command("uae_u4g", SANA))


@pytest.fixture(scope="module")
def medium() -> Estimator:
    """The recipe of adapters on the captioner for one GPU of 24 GB."""
    return Estimator(command(str(RECIPES / "g4u" / "config" / "g4u_qwen2_5_vl_3b_sd35_medium_lora_24gb.yaml")))


def test_a_command_is_composed_as_it_is_trained() -> None:
    asked = command("uae_u4g", SANA, gpus=4, nodes=2)
    assert asked.decoder == "sana_1600m" and not asked.folders
    assert (asked.config.trainer.n_gpus_per_node, asked.config.trainer.nnodes) == (4, 2)
    # SANA does not read the captioner.
    assert asked.config.uae.conditioner.path == "google/gemma-2-2b-it"
    assert asked.config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_seconds_by_hand(sana: Estimator) -> None:
    """Work and gathered weights overlap; copies to the host and what is assumed come on top."""
    found = dataclasses.replace(sana.estimate("H100-80GB"), phases=[])
    flops = {"bfloat16": 0.4 * 989e12, "float32": 0.4 * 67e12}
    cases = {
        2.0: Phase("work", Cost(flops)),
        3.0: Phase("links", Cost(flops), gathered=3 * 0.67 * 450e9),
        4.0: Phase("network", gathered=4 * 0.67 * 50e9, across=4 * 0.67 * 50e9),
        5.0: Phase("memory", read=5 * 0.5 * 3350e9),
        6.0: Phase("pinned", pinned=6 * 0.67 * 55e9),
        7.5: Phase("pageable", pageable=7 * 4e9, fixed_s=0.5),
    }
    for seconds, phase in cases.items():
        assert found.seconds(phase) == pytest.approx(seconds), phase.name


def test_compiled_blocks_are_faster_on_a_gpu(sana: Estimator) -> None:
    plain, compiled = (sana.estimate("H100-80GB", changes={"uae.decoder.compile": value}) for value in (False, True))
    seconds = {
        name: [found.seconds(phase) for found in (plain, compiled) for phase in found.phases if phase.name == name]
        for name in ("denoising", "update", "VAE")
    }
    assert seconds["denoising"][0] == pytest.approx(1.29 * seconds["denoising"][1])
    assert seconds["update"][0] - 0.5 == pytest.approx(1.29 * (seconds["update"][1] - 0.5))
    assert seconds["VAE"][0] == seconds["VAE"][1]
    on_cpu = dataclasses.replace(compiled.rates, operator_s=5e-6, touched_gbs=20.0)
    (denoising,) = (phase for phase in compiled.phases if phase.name == "denoising")
    of_cpu = [dataclasses.replace(found, rates=on_cpu).seconds(denoising) for found in (plain, compiled)]
    assert of_cpu[0] == of_cpu[1]


def test_what_is_no_product_counts_on_a_cpu(sana: Estimator) -> None:
    on_gpu = sana.estimate("H100-80GB")
    rates = dataclasses.replace(on_gpu.rates, mfu=1.0, operator_s=5e-6, touched_gbs=20.0)
    phase = Phase("work", Cost({"float32": 67e12}, operators=1e5, touched=40e9), copied=1e9)
    assert dataclasses.replace(on_gpu, rates=rates).seconds(phase) == pytest.approx(1.0 + 0.5 + 2.0 + 0.25)
    assert on_gpu.seconds(phase) == pytest.approx(1.0 / 0.4)


def test_operators_and_what_they_touch() -> None:
    """Two products, their biases within, an activation and a sum; a view is nothing."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        x_BC = torch.empty(4, 8)
    with torch.no_grad():
        cost = measure(lambda: model(x_BC).view(-1) + 1.0)
    assert cost.operators == 4 and cost.total == 2 * 4 * 8 * 32 * 2
    assert cost.touched == 4 * (2 * 4 * 32 + 2 * 4 * 8)
    assert (cost + cost.times(2)).operators == 12 and cost.times(2).touched == 2 * cost.touched


def test_more_gpus_hold_less_each_and_do_less_each(sana: Estimator) -> None:
    few, many = (sana.estimate("H100-80GB", changes={"trainer.n_gpus_per_node": gpus}) for gpus in (2, 8))

    def update(found: Estimate) -> Phase:
        return next(phase for phase in found.phases if phase.name == "update")

    assert update(few).executed.total == pytest.approx(4 * update(many).executed.total)
    assert update(few).memory["weights"] > 3 * update(many).memory["weights"]
    # All weights twice for every call, and nothing between nodes.
    assert update(many).across == 0 and update(many).gathered > update(few).gathered / 4
    apart = sana.estimate("H100-80GB", changes={"trainer.n_gpus_per_node": 4, "trainer.nnodes": 2})
    assert update(apart).across == pytest.approx(update(apart).gathered / 4)


#: Three trained steps of every picture, all weights of which are trained.
REPLAYED = [*SANA[:2], "uae.u4g.num_steps=8", "uae.u4g.window.size=3", "uae.u4g.captions.source=column"]
REPLAYED += ["uae.train.lora.rank=0", "uae.train.micro_batch_size=2"]


@pytest.fixture(scope="module")
def replayed() -> Estimator:
    """On eight nodes of one GPU, between which weights and gradients travel."""
    return Estimator(command("uae_u4g", [*REPLAYED, "uae.train.gradient_checkpointing=false"], gpus=1, nodes=8))


def _named(found: Estimate, name: str) -> Phase | None:
    return next((phase for phase in found.phases if phase.name == name), None)


def test_places_together_are_counted(replayed: Estimator) -> None:
    """Weights travel so many times less often, activations take so many times the memory, and of two updates the old
    log-probabilities of the second are computed again."""
    key = "uae.u4g.replay_steps"
    found = {steps: replayed.estimate("H100-80GB", changes={key: steps}) for steps in (1, 2, 3, None)}
    one, two, three, whole = (_named(each, "update") for each in found.values())
    assert one and two and three and whole == three
    assert one.gathered == pytest.approx(3 * three.gathered) and two.gathered == pytest.approx(2 * three.gathered)
    # The projector's part is done once for all places.
    assert three.executed.total == pytest.approx(one.executed.total, rel=0.02)
    assert two.executed.total == pytest.approx(one.executed.total, rel=0.02)
    assert three.memory["activations"] == pytest.approx(3 * one.memory["activations"], rel=0.1)
    assert _named(found[1], "old velocities") is None
    again = _named(found[3], "old velocities")
    denoised = _named(found[1], "denoising")
    assert again and denoised
    # Three of eight steps, of half the pictures, gathered once in place of eight times.
    assert again.executed.total == pytest.approx(denoised.executed.total * 3 / 8 / 2, rel=0.02)
    assert again.gathered == pytest.approx(denoised.gathered / 8 / 2)
    alone = {key: 3, "uae.u4g.updates_per_rollout": 1}
    assert _named(replayed.estimate("H100-80GB", changes=alone), "old velocities") is None


@pytest.mark.parametrize("replay", [1, None])
def test_what_a_group_shares_is_counted_once(replayed: Estimator, replay: int | None) -> None:
    """Micro-batches of four with two members of each caption: of eight steps two are by half as many rows, and of three
    trained steps one."""
    window = {"uae.u4g.window.mode": "fixed", "uae.u4g.window.low": 1, "uae.u4g.replay_steps": replay}
    micro = {"uae.train.micro_batch_size": 4, "uae.u4g.samples_per_caption": 4}
    shared = {"uae.u4g.share_noise": True, "uae.u4g.shared_prefix": True}
    apart, once = (replayed.estimate("H100-80GB", changes={**window, **micro, **more}) for more in ({}, shared))
    parts = {name: (_named(apart, name), _named(once, name)) for name in ("denoising", "update")}
    for name, part in (("denoising", (8 - 2 * 0.5) / 8), ("update", (3 - 0.5) / 3)):
        before, after = parts[name]
        assert before and after
        assert after.executed.total == pytest.approx(before.executed.total * part, rel=0.02), name
    before, after = parts["update"]
    assert before and after
    # The first trained step is a pass of its own.
    assert after.gathered == pytest.approx(before.gathered * (1 if replay == 1 else 2))


def test_old_values_are_counted_wherever_the_worker_computes_them(replayed: Estimator) -> None:
    """Of candidates that are not drawn again, and of refilled batches, as with a replica; not of a pass of one step."""
    pool, steps, prefix = "uae.u4g.pool.size", "uae.u4g.pool.steps", "uae.u4g.shared_prefix"
    shared = {"uae.u4g.share_noise": True, prefix: True, "uae.u4g.replay_steps": None}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"uae.u4g.sampler": "replica"}, True),
        ({pool: 48}, True),
        ({"uae.u4g.ties": "refill"}, True),
        ({pool: 48, "uae.u4g.updates_per_rollout": 1}, False),
        ({pool: 48, steps: 4}, False),
        (shared, True),
        ({**shared, "uae.u4g.window.size": 2}, False),
    ]
    for changes, counted in cases:
        found = _named(replayed.estimate("H100-80GB", changes=changes), "old velocities")
        assert (found is not None) == counted, changes


def test_places_together_are_named_where_weights_are_waited_for(replayed: Estimator) -> None:
    better = replayed.faster("H100-80GB")
    assert better is not None and "uae.u4g.replay_steps" in better[0]
    one = Estimator(command("uae_u4g", REPLAYED, gpus=1, nodes=1)).faster("H100-80GB")
    assert one is None or "uae.u4g.replay_steps" not in one[0], "nothing travels, and something is computed again"


def test_what_runs_beside_shares_what_computes_and_hides_what_waits() -> None:
    """By hand: products of both add up, and go on while weights are waited for; a quarter has no company."""
    rates = rates_of("H100-80GB")
    computed = {"bfloat16": rates.flops_per_second("bfloat16")}
    waits = 3e9 * rates.nvlink_gbs * rates.link_share
    first = Phase("denoising", Cost(computed).times(2.0), gathered=waits, share=0.5, together="t", alone=0.25)
    second = Phase("VAE", Cost(computed).times(1.5), share=0.5, together="t", alone=0.25)
    other = Phase("update", Cost(computed).times(1.0), share=0.5)
    found = Estimate(command("uae_u4g", SANA), "H100-80GB", rates, [first, second, other], 0.0, [])
    assert [found.seconds(phase) for phase in found.phases] == pytest.approx([3.0, 1.5, 1.0])
    assert found.step_seconds == pytest.approx(0.5 * (1.0 + 0.25 * 4.5 + 0.75 * 3.5))
    assert render(found).count(" beside") == 2


@pytest.mark.parametrize(
    ("name", "switch", "phase", "names"),
    [
        ("uae_u4g", {"uae.decoder.overlap": True}, "denoising", {"denoising", "VAE", "score"}),
        ("uae_pretrain", {"uae.pretrain.prefetch": 1}, "update", {"VAE", "condition", "update"}),
    ],
)
def test_a_second_thread_takes_memory_and_saves_what_is_waited_for(
    name: str, switch: dict[str, Any], phase: str, names: set[str]
) -> None:
    words = ["uae.train.micro_batch_size=1", "uae.decoder.batch_size=1", "uae.train.lora.rank=0"]
    # The smallest decoder has no projector to be pre-trained.
    words += ["uae/decoder=sd35_medium"] if name == "uae_pretrain" else SANA
    for nodes in (1, 8):
        asked = Estimator(command(name, words, gpus=1, nodes=nodes))
        off, on = asked.estimate("H100-80GB"), asked.estimate("H100-80GB", changes=switch)
        assert {each.name for each in on.phases if each.together} == names & {each.name for each in on.phases}
        gathers = any(each.gathered for each in off.phases if each.name == phase)
        assert gathers == (nodes > 1)
        if not gathers:
            assert on.step_seconds == pytest.approx(off.step_seconds), "nothing is waited for"
        memory = {each.name: sum(each.memory.values()) for each in off.phases}
        more = {each.name: sum(each.memory.values()) for each in on.phases}
        assert {each for each in memory if more[each] > memory[each]} == {phase}
        assert [each.executed for each in on.phases] == [each.executed for each in off.phases]
    assert on.step_seconds < 0.99 * off.step_seconds, "over the network weights are waited for"


@pytest.mark.parametrize(("name", "pictures"), [("uae_u4g", 4), ("uae_g4u", 4)])
def test_one_batch_of_pictures_has_nothing_beside_it(name: str, pictures: int) -> None:
    """All of a rank's pictures are there before the first of them is decoded."""
    words = ["data.train_batch_size=16", f"uae.decoder.batch_size={pictures}", "uae.decoder.overlap=true"]
    counts = [f"actor_rollout_ref.rollout.n={pictures}", "actor_rollout_ref.actor.ppo_mini_batch_size=16"]
    counts += [f"uae.u4g.samples_per_caption={pictures}", "uae.train.micro_batch_size=1"]
    found = Estimator(command(name, [*SANA, *words, *counts], gpus=1, nodes=16)).estimate("H100-80GB")
    assert not any(phase.together for phase in found.phases)


def test_copies_of_shards_sum_the_gradients_of_the_cold_start() -> None:
    words = [*SANA[:2], "data.train_batch_size=16", "uae.train.micro_batch_size=1", "uae.cold_start.num_steps=2"]
    words += ["uae/decoder=sd35_medium", "uae.cold_start.captioner.lora.rank=0", "uae.train.lora.rank=0"]
    engines = [f"uae.{part}.fsdp_config.fsdp_size" for part in ("train", "cold_start.captioner")]
    estimator = Estimator(command("uae_cold_start", words, gpus=8, nodes=2))
    apart = estimator.estimate("H100-80GB", changes=dict.fromkeys(engines, 8))
    models = estimator.work.models
    for name, module in (("way back", models.policy), ("captioner", models.supervised_captioner)):
        (phase,) = (each for each in apart.phases if each.name == name)
        numbers = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        # Two copies of eight shards, fp32: each sends and receives half of its shard.
        assert phase.across == pytest.approx(2 * 0.5 * 4 * numbers / 8, rel=0.02), name


def test_the_unified_stage_is_both_in_turns() -> None:
    # Else the policy waits on the host while captions are written.
    stays = "uae.train.fsdp_config.param_offload=false"
    estimator = Estimator(command("uae_unified", [*SANA, stays]))
    both = {phase.name: phase for phase in estimator.estimate("H100-80GB").phases}
    assert {"captions", "captioner's update", "denoising", "update"} <= both.keys()
    assert {phase.share for phase in both.values()} == {0.5}
    assert both["update"].memory["captioner that trains"] > 0 and both["captions"].memory["weights"] > 0


def test_jointly_every_caption_is_drawn_by_the_policy_and_trains_both() -> None:
    """Of 8 pictures on 8 GPUs: what U4G does with as many captions, and what G4U does but for its drawing."""
    gpus, policy = "trainer.n_gpus_per_node=8", "uae.train.micro_batch_size=4"
    captioner = ["actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    unified = [*SANA, gpus, policy, *captioner, "data.train_batch_size=8"]
    joint = Estimator(command("uae_unified", [*unified, "uae.unified.schedule=joint"])).estimate("H100-80GB")
    found = {phase.name: phase for phase in joint.phases}
    assert len(found) == len(joint.phases) and {phase.share for phase in joint.phases} == {1.0}
    alone = [*SANA, gpus, policy, "data.train_batch_size=32", "uae.u4g.captions.source=column"]
    u4g = Estimator(command("uae_u4g", alone)).estimate("H100-80GB")
    drawn = {phase.name: phase for phase in u4g.phases}
    g4u = Estimator(command("uae_g4u", [*SANA, gpus, *captioner, "data.train_batch_size=8"])).estimate("H100-80GB")
    learnt = {phase.name: phase for phase in g4u.phases}
    for name in ("condition", "denoising", "VAE", "score"):
        assert found[name].executed.total == pytest.approx(drawn[name].executed.total), name
    assert found["decoder's update"].useful == pytest.approx(drawn["update"].useful)
    for name in ("captions", "old log-probabilities", "reference", "captioner's update", "weights to the server"):
        assert found[name].useful == pytest.approx(learnt[name].useful), name
    assert pictures(joint) == 8 * 4 * 24
    # No second copy of the decoder waits anywhere.
    turns = Estimator(command("uae_unified", unified)).estimate("H100-80GB")
    assert joint.host["frozen models"] < turns.host["frozen models"]
    assert joint.host["processes of ranks"] == pytest.approx(turns.host["processes of ranks"] * 2 / 3)


def test_what_does_not_fit_says_what_makes_it_fit(sana: Estimator) -> None:
    large = ["uae.train.micro_batch_size=72", "uae.train.gradient_checkpointing=false"]
    tight = Estimator(command("uae_u4g", [*SANA, *large, "uae.u4g.captions.source=column"]))
    found = tight.estimate("RTX4090-24GB")
    assert not found.fits and found.peak_gib > ASSUMED_USABLE * 24
    remedies = tight.remedies("RTX4090-24GB")
    named = {key for changes, _ in remedies for key in changes}
    assert {"uae.train.micro_batch_size", "uae.train.gradient_checkpointing"} <= named
    assert all(other.fits for _, other in remedies)
    text = render(found, remedies)
    assert "does NOT fit" in text and "fits with uae.train.micro_batch_size=1:" in text and "USD" not in text
    assert not sana.remedies("H100-80GB") and "USD" in render(sana.estimate("H100-80GB"))


PLENTY = {
    "uae.decoder.offload": False,
    "uae.train.gradient_checkpointing": False,
    "uae.train.fsdp_config.param_offload": False,
}


def test_memory_that_is_left_makes_a_step_faster(sana: Estimator) -> None:
    slow = Estimator(command("uae_u4g", [*SANA, *(f"{key}=true" for key in PLENTY), "uae.u4g.captions.source=column"]))
    found, better = slow.estimate("H100-80GB"), slow.faster("H100-80GB")
    assert better is not None
    changes, other = better
    assert changes.items() >= PLENTY.items()
    assert other.fits and other.peak_gib > found.peak_gib and other.step_seconds < 0.9 * found.step_seconds
    # Only one step is trained, so there is nothing to take together.
    assert "uae.u4g.replay_steps" not in changes
    # Nothing is computed twice.
    assert sum(phase.executed.total for phase in other.phases) < sum(phase.executed.total for phase in found.phases)
    assert "faster with uae.decoder.offload=false" in render(found, [better])
    # What it proposes is what it cannot better, and what does not fit is not made faster.
    written = [f"{key}={str(value).lower()}" for key, value in changes.items()]
    settled = Estimator(command("uae_u4g", [*SANA, *written, "uae.u4g.captions.source=column"]))
    assert settled.faster("H100-80GB") is None
    large = ["uae.train.micro_batch_size=72", "uae.train.gradient_checkpointing=false"]
    tight = Estimator(command("uae_u4g", [*SANA, *large]))
    assert tight.faster("RTX4090-24GB") is None


@pytest.mark.parametrize("gpu", ["L4-24GB", "RTX3090-24GB", "RTX4090-24GB"])
def test_the_recipe_of_24_gb_fits_and_needs_its_settings(medium: Estimator, gpu: str) -> None:
    config, found = medium.asked.config, medium.estimate(gpu)
    assert found.fits and found.server_share <= config.actor_rollout_ref.rollout.gpu_memory_utilization
    stays = {"uae.decoder.offload": False}
    assert not medium.estimate(gpu, changes=stays).fits


def test_the_recipe_of_80_gb_fits() -> None:
    name = "g4u_qwen2_5_vl_3b_sd35_medium_lora_80gb.yaml"
    estimator = Estimator(command(str(RECIPES / "g4u" / "config" / name)))
    assert not estimator.asked.config.uae.decoder.offload
    for gpu in ("A100-80GB", "H100-80GB", "H200-141GB"):
        assert estimator.estimate(gpu).fits, gpu


def test_a_calibration_that_cannot_be_written_is_refused_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "mm", lambda *_: pytest.fail("measured"))
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, tmp_path / "none" / "rates.json", file / "rates.json"):
        with pytest.raises(ConfigError, match=f"--calibrate: {re.escape(str(path))} cannot be written"):
            calibrate(path, seconds=0.01)


def test_a_calibration_takes_the_place_of_the_data_sheet(tmp_path: Path, sana: Estimator) -> None:
    file = tmp_path / "rates.json"
    calibrate(file, seconds=0.01)
    written = json.loads(file.read_text())["rates"]
    rates = rates_of("H100-80GB", file)
    names = (*CALIBRATED, *CALIBRATED_ON_CPU)
    assert {name: getattr(rates, name) for name in names} == written and all(written.values())
    slow, fast = sana.estimate("H100-80GB", file), sana.estimate("H100-80GB")
    assert slow.step_seconds > fast.step_seconds and "rates measured on" in render(slow)
    assert slow.peak_gib == fast.peak_gib


@pytest.mark.parametrize(
    ("words", "options", "key"),
    [
        ([], {"gpu": "x"}, "--gpu"),
        ([], {"gpus": 0}, "--gpus"),
        ([], {"nodes": 10**400}, "--nodes"),
        ([], {"steps": 0}, "--steps"),
        ([], {"caption_tokens": 0}, "--caption-tokens"),
        ([], {"calibration": Path(__file__)}, "--calibration"),
        (["no.such.key=1"], {}, "no.such.key"),
        (["uae.train.micro_batch_size=7"], {}, "uae.train.micro_batch_size"),
        (["uae.conditioner.path=org/model"], {}, "uae.conditioner.path"),
        (["actor_rollout_ref.model.path=Qwen/Qwen3-4B"], {}, "actor_rollout_ref.model.path"),
        (["uae.conditioner.path=Qwen/Qwen3-4B"], {}, "uae.conditioner.path"),
        (["uae.decoder.height=100"], {}, "uae.decoder.height"),
        (["uae.decoder.width=100"], {}, "uae.decoder.width"),
        (["uae.train.train_projector=true"], {}, "uae.train.train_projector"),
    ],
)
def test_what_is_refused(words: list[str], options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ask("uae_u4g", [*SANA, *words], **options)
    assert caught.value.key == key


def test_a_decoder_without_a_projector_has_nothing_to_pretrain() -> None:
    with pytest.raises(ConfigError, match=r"uae/decoder=sana_1600m .*nothing to pre-train"):
        command("uae_pretrain", ["uae/decoder=sana_1600m"])


def test_a_decoder_that_is_not_here_is_named(sana: Estimator) -> None:
    elsewhere = dataclasses.replace(sana.estimate("H100-80GB"), command=command("uae_u4g", [*SANA, f"{_PATH}=org/own"]))
    assert "decoder sana_1600m as published in place of org/own, which is not on this machine" in render(elsewhere)
    assert "decoder sana_1600m as published, captioner" in render(sana.estimate("H100-80GB"))


def test_a_folder_below_home_is_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "decoder").mkdir()
    with pytest.raises(ConfigError, match="is no model and no decoder folder"):
        command("uae_u4g", [*SANA, f"{_PATH}='~/decoder'"])


def test_a_language_model_of_a_file_is_taken_at_its_word(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    head = "defaults:\n  - uae_u4g\n  - override uae/decoder: sana_1600m\n  - _self_\n"
    file.write_text(f"{head}uae:\n  conditioner:\n    path: Qwen/Qwen3-4B\n")
    assert command(str(file)).config.uae.conditioner.path == "Qwen/Qwen3-4B"


def test_adapters_of_a_captioner_without_such_layers_are_refused() -> None:
    named = ["lora_rank=8", "lora_alpha=16", "target_modules=[nope]"]
    asked = command("uae_g4u", [f"actor_rollout_ref.model.{word}" for word in named])
    with pytest.raises(ConfigError, match="cannot place") as caught:
        Estimator(asked).estimate("H100-80GB")
    assert caught.value.key == "actor_rollout_ref.model.target_modules"


def test_names_that_are_refused(tmp_path: Path) -> None:
    for name in ("uae_nothing", "ppo_trainer", str(tmp_path / "none.yaml")):
        with pytest.raises(ConfigError) as caught:
            command(name)
        assert caught.value.key == name


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_every_type_gives_finite_numbers(gpu: str, sana: Estimator) -> None:
    found = sana.estimate(gpu)
    assert 0 < found.step_seconds < 1e6 and 0 < found.mfu < 1 and 0 < found.peak_gib < 1e3

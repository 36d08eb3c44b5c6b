# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of a node by owner, against what is counted by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.estimate.test_estimator import SANA
from verl_uae.cli import main
from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import command
from verl_uae.estimate.estimator import Answer, Estimator, ask
from verl_uae.estimate.host import ASSUMED_USABLE_HOST, HOST_GIB
from verl_uae.estimate.rates import GIB, GPUS
from verl_uae.estimate.report import as_json, render

GPU = "H100-80GB"
ENGINE = "uae.train.fsdp_config"


def numbers(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def g4u() -> Estimator:
    return Estimator(command("uae_g4u", SANA, gpus=8))


@pytest.fixture(scope="module")
def u4g() -> Estimator:
    words = ("uae.train.lora.rank=0", "uae.u4g.captions.source=column", "trainer.save_freq=-1")
    return Estimator(command("uae_u4g", [*SANA, *words], gpus=8))


def test_every_type_has_a_usual_node() -> None:
    assert HOST_GIB.keys() == GPUS.keys()


def test_frozen_models_are_there_once_or_in_every_process(g4u: Estimator) -> None:
    models = g4u.work.models
    # Decoder and language model in bf16, VAE in fp32.
    size = 2 * numbers(models.frozen_decoder) + 2 * numbers(models.conditioner) + 4 * numbers(models.vae)
    size += 4 * sum(numbers(network.module) for network in models.networks[0])
    once = g4u.estimate(GPU)
    apart = g4u.estimate(GPU, changes={"uae.decoder.shared_master": False})
    stay = g4u.estimate(GPU, changes={"uae.decoder.offload": False})
    assert once.host["frozen models"] == pytest.approx(size, rel=1e-3)
    assert apart.host["frozen models"] == pytest.approx(8 * size, rel=1e-3)
    assert "frozen models" not in stay.host
    assert once.peak_gib == apart.peak_gib and once.step_seconds == apart.step_seconds
    # Of two nodes each has its own.
    two = Estimator(command("uae_g4u", [*SANA, "data.train_batch_size=16"], gpus=8, nodes=2)).estimate(GPU)
    assert two.host["frozen models"] == pytest.approx(size, rel=1e-3)


def test_a_conditioner_that_follows_is_every_process_s_own(g4u: Estimator) -> None:
    synced = Estimator(command("uae_g4u", ["uae/decoder=sd35_medium", "uae.decoder.num_steps=1"], gpus=8))
    once = synced.estimate(GPU)
    moved = synced.estimate(GPU, changes={"uae.conditioner.weights": "synced"})
    grown = moved.host["frozen models"] - once.host["frozen models"]
    assert grown == pytest.approx(7 * 2 * numbers(synced.work.models.conditioner), rel=1e-3)


def test_weights_and_optimiser_that_wait_and_are_saved(u4g: Estimator) -> None:
    count = numbers(u4g.work.models.policy)
    plain = u4g.estimate(GPU)
    both = {f"{ENGINE}.param_offload": True, f"{ENGINE}.optimizer_offload": True}
    moved = u4g.estimate(GPU, changes=both)
    owner = "weights and optimiser"
    assert owner not in plain.host
    # Weights and two moments in fp32; shards are rounded up.
    assert moved.host[owner] == pytest.approx(12 * count, rel=0.02)
    state = u4g.estimate(GPU, changes={f"{ENGINE}.optimizer_offload": True})
    assert state.host[owner] == pytest.approx(8 * count, rel=0.02)
    # What is saved is copied to the host, wherever it was.
    for changes in ({}, both):
        saved = u4g.estimate(GPU, changes={**changes, "trainer.save_freq": 5})
        assert saved.host[owner] == pytest.approx(12 * count, rel=0.02)


def test_what_is_kept_for_later(u4g: Estimator) -> None:
    config, owner = u4g.asked.config, "conditions, features, trajectories"
    found = u4g.estimate(GPU)
    fewer = u4g.estimate(GPU, changes={"uae.conditioner.cache_size": 24})
    states = u4g.work._conditions(1, False)[0].states
    assert found.host[owner] - fewer.host[owner] == pytest.approx(8 * 1000 * states.numel() * states.element_size())
    none = u4g.estimate(GPU, changes={"uae.reward.source_cache_mib": 0})
    assert found.host[owner] - none.host[owner] == 8 * config.uae.reward.source_cache_mib * 2**20
    # One step is trained: the latent before, behind, the mean, and the last one.
    samples = config.data.train_batch_size * config.uae.u4g.samples_per_caption
    latents = samples * 4 * 4 * math.prod(u4g.work.models.family.latent_shape(512, 512))
    left = fewer.host[owner] - 8 * 24 * states.numel() * states.element_size()
    left -= 8 * config.uae.reward.source_cache_mib * 2**20
    assert left == pytest.approx(latents)
    # Candidates that are drawn as they train wait for the choice; the chosen ones are copied. Previews leave nothing.
    pool = {"uae.u4g.pool.size": 3 * config.uae.u4g.samples_per_caption}
    whole = u4g.estimate(GPU, changes=pool)
    assert whole.host[owner] - found.host[owner] == pytest.approx(3 * latents)
    previews = u4g.estimate(GPU, changes={**pool, "uae.u4g.pool.steps": 1})
    assert previews.host[owner] == found.host[owner]


def test_what_does_not_fit_the_host_says_what_makes_it_fit() -> None:
    words = [*SANA, "uae.decoder.shared_master=false"]
    plenty = Estimator(command("uae_g4u", words, gpus=8))
    assert plenty.estimate(GPU).host_fits and plenty.host_remedies(GPU) == []
    needed, once = (
        plenty.estimate(GPU, changes={"uae.decoder.shared_master": shared}).host_gib for shared in (False, True)
    )
    room = (needed + once) / 2 / ASSUMED_USABLE_HOST
    tight = Estimator(plenty.asked, host_gib=room)
    tight._works = plenty._works
    found, remedies = tight.estimate(GPU), tight.host_remedies(GPU)
    assert found.fits and not found.host_fits
    assert {"uae.decoder.shared_master": True} in [changes for changes, _ in remedies]
    assert all(other.host_fits and other.fits for _, other in remedies)
    text = render(found, (), remedies)
    assert "does NOT fit the host" in text and "fits the host with uae.decoder.shared_master=true:" in text
    assert "fits the host: " in render(plenty.estimate(GPU))
    small = Estimator(plenty.asked, host_gib=4)
    small._works = plenty._works
    assert small.host_remedies(GPU) == [] and "take a node with more memory" in render(small.estimate(GPU))
    figures = json.loads(json.dumps(as_json(Answer(found, [], remedies))))
    assert figures["host"]["fits"] is False and figures["host_remedies"]
    assert sum(figures["host"]["by_owner_gib"].values()) == pytest.approx(figures["host"]["gib"])
    assert figures["host"]["usable_gib"] == pytest.approx(ASSUMED_USABLE_HOST * room)
    assert figures["peak_gib"] == found.peak_gib and len(figures["phases"]) == len(found.phases)


def test_a_run_without_gpu_computes_on_the_host() -> None:
    cpu = Estimator(command("uae_u4g", [*SANA, "hardware=cpu", "uae.u4g.captions.source=column"], gpus=2))
    found = cpu.estimate(GPU)
    held = found.peak_gib * GIB - max(phase.memory.get("processes", 0.0) for phase in found.phases)
    assert found.host["models and activations"] == pytest.approx(2 * held)
    assert "frozen models" not in found.host and "weights and optimiser" not in found.host


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_a_host_of_no_size_is_refused(size: float) -> None:
    with pytest.raises(ConfigError, match="--host-memory: must be a number of GiB above 0"):
        ask("uae_u4g", [*SANA], host_gib=size)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "uae_u4g", *SANA, "uae.u4g.captions.source=column", "--host-memory", "700", "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["host"]["usable_gib"] == pytest.approx(ASSUMED_USABLE_HOST * 700) and GIB == 2**30

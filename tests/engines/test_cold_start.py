# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of tests/engines/supervised_probe.py: captioner and decoder trained through the sampler."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.supervised_probe import KEPT

Facts = dict[str, Any]


@pytest.mark.parametrize("case", ["text only", "guided", "in context"])
def test_gradients_are_those_of_autograd_through_the_unrolled_chain(supervised: Facts, case: str) -> None:
    facts = supervised["one"]["gradient"][case]
    assert facts["loss"][0] == pytest.approx(facts["loss"][1], abs=1e-5)
    for part in ("decoder", "captioner"):
        assert facts[f"{part} size"] > 1e-3
        # The VAE normalises areas of one colour, which on some processors makes 1e-3 of what differs in the last bits
        # between one batch and its parts; a term that is missing is of the size of the gradient.
        assert facts[part] < 5e-3 * facts[f"{part} size"] + 1e-6, part
    assert facts["vision"] == [], "the vision tower is frozen"


@pytest.mark.parametrize("run", ["one/2", "one/1", "two/2", "two/1"])
def test_ranks_and_micro_batches_do_not_change_an_update(supervised: Facts, run: str) -> None:
    ranks, micro = run.split("/")
    expected, found = supervised["one"]["cold start"]["4"], supervised[ranks]["cold start"][micro]
    assert found["values"] == pytest.approx(expected["values"], abs=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)


@pytest.mark.parametrize("ranks", ["one", "two"])
@pytest.mark.parametrize("run", KEPT)
def test_kept_steps_change_no_bit_and_are_computed_once(supervised: Facts, ranks: str, run: str) -> None:
    facts = supervised[ranks]["kept"][run]
    none = facts["0"]
    assert len(facts) == 3 and none["size"] > 1e-3
    for kept, found in facts.items():
        assert found["apart"] == 0.0 and found["loss"] == none["loss"], kept
        assert found["calls"] == found["wanted calls"], kept
        assert found["negatives"] == (1.0 if "guided" in run else 0.0), kept
        # Each backward pass gathers as much ahead as where its forward pass was just before it.
        assert len(found["ahead"]) == len(none["ahead"]) and min(found["ahead"]) >= min(none["ahead"]) > 0, kept


def test_every_part_can_be_switched_off(supervised: Facts) -> None:
    facts = supervised["one"]["switch"]
    assert facts["projector"] == ["projector"] and facts["nothing"] == []
    assert facts["projector, captioner moved"] > 1e-4 and facts["nothing, captioner moved"] > 1e-4


def test_adapters_sit_in_the_language_model_alone(supervised: Facts) -> None:
    facts = supervised["one"]["switch"]
    assert facts["lora"] == ["lora_A", "lora_B"] and facts["lora towers"] == ["language_model"]
    assert facts["wrong target"].startswith("ConfigError: uae.cold_start.captioner.lora.target_modules")


def test_an_exported_captioner_has_the_states_of_the_trained_one(supervised: Facts) -> None:
    facts = supervised["two"]["export"]
    assert facts["difference"] < 1e-5 < 1e-4 < facts["moved"]
    assert facts["plain"] and "exists already" in facts["again"]

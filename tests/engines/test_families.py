# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's engine on tiny models of every family; tests/families has what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import on_one_and_two_ranks
from tests.engines.family_probe import KINDS
from tests.families import tiny

NAMES = sorted(set(tiny.BUILDERS) - {"sd3"})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Facts of one rank and of the first of two, by family and kind of training."""
    models: Path = tmp_path_factory.mktemp("families")
    for name in NAMES:
        tiny.build(name).save(models / name)
    return on_one_and_two_ranks("tests.engines.family_probe", models, tmp_path_factory.mktemp("facts"))


@pytest.fixture(params=[(name, kind) for name in NAMES for kind in KINDS], ids=" ".join)
def facts(request: pytest.FixtureRequest, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    name, kind = request.param
    return found["one"][name][kind], found["two"][name][kind]


def test_the_ratio_is_exactly_one_on_policy_on_one_rank_and_on_two(facts: Any) -> None:
    for one in facts:
        assert one["ratio"] == [1.0, 1.0] and one["gradient"] > 0


def test_two_ranks_of_unequal_captions_find_what_one_finds(facts: Any) -> None:
    one, two = facts
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-7)
    assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)


def test_both_steps_of_the_window_together_are_one_after_the_other(facts: Any) -> None:
    """Guided, with captions of unequal length, so that families without a mask call their transformer by length."""
    for one in facts:
        loss, gradient = one["places together"]
        assert loss == pytest.approx(one["loss"], rel=1e-5, abs=1e-7) and gradient < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_bf16_are_summed_over_backward_passes(found: dict[str, Any], name: str) -> None:
    """FLUX 3 has blocks that no velocity passes through: FSDP2 looked for their gradients."""
    for ranks in ("one", "two"):
        half, whole = found[ranks][name]["bf16"], found[ranks][name]["lora"]
        assert half["ratio"] == [1.0, 1.0] and half["gradient"] == pytest.approx(whole["gradient"], rel=0.1)


def test_what_no_velocity_passes_through_is_not_trained(facts: Any) -> None:
    assert facts[0]["frozen and trained"] == []


def test_an_exported_folder_and_a_replica_draw_as_the_engine_does(facts: Any) -> None:
    for one in facts:
        assert one["export"] < 1e-5 and one["replica"] < 1e-5 and one["velocity"] > 1e-2


def test_the_ranks_really_differ_in_how_often_they_call_a_transformer_without_mask(found: dict[str, Any]) -> None:
    assert found["one"]["flux3"]["lora"]["calls"] == 2 and found["one"]["krea2"]["lora"]["calls"] == 1

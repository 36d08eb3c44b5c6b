# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of tests/engines/supervised_probe.py: real FSDP2 on one and on two gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.mark.parametrize("run", ["one/4", "one/1", "two/4", "two/2"])
def test_ranks_and_micro_batches_do_not_change_the_updates(supervised: Facts, run: str) -> None:
    ranks, micro = run.split("/")
    expected, found = supervised["one"]["flow"]["8"], supervised[ranks]["flow"][micro]
    assert len(expected["losses"]) == 4 and expected["losses"][0] - expected["losses"][-1] > 0.1
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-5)


def test_a_pair_without_weight_counts_for_nothing_whatever_it_holds(supervised: Facts) -> None:
    facts = supervised["one"]["bad"]
    assert facts["valid"] == [6.0]
    assert facts["loss"][0] == pytest.approx(facts["loss"][1], abs=1e-6)
    assert facts["gradient"] < 1e-6


def test_ranks_with_different_numbers_of_micro_batches_are_refused(supervised: Facts) -> None:
    assert supervised["two"]["uneven"] == "ValueError: ranks have different numbers of micro-batches: [4, 3]"

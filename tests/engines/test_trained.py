# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""On two gloo ranks, see policy_probe.layout_facts; that training goes on bit for bit is in test_decoder.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture
def layouts(policy: Facts) -> list[Facts]:
    """What each of the two ranks found."""
    return [json.loads((policy["folder"].parent / f"two_{rank}.json").read_text())["layout"] for rank in (0, 1)]


def test_a_checkpoint_holds_what_trains_and_nothing_else(layouts: list[Facts]) -> None:
    for facts in layouts:
        assert facts["held"] == facts["trained"] and any("projector" in name for name in facts["held"])
        ours, verls = facts["bytes"]
        assert ours < verls / 2


def test_it_is_loaded_and_so_is_verls_own_layout(layouts: list[Facts]) -> None:
    for facts in layouts:
        assert facts["ours"] == facts["verls"] == [False, True]


def test_another_base_is_refused_on_every_rank(layouts: list[Facts], policy: Facts) -> None:
    for facts in layouts:
        refused = facts["ours on another base"]
        assert refused.startswith("CheckpointError") and "base.json: trained from" in refused
        assert f"not what {policy['folder'] / 'moved'} holds now" in refused
        assert "is frozen and another than the model's" in facts["verls on another base"]


def test_trained_weights_that_name_no_base_are_refused_on_every_rank(layouts: list[Facts]) -> None:
    for facts in layouts:
        refused = facts["ours of no base"]
        assert refused.startswith("CheckpointError") and "base.json: missing" in refused
        assert not facts["verls of no base"].startswith("CheckpointError"), "it holds all weights"


def test_adapters_of_another_rank_are_refused(layouts: list[Facts]) -> None:
    assert all(facts["other rank"].startswith("CheckpointError") for facts in layouts), layouts[0]["other rank"]

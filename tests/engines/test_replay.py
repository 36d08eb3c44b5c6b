# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of tests/engines/replay_probe.py: places of a micro-batch together are what they are one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import on_one_and_two_ranks
from tests.engines.replay_probe import RUNS, TOGETHER, TRANSITIONS

OBJECTIVES = [*(name for name, *_ in TRANSITIONS), "nft"]


@pytest.fixture(scope="module")
def replay(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found in a group of one rank, and the first of two."""
    decoder = tiny_models / "decoder"
    return on_one_and_two_ranks("tests.engines.replay_probe", decoder, tmp_path_factory.mktemp("replay"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("ranks", ["one", "two"])
def test_places_together_have_the_loss_and_gradient_of_one_after_the_other(
    replay: dict[str, Any], ranks: str, run: str, objective: str
) -> None:
    facts = replay[ranks][run][objective]
    one = facts["one"]
    assert one["gradient"] > 1e-3 and one["loss"] != 0.0 and one["figures"]["reference_kl/mean"] > 0
    # A weight of 0 on NaN, and old values that are no longer those of the weights.
    assert one["figures"]["valid"] == 3.0
    assert one["figures"]["old_distance/mean" if objective == "nft" else "k/max"] > 1e-5
    for together in TOGETHER:
        other = facts[str(together)]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["gradient"] < 5e-6, "norm of the difference over the norm; processors differ in rounding"
        assert other["losses"] == one["losses"] and other["figures"].keys() == one["figures"].keys()
        assert other["figures"] == pytest.approx(one["figures"], rel=1e-4, abs=1e-6)
    assert ("step03/velocity_rms/mean" in one["figures"]) == (objective != "nft")


@pytest.mark.parametrize("ranks", ["one", "two"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ratio_of_the_first_update_is_exactly_one(replay: dict[str, Any], ranks: str, precision: str) -> None:
    facts = replay[ranks][precision]
    for name in ("same", "own", "computed again"):
        figures = facts[name]["figures"]
        assert figures["ratio/min"] == figures["ratio/max"] == 1.0, name
        assert figures["k/max"] == figures["log_prob_difference/max"] == 0.0, name
        # The same gradient whatever the sampler had said, up to the rounding of the pass.
        assert facts[name]["gradient"] < (1e-5 if precision == "fp32" else 1e-2), name
    if precision == "fp32":
        assert facts["stored"]["figures"]["log_prob_difference/max"] > 0, "a pass of another size rounds otherwise"
    assert facts["off"]["gradient"] > 1e-2, "a ratio beyond the clip range takes a sample's gradient away"


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_how_far_the_samplers_values_are_is_told(replay: dict[str, Any], ranks: str) -> None:
    for precision in ("fp32", "bf16"):
        figures = replay[ranks][precision]["own"]["figures"]
        told = {step: figures[f"{step}sampler_log_prob_difference/max"] for step in ("", "step01/", "step02/")}
        assert told[""] == told["step01/"] == pytest.approx(2e-3, rel=1e-3) and told["step02/"] < 1e-6
        assert not any("sampler" in name for name in replay[ranks][precision]["stored"]["figures"])


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("blank", [0, 1, None], ids=["first_blank", "second_blank", "all_valid"])
@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_shared_prefix_has_the_loss_and_gradient_of_one_for_each(
    replay: dict[str, Any], ranks: str, blank: int | None, together: int
) -> None:
    facts = replay[ranks]["shared"][f"{blank} {together}"]
    apart, once = facts["apart"], facts["once"]
    assert apart["loss"] != 0.0 and apart["figures"]["k/max"] == 0.0
    assert apart["figures"]["log_prob_difference/max"] == pytest.approx(1e-3, rel=1e-2)
    assert once["loss"] == pytest.approx(apart["loss"], rel=1e-5)
    assert once["gradient"] < 1e-5, "norm of the difference over the norm"
    assert once["figures"] == pytest.approx(apart["figures"], rel=1e-4, abs=1e-6)
    # Micro-batches of four rows in two pairs: the first trained step by two rows, of the reference's pass too.
    later = [4, 4] if together == 1 else [8]
    count = 2 if ranks == "one" else 1
    assert facts["rows"] == [2, *later] * count * 2


@pytest.mark.parametrize("what", ["c10d::_allgather_base_", "c10d::_reduce_scatter_base_"])
def test_weights_and_gradients_travel_once_for_all_places_of_a_pass(replay: dict[str, Any], what: str) -> None:
    one, two, all_three = (replay["two"]["collectives"][name][what] for name in ("1", "2", "3"))
    # Two of three steps together leave one alone.
    assert one == 3 * all_three and two == 2 * all_three and all_three > 0


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("none", "ValueError: replay_steps must be at least 1, got 0"),
        ("ranks", "ValueError: ranks disagree about (micro-batches, places, places at once"),
        ("origins", "ValueError: origin_B: forward objectives draw noise of their own"),
        ("forward", "ValueError: on_policy: the old policy of a forward objective is a weight copy"),
    ],
)
def test_what_is_no_replay_is_refused(replay: dict[str, Any], what: str, error: str) -> None:
    assert replay["two"]["refusals"][what].startswith(error)

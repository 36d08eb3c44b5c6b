# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re

import pytest
from omegaconf import OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.settings import check_choices, check_minimum, check_whole

CONFIG = OmegaConf.create({"a": {"kind": "red", "size": 2, "none": None}, "b": "blue"})


def test_the_first_value_that_is_no_choice_is_named() -> None:
    check_choices(CONFIG, {"a.kind": ("red", "blue"), "b": ("blue",)})
    with pytest.raises(ConfigError, match=re.escape("a.kind: must be one of blue, green, got 'red'")) as caught:
        check_choices(CONFIG, {"b": ("blue",), "a.kind": ("blue", "green"), "a.size": ("x",)})
    assert caught.value.key == "a.kind"


def test_a_key_that_is_not_there_is_no_choice() -> None:
    with pytest.raises(ConfigError, match=re.escape("a.missing: must be one of red, got None")):
        check_choices(CONFIG, {"a.missing": ("red",)})


@pytest.mark.parametrize(("smallest", "inclusive"), [(2, True), (1, False), (-1, True)])
def test_a_number_within_its_limit_passes(smallest: float, inclusive: bool) -> None:
    check_minimum(CONFIG, {"a.size": (smallest, inclusive)})


@pytest.mark.parametrize(
    ("smallest", "inclusive", "text"),
    [(3, True, "must be at least 3, got 2"), (2, False, "must be above 2, got 2")],
)
def test_a_number_outside_its_limit_is_named(smallest: float, inclusive: bool, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        check_minimum(CONFIG, {"a.size": (smallest, inclusive)})
    assert caught.value.key == "a.size"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_outside_every_limit(value: float) -> None:
    with pytest.raises(ConfigError, match="size: must be at least -5"):
        check_minimum(OmegaConf.create({"size": value}), {"size": (-5, True)})


@pytest.mark.parametrize("config", [{}, {"size": None}])
def test_a_number_that_is_not_set_is_named(config: dict) -> None:
    with pytest.raises(ConfigError, match="size: must be above 0, got None") as caught:
        check_minimum(OmegaConf.create(config), {"size": (0, False)})
    assert caught.value.key == "size"


@pytest.mark.parametrize("value", ["2", True, [2], {"a": 2}])
def test_what_is_no_number_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^size: must be at least 0, got"):
        check_minimum(OmegaConf.create({"size": value}), {"size": (0, True)})
    with pytest.raises(ConfigError, match=r"^size: must be a whole number, at least 0, got"):
        check_whole(OmegaConf.create({"size": value}), {"size": 0})


def test_a_whole_number() -> None:
    check_whole(CONFIG, {"a.size": 2})
    for least, value in ((3, 2), (0, 2.5)):
        with pytest.raises(ConfigError, match=f"at least {least}, got {value}"):
            check_whole(OmegaConf.create({"size": value}), {"size": least})

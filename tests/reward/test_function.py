# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import inspect
import math
import types

import pytest

from verl_uae.reward import reward_function
from verl_uae.reward.function import Declaration, check_call, declaration_of, declared_functions, taken_arguments


def test_the_function_stays_what_it_was() -> None:
    def mine(source, reconstruction, caption, row, k=2):
        """Text."""
        return k * source

    async def later(caption):
        return len(caption)

    assert reward_function(mine) is mine and reward_function(bounds=(0, 9))(later) is later
    assert mine(3, 0, "", {}) == 6 and mine.__doc__ == "Text." and inspect.isfunction(mine)
    assert asyncio.run(later("abc")) == 3


def test_what_is_declared() -> None:
    @reward_function
    def bare(source): ...

    @reward_function(name="other", bounds=(0, 1), higher_is_better=False, batched=True, num_threads=1, batch_size=4)
    def full(sources): ...

    assert declaration_of(bare) == Declaration("bare", (-math.inf, math.inf), True, False, 8, None)
    assert declaration_of(full) == Declaration("other", (0.0, 1.0), False, True, 1, 4)
    assert declaration_of(lambda: 0) is None and declaration_of(3) is None


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"bounds": (1, 0)}, "low < high"),
        ({"bounds": (0, math.nan)}, "low < high"),
        ({"bounds": (0, 1, 2)}, "low, high"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"batch_size": 4}, "needs batched"),
        ({"batched": True, "batch_size": 0}, "at least 1"),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense(facts: dict, text: str) -> None:
    def mine(source, sources): ...

    with pytest.raises(ValueError, match=f"mine: .*{text}"):
        reward_function(**facts)(mine)


def test_which_arguments_are_given() -> None:
    def some(caption, source, threshold=0.5): ...

    def keyword(*, row, **params): ...

    def lists(captions, rows): ...

    def verl(data_source, solution_str, ground_truth, extra_info, **kwargs): ...

    assert taken_arguments(some, Declaration("x")) == ("source", "caption")
    assert taken_arguments(keyword, Declaration("x")) == ("row",)
    assert taken_arguments(lists, Declaration("x", batched=True)) == ("captions", "rows")
    everything = ("data_source", "solution_str", "ground_truth", "extra_info")
    assert taken_arguments(verl, Declaration("x")) == taken_arguments(some, None) == everything


def _pictures(image_a, image_b): ...


def _position(source, /): ...


def _anything(**kwargs): ...


def _lists(sources): ...


@pytest.mark.parametrize(
    ("function", "batched", "text"),
    [
        (_pictures, False, r"_pictures\(image_a, image_b\) names none of the arguments source, reconstruction, capt"),
        (_position, False, "names none"),
        (_anything, False, "names none"),
        (_lists, False, r"it takes sources: set batched=True"),
        (_pictures, True, "names none of the arguments sources, reconstructions, captions, rows"),
        (min, False, "names none|no readable signature"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_where_it_is_declared(function, batched: bool, text: str) -> None:
    # A copy, so that a declaration which wrongly succeeds does not stay on the module's function.
    copy = types.FunctionType(function.__code__, {}, function.__name__) if inspect.isfunction(function) else function
    with pytest.raises(TypeError, match=text):
        reward_function(batched=batched)(copy)


def test_parameters_must_fit() -> None:
    def mine(source, weight, k=2): ...

    taken = taken_arguments(mine, Declaration("mine"))
    check_call(mine, taken, {"weight": 1})
    for params, text in (({}, "'weight'"), ({"weight": 1, "q": 2}, "'q'")):
        with pytest.raises(TypeError, match=rf"mine must take source.* by keyword; it is mine\(source, weight.*{text}"):
            check_call(mine, taken, params)
    with pytest.raises(TypeError, match="must take data_source, solution_str, ground_truth, extra_info by keyword"):
        check_call(mine, taken_arguments(mine, None), {})


def test_declared_functions_of_a_module() -> None:
    def one(source): ...

    def two(source): ...

    module = types.ModuleType("mine")
    module.one = module.again = reward_function(one)  # type: ignore[attr-defined]
    module.two, module.plain = reward_function(name="second")(two), print  # type: ignore[attr-defined]
    assert declared_functions(module) == {"one": one, "second": two}
    module.third = reward_function(name="one")(lambda source: 0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="two reward functions are declared as 'one'"):
        declared_functions(module)

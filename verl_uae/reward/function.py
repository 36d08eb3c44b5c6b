# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Declaring a function as a reward.

    @reward_function(bounds=(0, 1))
    def sharpness(source, reconstruction, radius=2.0):
        ...

The function stays the function it was; what is declared is an attribute of it. A function without declaration is
called with verl's signature (``reward.custom_reward_function``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

ATTRIBUTE = "__verl_uae_reward__"

#: Argument of a function that is called sample by sample, and what it reads of a batch.
ONE_SAMPLE = {"source": "source", "reconstruction": "reconstruction", "caption": "caption", "row": "row"}
#: The same for a batched function: lists of equal length.
MANY_SAMPLES = {"sources": "source", "reconstructions": "reconstruction", "captions": "caption", "rows": "row"}
#: The arguments verl calls a reward function with, all of them and by keyword.
VERL = ("data_source", "solution_str", "ground_truth", "extra_info")

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What :func:`reward_function` says about a function.

    Raises:
        ValueError: numbers that make no sense.
    """

    name: str
    """How a file with several rewards names this one."""
    bounds: Bounds = UNBOUNDED
    """Smallest and largest possible value; a value outside is INVALID."""
    higher_is_better: bool = True
    """False for a distance or a penalty: the scorer then subtracts it."""
    batched: bool = False
    """Whether it takes lists and returns one outcome per sample."""
    num_threads: int = 8
    """Calls in flight, at least 1; 1 for a function that is not thread-safe. A batched one has a single call."""
    batch_size: int | None = None
    """Batched: samples per call, at least 1. None takes the scorer's chunk size, 16."""

    def __post_init__(self) -> None:
        low_high = tuple(float(bound) for bound in self.bounds)
        if len(low_high) != 2 or not low_high[0] < low_high[1]:
            raise ValueError(f"{self.name}: bounds must be (low, high) with low < high, got {self.bounds}")
        object.__setattr__(self, "bounds", low_high)
        if self.num_threads < 1:
            raise ValueError(f"{self.name}: num_threads must be at least 1, got {self.num_threads}")
        if self.batch_size is not None and (not self.batched or self.batch_size < 1):
            raise ValueError(
                f"{self.name}: batch_size must be at least 1 and needs batched=True, got {self.batch_size}"
            )


@overload
def reward_function(function: AnyFunction, /) -> AnyFunction: ...
@overload
def reward_function(
    *,
    name: str | None = None,
    bounds: Bounds = UNBOUNDED,
    higher_is_better: bool = True,
    batched: bool = False,
    num_threads: int = 8,
    batch_size: int | None = None,
) -> Callable[[AnyFunction], AnyFunction]: ...
def reward_function(function: Any = None, /, *, name: str | None = None, **facts: Any) -> Any:
    """Declare a function, plain or ``async``, as a reward.

    It is called by keyword with those of ``source``, ``reconstruction`` (:class:`PIL.Image.Image`, RGB, 8 bit),
    ``caption`` (text) and ``row`` (the data row) that it names, and with the parameters of the configuration. It
    returns a number, or a dict with ``score`` whose other finite numbers are logged. A batched function names
    ``sources``, ``reconstructions``, ``captions`` or ``rows``, which are lists, and returns a list of such outcomes.
    verl's four arguments are possible too.

    Args:
        function: the function, for the form without parentheses.
        name: how a file with several rewards names this one; the function's own name by default.
        facts: ``bounds``, ``higher_is_better``, ``batched``, ``num_threads`` and ``batch_size``, see
            :class:`Declaration`.

    Returns:
        The same function.

    Raises:
        TypeError: it names none of these arguments, or takes one of them by position only.
        ValueError: numbers that make no sense.
    """

    def declare(function: AnyFunction) -> AnyFunction:
        own_name: str = getattr(function, "__name__", type(function).__name__)
        declaration = Declaration(name or own_name, **facts)
        taken_arguments(function, declaration)
        setattr(function, ATTRIBUTE, declaration)
        return function

    return declare if function is None else declare(function)


def declaration_of(function: object) -> Declaration | None:
    """What was declared; None for a function without declaration."""
    found = getattr(function, ATTRIBUTE, None)
    return found if isinstance(found, Declaration) else None


def declared_functions(module: object) -> dict[str, Callable[..., Any]]:
    """Declared functions of a module by declared name.

    Raises:
        ValueError: two of one name.
    """
    found: dict[str, Callable[..., Any]] = {}
    for value in vars(module).values():
        declaration = declaration_of(value)
        if declaration is None or inspect.isclass(value):
            continue
        if found.setdefault(declaration.name, value) is not value:
            raise ValueError(f"two reward functions are declared as {declaration.name!r}")
    return found


def taken_arguments(function: Callable[..., Any], declaration: Declaration | None) -> tuple[str, ...]:
    """Names of the arguments that a function is given for each sample or batch.

    Raises:
        TypeError: none, or one by position only, or an unreadable signature.
    """
    if declaration is None:
        return VERL
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise TypeError(f"{declaration.name} has no readable signature: {error}") from error
    if not declaration.batched and set(VERL) <= set(parameters):
        return VERL
    possible = MANY_SAMPLES if declaration.batched else ONE_SAMPLE
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = tuple(name for name in possible if name in parameters and parameters[name].kind in kinds)
    if not taken:
        other = set(ONE_SAMPLE if declaration.batched else MANY_SAMPLES) & set(parameters)
        hint = f" (it takes {', '.join(sorted(other))}: set batched={not declaration.batched})" if other else ""
        wanted = ", ".join(possible)
        raise TypeError(f"{signature_text(function)} names none of the arguments {wanted} by keyword{hint}")
    return taken


def check_call(function: Callable[..., Any], declaration: Declaration | None, params: Mapping[str, Any]) -> None:
    """Check that a function can be called with what it is given and ``params``.

    Raises:
        TypeError: saying which arguments it must take and what it takes.
    """
    taken = taken_arguments(function, declaration)
    wanted = ", ".join((*taken, *(name for name in params if name not in taken)))
    try:
        inspect.signature(function).bind(**{**dict.fromkeys(taken), **params})
    except (TypeError, ValueError) as error:
        name = getattr(function, "__name__", "it")
        raise TypeError(f"{name} must take {wanted} by keyword; it is {signature_text(function)} ({error})") from error


def signature_text(function: Callable[..., Any]) -> str:
    """Name and arguments as they are written."""
    try:
        return f"{getattr(function, '__name__', 'function')}{inspect.signature(function)}"
    except ValueError:
        return "a function without a readable signature"

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A function in a user's file as a term."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from verl_uae.errors import ConfigError
from verl_uae.reward.function import UNBOUNDED, Declaration, declaration_of, declared_functions, taken_arguments
from verl_uae.reward.function_term import COROUTINE_SHARE, FunctionTerm, announce, to_pil
from verl_uae.reward.params import check_arguments
from verl_uae.reward.term import Scale
from verl_uae.user_code import Source, load_source

__all__ = ["COROUTINE_SHARE", "CustomReward", "to_pil"]

#: verl's own name for a reward function, and the default of ``reward.custom_reward_function.name``.
VERL_NAME = "compute_score"


class CustomReward(FunctionTerm):
    """A function named by file.

    It is declared with :func:`~verl_uae.reward.function.reward_function`, or has verl's signature,
    ``compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)``, all by keyword: ``solution_str``
    is the caption, and ``extra_info`` is a copy of the row's plus ``source_image`` and ``reconstruction``
    (:class:`PIL.Image.Image`, RGB, 8 bit) and ``caption``. How both are called is written at
    :class:`~verl_uae.reward.function_term.FunctionTerm`.

    Args:
        path: file, ``pkg://`` module or dotted module; see :func:`verl_uae.user_code.load_source`.
        name: declared name, or name of a function in it. By default the only declared one, else ``compute_score``.
        reward_kwargs: extra keyword arguments, passed on unchanged.
        num_threads: calls in flight, instead of what is declared (8 for verl's signature).
        bounds: smallest and largest possible score, instead of what is declared (none for verl's signature).
        key: configuration key of these parameters, for errors.

    Raises:
        ConfigError: where the file is refused, the function is missing, or it cannot be called as above.
    """

    bounds = UNBOUNDED

    def __init__(
        self,
        path: str,
        name: str | None = None,
        reward_kwargs: Mapping[str, Any] | None = None,
        num_threads: int | None = None,
        bounds: tuple[float, float] | None = None,
        key: str = "uae.reward.custom",
    ) -> None:
        source = load_source(path, f"{key}.path")
        function = pick_function(source, name, f"{key}.name")
        declaration = declaration_of(function)
        params = dict(reward_kwargs or {})
        clash = sorted(set(params).intersection(_taken(function, declaration, source, key)))
        if clash:
            raise ConfigError(f"{key}.reward_kwargs", f"{clash} are passed for every sample and cannot be fixed here")
        try:
            super().__init__(function, declaration, params)
        except TypeError as error:
            raise ConfigError(f"{key}.name", f"{source.path}: {error}") from error
        self._override(num_threads, bounds, key)
        announce(function, source.path, source.sha256)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """Load the file and refuse what cannot be called; see :class:`CustomReward`."""
        own = inspect.signature(cls).parameters
        beside = [name for name in params if name not in own]
        if beside:
            message = f"is no setting of a custom reward; an argument of the function goes under {key}.reward_kwargs"
            raise ConfigError(f"{key}.{beside[0]}", message)
        check_arguments(cls, params, key)
        cls(**{**params, "key": key})

    @classmethod
    def value_scale(cls, params: Mapping[str, Any]) -> Scale:
        """Bounds and direction of the function that ``params`` name."""
        term = cls(**params)
        return Scale(term.bounds, term.higher_is_better)

    def _override(self, num_threads: int | None, bounds: tuple[float, float] | None, key: str) -> None:
        given: dict[str, Any] = {"num_threads": num_threads, "bounds": bounds}
        for field, value in given.items():
            if value is not None:
                try:
                    facts = dataclasses.replace(Declaration("value"), **{field: value})
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"{key}.{field}", str(error)) from error
                setattr(self, field, getattr(facts, field))


def pick_function(source: Source, name: str | None, key: str) -> Callable[..., Any]:
    """The function of a module that ``name`` means.

    Args:
        source: the loaded module.
        name: declared name or attribute. None, and ``compute_score`` where the module has no such function: the only
            declared one.
        key: configuration key of ``name``, for errors.

    Raises:
        ConfigError: none, or several and no name.
    """
    try:
        declared = declared_functions(source.module)
    except ValueError as error:
        raise ConfigError(key, f"{source.path}: {error}") from error
    wanted = name or VERL_NAME
    if name is None and len(declared) == 1:
        return next(iter(declared.values()))
    function = declared.get(wanted) or getattr(source.module, wanted, None)
    if callable(function):
        return function
    if wanted == VERL_NAME and len(declared) == 1:
        return next(iter(declared.values()))
    if declared:
        known = f"it declares {', '.join(sorted(declared))}; name one"
    else:
        own = [
            found
            for found, value in vars(source.module).items()
            if inspect.isfunction(value) and value.__module__ == source.module.__name__ and not found.startswith("_")
        ]
        one = own[0] if len(own) == 1 else "the function that is meant"
        known = f"it declares none: put @reward_function above {one}, or name it here if it has verl's signature"
        known += f" (its functions: {', '.join(own)})" if len(own) > 1 else ""
    raise ConfigError(key, f"{source.path} has no function {wanted!r}; {known}")


def _taken(function: Callable[..., Any], declaration: Declaration | None, source: Source, key: str) -> tuple[str, ...]:
    try:
        return taken_arguments(function, declaration)
    except TypeError as error:
        raise ConfigError(f"{key}.name", f"{source.path}: {error}") from error

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Objectives by name: what each needs, its parameters, and their checks.

An objective is a pure function. Its positional parameters are fields of
:class:`~verl_uae.flow.objective.types.TransitionInputs` or :class:`~verl_uae.flow.objective.types.ForwardInputs` and
are all it gets to see; its keyword-only ones are set under ``uae.policy.objective.params``.

    @register_objective("mine", kind="transition", needs=("log_prob_B", "advantage_B"), defaults={"scale": 1.0})
    def mine(log_prob_B, advantage_B, *, scale):
        return ObjectiveOutput(-scale * advantage_B * log_prob_B)
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.flow.objective.types import ForwardInputs, Kind, ObjectiveOutput, TransitionInputs

KEY = "uae.policy.objective"

Function = Callable[..., ObjectiveOutput]
#: Raises ConfigError where a parameter is out of range.
Check = Callable[[Mapping[str, Any]], None]
FunctionType = TypeVar("FunctionType", bound=Function)

_INPUTS: Mapping[str, type] = {"transition": TransitionInputs, "forward": ForwardInputs}
_OBJECTIVES: dict[str, Objective] = {}


@dataclass(frozen=True, slots=True)
class Objective:
    """A registered objective, parameters not chosen yet."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    """Fields of the inputs that it reads; the caller may leave optional others None."""
    function: Function
    defaults: Mapping[str, Any] = field(default_factory=dict)
    kernels: tuple[str, ...] | None = None
    """Kernels it is derived for; None: every stochastic one."""
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class BoundObjective:
    """An objective with its parameters: call it with the inputs of its kind."""

    objective: Objective
    params: Mapping[str, Any]

    def __call__(self, inputs: TransitionInputs | ForwardInputs) -> ObjectiveOutput:
        """Loss and figures per sample.

        Raises:
            TypeError: inputs of the other kind, or the function does not return an ObjectiveOutput.
            ValueError: a needed input is None, the step's kernel is not one the objective is derived for, or a loss or
                metric does not have shape (B,).
        """
        objective = self.objective
        if not isinstance(inputs, _INPUTS[objective.kind]):
            raise TypeError(f"objective {objective.name!r} is of kind {objective.kind!r}, got {type(inputs).__name__}")
        if isinstance(inputs, TransitionInputs):
            _check_kernel(objective, inputs.kernel)
        values = {name: getattr(inputs, name) for name in objective.needs}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise ValueError(f"objective {objective.name!r} needs {', '.join(missing)}, which is None")
        output = objective.function(**values, **self.params)
        _check_output(objective.name, output, inputs.advantage_B)
        return output


def register_objective(
    name: str,
    *,
    kind: Kind,
    needs: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    kernels: Sequence[str] | None = None,
    check: Check | None = None,
) -> Callable[[FunctionType], FunctionType]:
    """Decorator claiming ``name`` for a function.

    Args:
        name: the objective's name in the configuration.
        kind: which inputs it takes.
        needs: the fields of the inputs it takes, as its positional parameters.
        defaults: its keyword-only parameters and their values.
        kernels: kernels it is derived for; None for all.
        check: called with the parameters before training; raises ConfigError for one out of range.

    Raises:
        ConfigError: the name is taken.
        TypeError: the signature is not ``(*needs, *, **defaults)``, or ``kind`` or ``needs`` is unknown.
    """

    def decorate(function: FunctionType) -> FunctionType:
        objective = Objective(
            name, kind, tuple(needs), function, dict(defaults or {}), None if kernels is None else tuple(kernels), check
        )
        _check_signature(objective)
        if name in _OBJECTIVES:
            holder, other = _place(_OBJECTIVES[name].function), _place(function)
            raise ConfigError(f"{KEY}.name", f"{name!r} is already registered by {holder}; {other} needs another name")
        _OBJECTIVES[name] = objective
        return function

    return decorate


def objective_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_OBJECTIVES)


def get_objective(name: str) -> Objective:
    """The objective registered as ``name``.

    Raises:
        ConfigError: unknown name; lists the known ones and the closest.
    """
    if name not in _OBJECTIVES:
        raise ConfigError(f"{KEY}.name", f"unknown objective {name!r}.{_known(name, _OBJECTIVES)}")
    return _OBJECTIVES[name]


def bind_objective(
    name: str, params: Mapping[str, Any] | None = None, path: str | None = None, *, kernel: str | None = None
) -> BoundObjective:
    """Choose an objective and its parameters, checked.

    Args:
        name: a registered name.
        params: parameters that differ from the defaults.
        path: a user's file that registers ``name``; see :func:`verl_uae.flow.objective.user_file.load_objective`.
        kernel: the run's kernel, where known, to be refused now and not at the first update.

    Raises:
        ConfigError: the name, a parameter or the kernel is unknown or refused, with its key.
    """
    if path:
        from verl_uae.flow.objective.user_file import load_objective

        objective = load_objective(path, name)
    else:
        objective = get_objective(name)
    chosen = dict(params or {})
    for param in chosen:
        if param not in objective.defaults:
            message = f"unknown parameter of {name!r}.{_known(str(param), objective.defaults)}"
            raise ConfigError(f"{KEY}.params.{param}", message)
    chosen = {**objective.defaults, **chosen}
    if objective.check is not None:
        objective.check(chosen)
    if kernel is not None:
        _check_kernel(objective, kernel)
    return BoundObjective(objective, chosen)


def check_number(params: Mapping[str, Any], name: str, *, above: float = 0.0, at_most: float = math.inf) -> None:
    """Refuse a parameter that is not a finite number in (above, at_most].

    Raises:
        ConfigError: with the parameter's key.
    """
    value = params[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and above < value <= at_most):
        limit = "" if at_most == math.inf else f" and at most {at_most:g}"
        raise ConfigError(f"{KEY}.params.{name}", f"must be a finite number above {above:g}{limit}, got {value!r}")


def _check_kernel(objective: Objective, kernel: str) -> None:
    if objective.kernels is not None and kernel not in objective.kernels:
        message = f"{objective.name!r} is derived for the kernel {' or '.join(objective.kernels)} only, got {kernel!r}"
        raise ConfigError(f"{KEY}.name", message)


def _check_signature(objective: Objective) -> None:
    where = f"objective {objective.name!r} ({_place(objective.function)})"
    if objective.kind not in get_args(Kind):
        raise TypeError(f"{where}: kind must be one of {', '.join(get_args(Kind))}, got {objective.kind!r}")
    known = [entry.name for entry in dataclasses.fields(_INPUTS[objective.kind])]
    unknown = [name for name in objective.needs if name not in known]
    if unknown:
        raise TypeError(f"{where}: {_INPUTS[objective.kind].__name__} has no {', '.join(unknown)}; it has {known}")
    parameters = inspect.signature(objective.function).parameters.values()
    inputs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    params = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    variadic = any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    if variadic or inputs != objective.needs or params != set(objective.defaults):
        wanted = ", ".join([*objective.needs, *(["*"] if objective.defaults else []), *objective.defaults])
        raise TypeError(f"{where}: signature must be ({wanted}), got {inspect.signature(objective.function)}")


def _check_output(name: str, output: object, advantage_B: Tensor) -> None:
    if not isinstance(output, ObjectiveOutput):
        raise TypeError(f"objective {name!r} returned {type(output).__name__}, not ObjectiveOutput")
    for what, value in {"loss_B": output.loss_B, **output.metrics}.items():
        if value.shape != advantage_B.shape:
            wanted, got = tuple(advantage_B.shape), tuple(value.shape)
            raise ValueError(f"objective {name!r}: {what} must have one number per sample, {wanted}, got {got}")


def _known(name: str, names: Iterable[str]) -> str:
    choices = sorted(names)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(choices) or 'none'}"


def _place(function: Function) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', function)}"

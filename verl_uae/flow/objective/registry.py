# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Objectives by name: what each needs, its parameters, and their checks.

An objective is a pure function. What it needs is read from its signature: arguments that are named as fields of
:class:`~verl_uae.flow.objective.types.TransitionInputs` or :class:`~verl_uae.flow.objective.types.ForwardInputs` are
all it gets to see; the others have a default value and are set under ``uae.u4g.objective.params``.

    @register_objective("mine")
    def mine(log_prob_B, advantage_B, *, scale=1.0):
        return ObjectiveOutput(-scale * advantage_B * log_prob_B)

Another package publishes its own under the entry point group ``verl_uae.objectives``; see :mod:`verl_uae.registry`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.flow.objective.types import ForwardInputs, Kind, ObjectiveOutput, TransitionInputs
from verl_uae.registry import Registry, known
from verl_uae.user_code import load_source

KEY = "uae.u4g.objective"

ENTRY_POINT_GROUP = "verl_uae.objectives"

#: Name to "module:function".
BUILT_IN: Mapping[str, str] = {
    "flow_grpo": "verl_uae.flow.objective.clip:flow_grpo",
    "dppo": "verl_uae.flow.objective.dppo:dppo",
    "grpo_guard": "verl_uae.flow.objective.guard:grpo_guard",
    "nft": "verl_uae.flow.objective.nft:nft",
}

Function = Callable[..., ObjectiveOutput]
#: Raises ConfigError where a parameter is out of range.
Check = Callable[[Mapping[str, Any]], None]
FunctionType = TypeVar("FunctionType", bound=Function)

_ATTRIBUTE = "__verl_uae_objective__"

_INPUTS: Mapping[Kind, type] = {"transition": TransitionInputs, "forward": ForwardInputs}


@dataclass(frozen=True, slots=True)
class Objective:
    """A registered objective, parameters not chosen yet."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    """Fields of the inputs that it reads; the caller may leave optional others None."""
    function: Function
    defaults: Mapping[str, Any]
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
    name: str, *, kernels: Sequence[str] | None = None, check: Check | None = None
) -> Callable[[FunctionType], FunctionType]:
    """Decorator claiming ``name`` for a function.

    Args:
        name: the objective's name in the configuration.
        kernels: kernels it is derived for; None for all.
        check: called with the parameters before training; raises ConfigError for one out of range.

    Raises:
        ConfigError: the name is taken.
        TypeError: an argument is neither an input nor a parameter with a default value, or there is none that tells
            which kind of inputs it takes.
    """

    def decorate(function: FunctionType) -> FunctionType:
        where = f"objective {name!r} ({function.__module__}:{function.__qualname__})"
        kind, needs, defaults = _read_signature(function, where)
        objective = Objective(name, kind, needs, function, defaults, None if kernels is None else tuple(kernels), check)
        setattr(function, _ATTRIBUTE, objective)
        OBJECTIVES.claim(name, objective, function)
        return function

    return decorate


def get_objective(name: str) -> Objective:
    """The objective registered as ``name``.

    Raises:
        ConfigError: unknown name; lists the known ones and the closest.
    """
    return OBJECTIVES.get(name)


def load_objective(path: str, name: str) -> Objective:
    """Run a user's code and return the objective that it registers as ``name`` with ``@register_objective``.

    Args:
        path: file, ``pkg://`` module or dotted module; see :func:`verl_uae.user_code.load_source`.
        name: the objective in it.

    Raises:
        ConfigError: the code is refused, fails while it runs, or does not register ``name``.
    """
    source = load_source(path, f"{KEY}.path")
    theirs = OBJECTIVES.names(source.module.__name__)
    if name not in theirs:
        message = f"{source.path} does not register {name!r}; it registers {theirs or 'nothing'}"
        raise ConfigError(f"{KEY}.name", message)
    return get_objective(name)


def bind_objective(
    name: str, params: Mapping[str, Any] | None = None, path: str | None = None, *, kernel: str | None = None
) -> BoundObjective:
    """Choose an objective and its parameters, checked.

    Args:
        name: a registered name.
        params: parameters that differ from the defaults.
        path: a user's code that registers ``name``; see :func:`load_objective`.
        kernel: the run's kernel, where known, to be refused now and not at the first update.

    Raises:
        ConfigError: the name, a parameter or the kernel is unknown or refused, with its key.
    """
    objective = load_objective(path, name) if path else get_objective(name)
    chosen = dict(params or {})
    for param in chosen:
        if param not in objective.defaults:
            message = f"unknown parameter of {name!r}.{known(str(param), objective.defaults)}"
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


def _read_signature(function: Function, where: str) -> tuple[Kind, tuple[str, ...], dict[str, Any]]:
    """Kind, inputs and parameters with their defaults."""
    fields = {kind: [entry.name for entry in dataclasses.fields(inputs)] for kind, inputs in _INPUTS.items()}
    inputs = set().union(*fields.values())
    needs, defaults = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where}: cannot be called with {parameter} by keyword")
        if name in inputs:
            needs.append(name)
        elif parameter.default is parameter.empty:
            raise TypeError(f"{where}: {name} is no input, and a parameter has a default value.{known(name, inputs)}")
        else:
            defaults[name] = parameter.default
    fitting = [kind for kind, names in fields.items() if set(needs) <= set(names)]
    if len(fitting) != 1:
        raise TypeError(f"{where}: must take inputs of one kind, got {', '.join(needs) or 'none'}; they are {fields}")
    return fitting[0], tuple(needs), defaults


def _check_output(name: str, output: object, advantage_B: Tensor) -> None:
    if not isinstance(output, ObjectiveOutput):
        raise TypeError(f"objective {name!r} returned {type(output).__name__}, not ObjectiveOutput")
    for what, value in {"loss_B": output.loss_B, **output.metrics}.items():
        if value.shape != advantage_B.shape:
            wanted, got = tuple(advantage_B.shape), tuple(value.shape)
            raise ValueError(f"objective {name!r}: {what} must have one number per sample, {wanted}, got {got}")


def _registered(found: Any, name: str) -> Objective:
    objective = getattr(found, _ATTRIBUTE, None)
    if not isinstance(objective, Objective) or objective.name != name:
        raise TypeError(f"{found!r} is not registered as {name!r} with @register_objective")
    return objective


OBJECTIVES: Registry[Objective] = Registry("objective", f"{KEY}.name", ENTRY_POINT_GROUP, _registered, BUILT_IN)

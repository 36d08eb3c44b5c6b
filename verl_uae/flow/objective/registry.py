# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Objectives by name: what each needs, its parameters, and their checks.

An objective is a pure function. What it needs is read from its signature: arguments that are named as fields of
:class:`~verl_uae.flow.objective.types.TransitionInputs` or :class:`~verl_uae.flow.objective.types.ForwardInputs` are
all it gets to see; the others have a default value and are set under ``uae.u4g.objective.params``::

    @register_objective("mine")
    def mine(log_prob_B, advantage_B, *, scale=1.0):
        return ObjectiveOutput(-scale * advantage_B * log_prob_B)

An objective whose loss depends on its group declares a figure per sample, and is given its mean over the group::

    def figure(velocity_BCHW, x0_BCHW): ...

    @register_objective("mine", group=figure)
    def mine(velocity_BCHW, x0_BCHW, advantage_B, group_mean_B): ...

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
    "awm": "verl_uae.flow.objective.awm:awm",
    "dgpo": "verl_uae.flow.objective.dgpo:dgpo",
    "crd": "verl_uae.flow.objective.crd:crd",
}

Function = Callable[..., ObjectiveOutput]
#: Raises ConfigError where a parameter is out of range.
Check = Callable[[Mapping[str, Any]], None]
#: One number per sample, shape (B,), from the arguments it names: inputs and parameters of its objective.
GroupFigure = Callable[..., Tensor]
#: Inputs that an objective does not read with these parameters; it is given None for them.
Unneeded = Callable[[Mapping[str, Any]], Sequence[str]]
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
    group: GroupFigure | None = None
    """Figure whose mean over a sample's group is its input ``group_mean_B``."""
    unneeded: Unneeded | None = None


@dataclass(frozen=True, slots=True)
class BoundObjective:
    """An objective with its parameters: call it with the inputs of its kind."""

    objective: Objective
    params: Mapping[str, Any]

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the inputs that it reads with these parameters."""
        left_out = self.objective.unneeded(self.params) if self.objective.unneeded is not None else ()
        return tuple(name for name in self.objective.needs if name not in left_out)

    @property
    def grouped(self) -> bool:
        """Whether a sample's loss depends on the others of its group."""
        return self.objective.group is not None

    def group_figure(self, inputs: ForwardInputs) -> Tensor:
        """The figure to average over each group, shape (B,), without gradient.

        Raises:
            ValueError: the objective has none, or it does not have shape (B,).
        """
        figure = self.objective.group
        if figure is None:
            raise ValueError(f"objective {self.objective.name!r} has no figure of its group")
        values = {
            name: self.params[name] if name in self.params else getattr(inputs, name)
            for name in inspect.signature(figure).parameters
        }
        value_B = figure(**values).detach()
        if value_B.shape != inputs.advantage_B.shape:
            wanted, got = tuple(inputs.advantage_B.shape), tuple(value_B.shape)
            raise ValueError(f"objective {self.objective.name!r}: its group figure must have shape {wanted}, got {got}")
        return value_B

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
        needs = self.needs
        values = {name: getattr(inputs, name) if name in needs else None for name in objective.needs}
        missing = [name for name in needs if values[name] is None]
        if missing:
            raise ValueError(f"objective {objective.name!r} needs {', '.join(missing)}, which is None")
        output = objective.function(**values, **self.params)
        _check_output(objective.name, output, inputs.advantage_B)
        return output


def register_objective(
    name: str,
    *,
    kernels: Sequence[str] | None = None,
    check: Check | None = None,
    group: GroupFigure | None = None,
    unneeded: Unneeded | None = None,
) -> Callable[[FunctionType], FunctionType]:
    """Decorator claiming ``name`` for a function.

    Args:
        name: the objective's name in the configuration.
        kernels: kernels it is derived for; None for all.
        check: called with the parameters before training; raises ConfigError for one out of range.
        group: figure per sample whose mean over the group the objective takes as ``group_mean_B``; its arguments are
            inputs of forward objectives and parameters of this one. It costs a pass of the current weights.
        unneeded: called with the parameters; names inputs of the signature that are not read with them, so that
            nobody computes them.

    Raises:
        ConfigError: the name is taken.
        TypeError: an argument is neither an input nor a parameter with a default value, or there is none that tells
            which kind of inputs it takes; or of ``group_mean_B`` and ``group`` there is only one.

    Example:
        Policy gradient without a clip:

        >>> from verl_uae.flow.objective import ObjectiveOutput
        >>> @register_objective("docs_unclipped")
        ... def unclipped(log_prob_B, old_log_prob_B, advantage_B):
        ...     return ObjectiveOutput(-(log_prob_B - old_log_prob_B).exp() * advantage_B, {})
        >>> get_objective("docs_unclipped").needs
        ('log_prob_B', 'old_log_prob_B', 'advantage_B')
    """

    def decorate(function: FunctionType) -> FunctionType:
        where = f"objective {name!r} ({function.__module__}:{function.__qualname__})"
        kind, needs, defaults = _read_signature(function, where)
        _check_group(group, needs, defaults, where)
        only = None if kernels is None else tuple(kernels)
        objective = Objective(name, kind, needs, function, defaults, only, check, group, unneeded)
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


def check_number(
    params: Mapping[str, Any],
    name: str,
    *,
    above: float = 0.0,
    at_most: float = math.inf,
    at_least: float | None = None,
) -> None:
    """Refuse a parameter that is not a finite number in (above, at_most], or in [at_least, at_most] if that is given.

    Raises:
        ConfigError: with the parameter's key.
    """
    value = params[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and (above < value if at_least is None else at_least <= value) and value <= at_most):
        lower = f"above {above:g}" if at_least is None else f"of at least {at_least:g}"
        limit = "" if at_most == math.inf else f" and at most {at_most:g}"
        raise ConfigError(f"{KEY}.params.{name}", f"must be a finite number {lower}{limit}, got {value!r}")


def check_choice(params: Mapping[str, Any], name: str, choices: Sequence[str]) -> None:
    """Refuse a parameter that is none of the choices.

    Raises:
        ConfigError: with the parameter's key.
    """
    if params[name] not in choices:
        raise ConfigError(f"{KEY}.params.{name}", f"must be one of {', '.join(choices)}, got {params[name]!r}")


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


def _check_group(group: GroupFigure | None, needs: Sequence[str], defaults: Mapping[str, Any], where: str) -> None:
    if (group is not None) != ("group_mean_B" in needs):
        raise TypeError(f"{where}: takes group_mean_B exactly where it is registered with a group figure")
    if group is None:
        return
    allowed = {entry.name for entry in dataclasses.fields(ForwardInputs)} - {"group_mean_B"} | set(defaults)
    for name in inspect.signature(group).parameters:
        if name not in allowed:
            raise TypeError(f"{where}: {name} of its group figure is no input and no parameter.{known(name, allowed)}")


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

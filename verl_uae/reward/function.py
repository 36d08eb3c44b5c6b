# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A function as a reward: declaring it, and the term that calls it::

    @reward_function(bounds=(0, 1))
    def sharpness(source, reconstruction, radius=2.0):
        ...

The function stays the function it was; what is declared is an attribute of it. A function without declaration is
called with verl's signature (``reward.custom_reward_function``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch

from verl_uae.data.images import to_pil
from verl_uae.errors import ConfigError
from verl_uae.reward.deadline import Call, Guard, LateError, doing
from verl_uae.reward.record import (
    RewardBatch,
    RewardRecord,
    Status,
    as_number,
    as_record,
    as_rows,
    describe,
)
from verl_uae.reward.term import KNOWN_NEEDS, PICTURES, RewardTerm, Scale, TermContext
from verl_uae.user_code import Source, load_source

logger = logging.getLogger(__name__)

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

ATTRIBUTE = "__verl_uae_reward__"

#: Argument of a function that is called sample by sample, and what it reads of a batch.
ONE_SAMPLE = {name: name for name in ("source", "reconstruction", "caption", "row")}
#: The same for a batched function: lists of equal length.
MANY_SAMPLES = {f"{name}s": name for name in ONE_SAMPLE}
#: The arguments verl calls a reward function with, all of them and by keyword.
VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
#: verl's own name for a reward function, and the default of ``reward.custom_reward_function.name``.
VERL_NAME = "compute_score"

#: Share of the timeout a coroutine gets, so that it is cancelled before its thread would be abandoned.
COROUTINE_SHARE = 0.9

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

    Example:
        A reward for reconstructions that are as bright as the picture, between 0 and 1:

        >>> from PIL import Image, ImageStat
        >>> @reward_function(bounds=(0.0, 1.0))
        ... def brightness(source, reconstruction):
        ...     means = [ImageStat.Stat(image.convert("L")).mean[0] for image in (source, reconstruction)]
        ...     return 1.0 - abs(means[0] - means[1]) / 255.0
        >>> brightness(Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black"))
        0.0
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
    possible, others = (MANY_SAMPLES, ONE_SAMPLE) if declaration.batched else (ONE_SAMPLE, MANY_SAMPLES)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = tuple(name for name in possible if name in parameters and parameters[name].kind in kinds)
    if not taken:
        other = ", ".join(sorted(set(others) & set(parameters)))
        hint = f" (it takes {other}: set batched={not declaration.batched})" if other else ""
        wanted = ", ".join(possible)
        raise TypeError(f"{signature_text(function)} names none of the arguments {wanted} by keyword{hint}")
    return taken


def check_call(function: Callable[..., Any], given: Sequence[str], params: Mapping[str, Any]) -> None:
    """Check that a function can be called by keyword with what it is given and ``params``.

    Raises:
        TypeError: saying which arguments it must take and what it takes.
    """
    arguments = {**dict.fromkeys(given), **params}
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:
        name, wanted = getattr(function, "__name__", "it"), ", ".join(arguments)
        raise TypeError(f"{name} must take {wanted} by keyword; it is {signature_text(function)} ({error})") from error


def signature_text(function: Callable[..., Any]) -> str:
    """Name and arguments as they are written."""
    try:
        return f"{getattr(function, '__name__', 'function')}{inspect.signature(function)}"
    except ValueError:
        return "a function without a readable signature"


@functools.cache
def announce(function: Callable[..., Any], path: str, sha256: str) -> None:
    """Log which function is a reward of this process, once."""
    logger.info("custom reward %s from %s, sha256 %s", signature_text(function), path, sha256 or "unknown")


# ---------------------------------------------------------------- calling one


async def _contained(result: Any) -> object:
    try:
        return await result
    except SystemExit as error:
        # It would end the event loop itself, which then complains about a task that nobody has heard.
        raise RuntimeError(f"called sys.exit({error.code!r})") from error


async def _within(result: Any, timeout_s: float) -> object:
    """Await a result, or raise :class:`LateError`."""
    task = asyncio.ensure_future(_contained(result))
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    if not done:
        raise LateError  # asyncio.run cancels the task on its way out and waits for its cleanup.
    return task.result()


def own_copy(value: Any) -> Any:
    """A data row that a function may change: its mappings and lists are new, what they hold is not."""
    if isinstance(value, Mapping):
        return {key: own_copy(entry) for key, entry in value.items()}
    return [own_copy(entry) for entry in value] if isinstance(value, list) else value


class CallingTerm(RewardTerm):
    """A term that calls a user's function under the scorer's deadline, which it keeps every call to itself."""

    guarded = True
    model_free = True

    def __init__(self, function: Callable[..., Any], params: Mapping[str, Any], label: str) -> None:
        self.label = label
        self.guard = Guard()
        self._function = function
        self._params = dict(params)

    def setup(self, context: TermContext) -> None:
        """Take over the scorer's timeout, and the label for reasons."""
        self.guard = context.guard
        self.label = context.label or self.label

    def call(self, arguments: Mapping[str, Any]) -> object:
        """What the function, plain or ``async``, returns.

        Raises:
            LateError: a coroutine takes longer than :data:`COROUTINE_SHARE` of the timeout.
        """
        with torch.no_grad():
            result = self._function(**{**arguments, **self._params})
            late_s = COROUTINE_SHARE * self.guard.timeout_s
            return asyncio.run(_within(result, late_s)) if inspect.isawaitable(result) else result


class FunctionTerm(CallingTerm):
    """Calls a function for every sample, or, where it is declared as batched, for chunks of samples.

    Sample by sample, calls run on ``num_threads`` threads, each with the scorer's timeout. A coroutine that is late is
    cancelled; a plain function is abandoned (:mod:`verl_uae.reward.deadline`). Each coroutine gets an event loop of its
    own, so a client session must be opened inside the function.

    A batched function is treated like any other term (:mod:`verl_uae.reward.isolate`): it sees chunks of one size, and
    where it raises or returns the wrong number of outcomes its samples are tried one by one, so that only the bad ones
    are lost. The timeout is for all chunks together; what was scored before it strikes is kept.

    Args:
        function: the function.
        declaration: what was declared; None for verl's signature.
        params: extra keyword arguments, passed on unchanged.

    Raises:
        TypeError: where it cannot be called so.
    """

    def __init__(
        self, function: Callable[..., Any], declaration: Declaration | None, params: Mapping[str, Any]
    ) -> None:
        super().__init__(function, params, "custom")
        self._taken = taken_arguments(function, declaration)
        check_call(function, self._taken, params)
        facts = declaration or Declaration("custom")
        self.bounds = facts.bounds
        self.higher_is_better = facts.higher_is_better
        self.guarded = not facts.batched
        self.chunk_size = facts.batch_size
        self.num_threads = facts.num_threads
        reads = {**ONE_SAMPLE, **MANY_SAMPLES}
        self.needs = KNOWN_NEEDS - {"group"} if self._taken == VERL else frozenset(reads[name] for name in self._taken)

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """Score every sample; a function that is not batched never raises for one.

        Raises:
            RewardError: too many abandoned calls are still running.
            WrongAnswerError: a batched function has not returned one outcome per sample.
        """
        if not self.guarded:
            return self._score_together(batch)
        calls = [functools.partial(self._call_one, batch, index) for index in range(len(batch))]
        return [self._record(call) for call in self.guard.map(self.label, calls, self.num_threads)]

    def _score_together(self, batch: RewardBatch) -> list[RewardRecord]:
        if batch.origin is not None and batch.origin.batch.over:
            raise TimeoutError("the scorer has answered without this call")
        start = time.monotonic()
        lists = {name: [_read(batch, MANY_SAMPLES[name], index) for index in range(len(batch))] for name in self._taken}
        try:
            answers = as_rows(self.call(lists), len(batch))
        except LateError as error:
            return [self._record(Call(error=error))] * len(batch)
        except SystemExit as error:
            # As an ordinary exception it costs the sample that causes it, not all that are still to come.
            raise RuntimeError(f"called sys.exit({error.code!r})") from error
        share = (time.monotonic() - start) / len(batch)
        return [self._record(Call(value=answer, seconds=share)) for answer in answers]

    def _call_one(self, batch: RewardBatch, index: int) -> object:
        row = batch.rows[index] if batch.rows is not None else {}
        with doing(f"row {(row.get('extra_info') or {}).get('index', '?')}"):
            if self._taken == VERL:
                return self.call(_verl_arguments(batch, index))
            return self.call({name: _read(batch, ONE_SAMPLE[name], index) for name in self._taken})

    def _record(self, call: Call[object]) -> RewardRecord:
        failure = call.failure(self.label, self.guard.timeout_s)
        if failure is not None:
            return failure
        if not isinstance(call.value, Mapping):
            return as_record(self.label, call.value, self.bounds, call.seconds)
        if "score" not in call.value:
            reason = f"{self.label}: returned {describe(dict(call.value))} without 'score'"
            return RewardRecord.failed(Status.INVALID, reason, call.seconds)
        record = as_record(self.label, call.value["score"], self.bounds, call.seconds)
        if not record.ok:
            return record
        numbers = {str(name): as_number(value) for name, value in call.value.items() if name != "score"}
        terms = {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}
        return dataclasses.replace(record, terms=terms)


def _read(batch: RewardBatch, part: str, index: int) -> Any:
    """A sample's picture, caption or row, for a function that may change what it is given."""
    if part in PICTURES:
        return to_pil(batch.source_B3HW[index] if part == "source" else batch.reconstruction_B3HW[index])
    values: Any = batch.captions if part == "caption" else batch.rows
    return values[index] if part == "caption" else own_copy(values[index])


def _verl_arguments(batch: RewardBatch, index: int) -> dict[str, Any]:
    source, reconstruction, caption, row = (_read(batch, part, index) for part in ONE_SAMPLE)
    pictures = {"source_image": source, "reconstruction": reconstruction, "caption": caption}
    # verl's parquet rows keep the ground truth one level down.
    truth = row["ground_truth"] if "ground_truth" in row else (row.get("reward_model") or {}).get("ground_truth")
    return {
        "data_source": row.get("data_source"),
        "solution_str": caption,
        "ground_truth": truth,
        "extra_info": {**(row.get("extra_info") or {}), **pictures},
    }


def term_of_function(function: Callable[..., Any], name: str) -> type[FunctionTerm]:
    """A term class, registered as ``name``, of a declared function, whose parameters are the function's own.

    Raises:
        TypeError: a function without declaration.
    """
    found = declaration_of(function)
    if found is None:
        raise TypeError(f"{signature_text(function)} is not declared with @reward_function")
    declaration: Declaration = found

    class DeclaredReward(FunctionTerm):
        bounds = declaration.bounds
        higher_is_better = declaration.higher_is_better

        def __init__(self, **params: Any) -> None:
            super().__init__(function, declaration, params)
            self.label = name
            source = load_source(function.__module__, f"uae.reward.terms.{name}")
            announce(function, source.path, source.sha256)

        @classmethod
        def check_params(cls, params: Mapping[str, Any], key: str) -> None:
            try:
                cls(**params)
            except TypeError as error:
                raise ConfigError(key, str(error)) from error

    DeclaredReward.__name__ = DeclaredReward.__qualname__ = getattr(function, "__qualname__", name)
    DeclaredReward.__module__ = function.__module__
    DeclaredReward.__doc__ = function.__doc__
    return DeclaredReward


class CustomReward(FunctionTerm):
    """A function named by file.

    It is declared with :func:`reward_function`, or has verl's signature,
    ``compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)``, all by keyword: ``solution_str``
    is the caption, and ``extra_info`` is a copy of the row's plus ``source_image`` and ``reconstruction``
    (:class:`PIL.Image.Image`, RGB, 8 bit) and ``caption``. How both are called is written at :class:`FunctionTerm`.

    Args:
        path: file, ``pkg://`` module or dotted module; see :func:`verl_uae.user_code.load_source`.
        name: declared name, or name of a function in it. By default the only declared one, else ``compute_score``.
        reward_kwargs: extra keyword arguments, passed on unchanged.
        num_threads: calls in flight, instead of what is declared (8 for verl's signature).
        bounds: smallest and largest possible score, instead of what is declared (none for verl's signature).

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
    ) -> None:
        key = "uae.reward.custom"
        source = load_source(path, f"{key}.path")
        function = pick_function(source, name, f"{key}.name")
        declaration, params = declaration_of(function), dict(reward_kwargs or {})
        try:
            clash = sorted(set(params).intersection(taken_arguments(function, declaration)))
            if clash:
                message = f"{clash} are passed for every sample and cannot be fixed here"
                raise ConfigError(f"{key}.reward_kwargs", message)
            super().__init__(function, declaration, params)
        except TypeError as error:
            raise ConfigError(f"{key}.name", f"{source.path}: {error}") from error
        given: dict[str, Any] = {"num_threads": num_threads, "bounds": bounds}
        for field, value in given.items():
            if value is not None:
                try:
                    facts = dataclasses.replace(Declaration("value"), **{field: value})
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"{key}.{field}", str(error)) from error
                setattr(self, field, getattr(facts, field))
        announce(function, source.path, source.sha256)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """Load the file and refuse what cannot be called; see :class:`CustomReward`."""
        beside = [name for name in params if name not in inspect.signature(cls).parameters]
        if beside:
            message = f"is no setting of a custom reward; an argument of the function goes under {key}.reward_kwargs"
            raise ConfigError(f"{key}.{beside[0]}", message)
        super().check_params(params, key)

    @classmethod
    def value_scale(cls, params: Mapping[str, Any]) -> Scale:
        """Bounds and direction of the function that ``params`` name."""
        term = cls(**params)
        return Scale(term.bounds, term.higher_is_better)


def pick_function(source: Source, name: str | None, key: str) -> Callable[..., Any]:
    """The function of a loaded module that ``name`` means, a declared name or an attribute.

    None, and ``compute_score`` where the module has no such function, mean the only declared one.

    Raises:
        ConfigError: none, or several and no name.
    """
    try:
        declared = declared_functions(source.module)
    except ValueError as error:
        raise ConfigError(key, f"{source.path}: {error}") from error
    wanted = name or VERL_NAME
    only = next(iter(declared.values())) if len(declared) == 1 else None
    if name is None and only is not None:
        return only
    function = declared.get(wanted) or getattr(source.module, wanted, None)
    if not callable(function) and wanted == VERL_NAME:
        function = only
    if callable(function):
        return function
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

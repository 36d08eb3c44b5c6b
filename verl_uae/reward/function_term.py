# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A reward function as a term: one that is declared, or one that a user's file has."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.deadline import Call, Guard
from verl_uae.reward.doing import doing
from verl_uae.reward.function import (
    MANY_SAMPLES,
    ONE_SAMPLE,
    UNBOUNDED,
    VERL,
    Declaration,
    check_call,
    declaration_of,
    declared_functions,
    signature_text,
    taken_arguments,
)
from verl_uae.reward.record import (
    RewardBatch,
    RewardRecord,
    Status,
    as_number,
    as_record,
    as_rows,
    describe,
    describe_error,
)
from verl_uae.reward.term import KNOWN_NEEDS, PICTURES, RewardTerm, Scale, TermContext, check_arguments
from verl_uae.user_code import Source, load_source

logger = logging.getLogger(__name__)

#: Share of the timeout a coroutine gets, so that it is cancelled before its thread would be abandoned.
COROUTINE_SHARE = 0.9


class FunctionTerm(RewardTerm):
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

    model_free = True

    def __init__(
        self, function: Callable[..., Any], declaration: Declaration | None, params: Mapping[str, Any]
    ) -> None:
        check_call(function, declaration, params)
        facts = declaration or Declaration("custom")
        self.bounds = facts.bounds
        self.higher_is_better = facts.higher_is_better
        self.guarded = not facts.batched
        self.chunk_size = facts.batch_size
        self.num_threads = facts.num_threads
        self.label = "custom"
        self.guard = Guard()
        self._function = function
        self._params = dict(params)
        self._taken = taken_arguments(function, declaration)
        if self._taken == VERL:
            self.needs = KNOWN_NEEDS - {"group"}
        else:
            self.needs = frozenset({**ONE_SAMPLE, **MANY_SAMPLES}[name] for name in self._taken)

    def setup(self, context: TermContext) -> None:
        """Take over the scorer's timeout, and the label for reasons."""
        self.guard = context.guard
        self.label = context.label or self.label

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
        try:
            answers = as_rows(self._call(self._lists, batch), len(batch))
        except LateError as error:
            return [self._record(Call(error=error))] * len(batch)
        except SystemExit as error:
            # As an ordinary exception it costs the sample that causes it, not all that are still to come.
            raise RuntimeError(f"called sys.exit({error.code!r})") from error
        share = (time.monotonic() - start) / len(batch)
        return [self._record(Call(value=answer, seconds=share)) for answer in answers]

    def _call_one(self, batch: RewardBatch, index: int) -> object:
        row = batch.rows[index] if batch.rows is not None else {}
        number = (row.get("extra_info") or {}).get("index", "?")
        with doing(f"row {number}"):
            return self._call(self._arguments, batch, index)

    def _call(self, arguments: Callable[..., Mapping[str, Any]], *place: Any) -> object:
        with torch.no_grad():
            return call_function(self._function, {**arguments(*place), **self._params}, self.guard.timeout_s)

    def _arguments(self, batch: RewardBatch, index: int) -> Mapping[str, Any]:
        if self._taken == VERL:
            return _verl_arguments(batch, index)
        return {name: _read(batch, ONE_SAMPLE[name], index) for name in self._taken}

    def _lists(self, batch: RewardBatch) -> Mapping[str, Any]:
        return {name: [_read(batch, MANY_SAMPLES[name], index) for index in range(len(batch))] for name in self._taken}

    def _record(self, call: Call[object]) -> RewardRecord:
        label = self.label
        failure = failure_of(label, call, self.guard.timeout_s)
        if failure is not None:
            return failure
        if not isinstance(call.value, Mapping):
            return as_record(label, call.value, self.bounds, call.seconds)
        if "score" not in call.value:
            reason = f"{label}: returned {describe(dict(call.value))} without 'score'"
            return RewardRecord.failed(Status.INVALID, reason, call.seconds)
        record = as_record(label, call.value["score"], self.bounds, call.seconds)
        if not record.ok:
            return record
        return RewardRecord(record.value, Status.OK, _extra_terms(call.value), call.seconds)


def term_of_function(function: Callable[..., Any], name: str) -> type[FunctionTerm]:
    """A term class of a declared function, whose parameters are the function's own.

    Args:
        function: a function with :func:`~verl_uae.reward.function.reward_function`.
        name: registered name of the term.

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


@functools.cache
def announce(function: Callable[..., Any], path: str, sha256: str) -> None:
    """Log which function is a reward of this process, once."""
    logger.info("custom reward %s from %s, sha256 %s", signature_text(function), path, sha256 or "unknown")


class LateError(Exception):
    """A coroutine was cancelled at its deadline. Not TimeoutError, which the user's own code may raise."""


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


def call_function(function: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> object:
    """What a user's function, plain or ``async``, returns.

    Raises:
        LateError: a coroutine takes longer than :data:`COROUTINE_SHARE` of the timeout.
    """
    result = function(**arguments)
    return asyncio.run(_within(result, COROUTINE_SHARE * timeout_s)) if inspect.isawaitable(result) else result


def failure_of(label: str, call: Call[object], timeout_s: float) -> RewardRecord | None:
    """The record of a call that was late or raised; None for one that returned."""
    if call.timed_out or isinstance(call.error, LateError):
        return RewardRecord.failed(Status.TIMEOUT, f"{label}: no answer within {timeout_s:g} s", call.seconds)
    if call.error is not None:
        return RewardRecord.failed(Status.ERROR, f"{label}: {describe_error(call.error)}", call.seconds)
    return None


def to_pil(image_3HW: Tensor) -> Image.Image:
    """A picture in [0, 1], shape (3, H, W), as 8-bit RGB, rounded to the nearest level."""
    levels_HW3 = image_3HW.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(levels_HW3.cpu().numpy(), mode="RGB")


def own_copy(value: Any) -> Any:
    """A data row that a function may change: its mappings and lists are new, what they hold is not."""
    if isinstance(value, Mapping):
        return {key: own_copy(entry) for key, entry in value.items()}
    return [own_copy(entry) for entry in value] if isinstance(value, list) else value


def _read(batch: RewardBatch, part: str, index: int) -> Any:
    """A sample's picture, caption or row, for a function that may change what it is given."""
    if part in PICTURES:
        return to_pil(batch.source_B3HW[index] if part == "source" else batch.reconstruction_B3HW[index])
    values: Any = batch.captions if part == "caption" else batch.rows
    return values[index] if part == "caption" else own_copy(values[index])


def _verl_arguments(batch: RewardBatch, index: int) -> dict[str, Any]:
    row = _read(batch, "row", index)
    extra_info = {
        **(row.get("extra_info") or {}),
        "source_image": _read(batch, "source", index),
        "reconstruction": _read(batch, "reconstruction", index),
        "caption": _read(batch, "caption", index),
    }
    # verl's parquet rows keep the ground truth one level down.
    truth = row["ground_truth"] if "ground_truth" in row else (row.get("reward_model") or {}).get("ground_truth")
    return {
        "data_source": row.get("data_source"),
        "solution_str": extra_info["caption"],
        "ground_truth": truth,
        "extra_info": extra_info,
    }


def _extra_terms(result: Mapping[Any, object]) -> dict[str, float]:
    numbers = {str(name): as_number(value) for name, value in result.items() if name != "score"}
    return {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}


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

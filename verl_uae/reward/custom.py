# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A user's own reward function as a term, with verl's signature."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.deadline import Call, Guard
from verl_uae.reward.outcome import as_number, as_record, describe, describe_error
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.source import load_source
from verl_uae.reward.term import RewardTerm, TermContext

logger = logging.getLogger(__name__)

LABEL = "custom"

#: Share of the timeout a coroutine gets, so that it is cancelled before its thread would be abandoned.
COROUTINE_SHARE = 0.9

#: The arguments verl calls a reward function with, all by keyword.
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")


class CustomReward(RewardTerm):
    """Calls ``compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)`` for every sample.

    The signature is verl's own (``reward.custom_reward_function``), so one function serves both. It is called by
    keyword; ``solution_str`` is the caption, and ``extra_info`` is a copy of the row's plus ``source_image`` and
    ``reconstruction`` (:class:`PIL.Image.Image`, RGB, 8 bit) and ``caption``. It may be a coroutine function. It
    returns a number, or a dict with ``score`` whose other finite numbers are recorded as ``custom/<key>``.

    Calls run on ``num_threads`` threads, each with the scorer's timeout. A coroutine that is late is cancelled; a plain
    function is abandoned (:mod:`verl_uae.reward.deadline`). Each coroutine gets an event loop of its own, so a
    client session must be opened inside the function.

    Args:
        path: file, ``pkg://`` module or dotted module; see :func:`verl_uae.reward.source.load_source`.
        name: function in it.
        reward_kwargs: extra keyword arguments, passed on unchanged.
        num_threads: calls in flight. 1 for a function that is not thread-safe.
        bounds: smallest and largest possible score; unbounded by default.
        key: configuration key of this term, for errors.

    Raises:
        ConfigError: where the file is refused, the function is missing, or it cannot be called as above.
    """

    needs = frozenset({"source", "reconstruction", "caption", "row"})
    bounds = (-math.inf, math.inf)
    guarded = True
    model_free = True

    def __init__(
        self,
        path: str,
        name: str = "compute_score",
        reward_kwargs: Mapping[str, Any] | None = None,
        num_threads: int = 8,
        bounds: tuple[float, float] | None = None,
        key: str = "uae.reward.custom",
    ) -> None:
        if num_threads < 1:
            raise ConfigError(f"{key}.num_threads", f"must be at least 1, got {num_threads}")
        if bounds is not None:
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise ConfigError(f"{key}.bounds", f"must be (low, high) with low < high, got {bounds}")
            self.bounds = (float(bounds[0]), float(bounds[1]))
        self.num_threads = num_threads
        self.guard = Guard()
        self._kwargs = dict(reward_kwargs or {})
        self._function = _load_function(path, name, self._kwargs, key)

    def setup(self, context: TermContext) -> None:
        """Take over the scorer's timeout."""
        self.guard = context.guard

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """Score every sample on its own; never raises for a sample.

        Raises:
            RewardError: too many abandoned calls are still running.
        """
        calls = [functools.partial(self._call, batch, index) for index in range(len(batch))]
        return [self._record(call) for call in self.guard.map(LABEL, calls, self.num_threads)]

    def _call(self, batch: RewardBatch, index: int) -> object:
        assert batch.captions is not None and batch.rows is not None
        caption, row = batch.captions[index], batch.rows[index]
        extra_info = {
            **(row.get("extra_info") or {}),
            "source_image": to_pil(batch.source_B3HW[index]),
            "reconstruction": to_pil(batch.reconstruction_B3HW[index]),
            "caption": caption,
        }
        with torch.no_grad():
            result = self._function(
                data_source=row.get("data_source"),
                solution_str=caption,
                ground_truth=_ground_truth(row),
                extra_info=extra_info,
                **self._kwargs,
            )
            if inspect.isawaitable(result):
                return asyncio.run(_within(result, COROUTINE_SHARE * self.guard.timeout_s))
        return result

    def _record(self, call: Call[object]) -> RewardRecord:
        if call.timed_out or isinstance(call.error, _LateError):
            reason = f"{LABEL}: no answer within {self.guard.timeout_s:g} s"
            return RewardRecord.failed(Status.TIMEOUT, reason, call.seconds)
        if call.error is not None:
            return RewardRecord.failed(Status.ERROR, f"{LABEL}: {describe_error(call.error)}", call.seconds)
        if not isinstance(call.value, Mapping):
            return as_record(LABEL, call.value, self.bounds, call.seconds)
        if "score" not in call.value:
            reason = f"{LABEL}: returned {describe(dict(call.value))} without 'score'"
            return RewardRecord.failed(Status.INVALID, reason, call.seconds)
        record = as_record(LABEL, call.value["score"], self.bounds, call.seconds)
        if not record.ok:
            return record
        return RewardRecord(record.value, Status.OK, _extra_terms(call.value), call.seconds)


class _LateError(Exception):
    """A coroutine was cancelled at its deadline. Not TimeoutError, which the user's own code may raise."""


async def _within(result: Any, timeout_s: float) -> object:
    task = asyncio.ensure_future(result)
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    if not done:
        raise _LateError  # asyncio.run cancels the task on its way out and waits for its cleanup.
    return task.result()


def to_pil(image_3HW: Tensor) -> Image.Image:
    """A picture in [0, 1], shape (3, H, W), as 8-bit RGB, rounded to the nearest level."""
    levels_HW3 = image_3HW.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(levels_HW3.cpu().numpy(), mode="RGB")


def _ground_truth(row: Mapping[str, Any]) -> object:
    """From ``ground_truth``, or from where verl's parquet rows keep it."""
    if "ground_truth" in row:
        return row["ground_truth"]
    return (row.get("reward_model") or {}).get("ground_truth")


def _extra_terms(result: Mapping[Any, object]) -> dict[str, float]:
    numbers = {str(name): as_number(value) for name, value in result.items() if name != "score"}
    return {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}


def _load_function(path: str, name: str, kwargs: Mapping[str, Any], key: str) -> Callable[..., Any]:
    source = load_source(path, f"{key}.path")
    function = getattr(source.module, name, None)
    if not callable(function):
        raise ConfigError(f"{key}.name", f"{source.path} has no function {name!r}")
    clash = sorted(set(kwargs).intersection(ARGUMENTS))
    if clash:
        raise ConfigError(f"{key}.reward_kwargs", f"{clash} are passed for every sample and cannot be fixed here")
    try:
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys(ARGUMENTS), **kwargs)
    except (TypeError, ValueError) as error:
        wanted = ", ".join((*ARGUMENTS, *kwargs))
        message = f"{source.path}: {name} must take {wanted} by keyword; it is {_signature_text(function)} ({error})"
        raise ConfigError(f"{key}.name", message) from error
    logger.info("custom reward %s%s from %s, sha256 %s", name, signature, source.path, source.sha256 or "unknown")
    return function


def _signature_text(function: Callable[..., Any]) -> str:
    try:
        return f"{getattr(function, '__name__', 'function')}{inspect.signature(function)}"
    except ValueError:
        return "a function without a readable signature"

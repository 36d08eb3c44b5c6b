# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of a reward term."""

from __future__ import annotations

import inspect
import numbers
import os
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Union

import torch
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.paths import existing_file, model_source
from verl_uae.reward.deadline import Guard
from verl_uae.reward.encodings import Encodings
from verl_uae.reward.record import RewardBatch
from verl_uae.visits import visit

#: Needs that are pictures.
PICTURES = ("source", "reconstruction")
#: What a term may ask for in ``needs``.
KNOWN_NEEDS = frozenset({*PICTURES, "caption", "row", "group"})


@dataclass(frozen=True, slots=True)
class TermContext:
    """What the scorer lends to its terms."""

    device: torch.device
    """Where models belong: the device that drew the pictures."""
    guard: Guard
    """Runs calls under a deadline; for terms that set ``guarded``."""
    encodings: Encodings = field(default_factory=Encodings)
    """What feature terms share."""
    label: str = ""
    """The term's name in records, for its reasons."""


class Scale(NamedTuple):
    """What the numbers of a term mean."""

    bounds: tuple[float, float]
    higher_is_better: bool


class RewardTerm(ABC):
    """One part of a reward: owns its model, scores a batch.

    Subclasses state the facts below as class attributes and implement :meth:`score`. Keep the mathematics in a pure
    function beside the class, so that it can be tested and differentiated without the scorer.
    """

    needs: frozenset[str] = frozenset(PICTURES)
    """Which parts of the batch are read; a subset of :data:`KNOWN_NEEDS`."""
    bounds: tuple[float, float]
    """Smallest and largest possible value. A value outside is INVALID."""
    higher_is_better: bool = True
    """False for a distance: the scorer then subtracts it."""
    pointwise: bool = True
    """Whether a sample's value depends on that sample alone. Only such terms can be retried sample by sample."""
    groupwise: bool = False
    """Whether a value is relative to the other members of the sample's group. Such a term is scored once per step by
    the trainer, over whole groups, and is not part of validation, where a picture has one reconstruction."""
    chunk_size: int | None = None
    """Samples per call of a pointwise term, whatever their size; None takes the scorer's, fewer of large pictures."""
    guarded: bool = False
    """True where ``score`` itself keeps every sample to the deadline and never raises for one sample."""
    model_free: bool = False
    """True where building one loads and downloads nothing; it is then built to check its parameters early."""
    model_params: tuple[str, ...] = ()
    """Parameters that name a model, folder or hub id, by the rule of :mod:`verl_uae.paths`."""
    file_params: tuple[str, ...] = ()
    """Parameters that name a file which must be there."""

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """Refuse impossible parameters, whose key is ``key``, without loading a model; called before a run starts.

        Raises:
            ConfigError: naming what does not fit.
        """
        check_arguments(cls, params, key)
        for names, check in ((cls.model_params, model_source), (cls.file_params, existing_file)):
            for name in names:
                if isinstance(params.get(name), str):
                    check(params[name], f"{key}.{name}")
        if cls.model_free:
            try:
                cls(**params)
            except ConfigError as error:
                # A term does not know its place in the configuration.
                raise ConfigError(f"{key}.{error.key.rpartition('.')[2]}", error.message) from error

    @classmethod
    def value_scale(cls, params: Mapping[str, Any]) -> Scale:
        """Bounds and direction with these parameters, known without loading a model."""
        return Scale(cls.bounds, cls.higher_is_better)

    # Neither is abstract: most terms have no timeout of their own, and many have no model.
    @classmethod  # noqa: B027
    def check_timeout(cls, params: Mapping[str, Any], timeout_s: float, key: str) -> None:
        """The same with ``timeout_s``, the seconds that the scorer gives a term; called after :meth:`check_params`."""

    def setup(self, context: TermContext) -> None:  # noqa: B027
        """Called once by the scorer, before the first batch: move models to ``context.device``."""

    def networks(self) -> Iterator[nn.Module]:
        """Those among the attributes."""
        return (value for value in vars(self).values() if isinstance(value, nn.Module))

    def to(self, device: torch.device) -> None:
        """Move the models to another device; by default every module and tensor among the attributes."""
        for module in list(self.networks()):
            visit(module, device)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @abstractmethod
    def score(self, batch: RewardBatch) -> Tensor | Sequence[object]:
        """Score every sample, gradients off.

        Returns:
            One outcome per sample, in order: a (B,) tensor, or a sequence of numbers or
            :class:`~verl_uae.reward.record.RewardRecord`. Anything else becomes INVALID, an exception ERROR.
        """


_PLAIN: Mapping[Any, tuple[Any, str]] = {
    float: (numbers.Real, "a number"),
    int: (numbers.Integral, "a whole number"),
    # Python code may well give a path.
    str: ((str, os.PathLike), "text"),
    bool: (bool, "true or false"),
    type(None): (type(None), "null"),
}


def _shown(parameter: inspect.Parameter) -> str:
    """An argument with its choices, if it has such, and its default."""
    plain = str(parameter.replace(annotation=parameter.empty))
    choices = str(parameter.annotation)
    name, equals, default = plain.partition("=")
    return f"{name}: {choices} = {default}" if choices.startswith("Literal[") and equals else plain


def check_arguments(term_class: Any, params: Mapping[str, Any], key: str) -> None:
    """Refuse what a class cannot be made with, before anything is loaded.

    A value of the wrong kind would otherwise be found by the class, long after Ray has started, as a TypeError that
    names no key. Annotations other than numbers, text, truth values, literals, lists and mappings of them are not
    checked; what is checked may be narrowed, as in ``Annotated[int, Rule(at_least=1)]``
    (:class:`verl_uae.settings.Rule`). ``key`` is the configuration key of ``params``.

    Raises:
        ConfigError: naming the argument that is unknown, missing, of the wrong kind or none of the values allowed.
    """
    signature = inspect.signature(term_class)
    try:
        signature.bind(**params)
    except TypeError as error:
        # The key of a term is given by whoever builds it, for its errors.
        own = ", ".join(_shown(found) for name, found in signature.parameters.items() if name != "key") or "none"
        raise ConfigError(key, f"{error}; {term_class.__name__} takes {own}") from error
    try:
        hints = typing.get_type_hints(term_class.__init__, include_extras=True)
    # A user's class may be annotated with names that exist for type checkers only.
    except (NameError, TypeError, AttributeError):
        return
    for name, value in params.items():
        hint = hints.get(name, Any)
        hint, *rules = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        fits, words = kind_of(hint)
        said = None if fits(value) else f"must be {words}, got {value!r}"
        for rule in rules:
            said = said or rule.problem(value)
        if said:
            raise ConfigError(f"{key}.{name}", said)


def kind_of(hint: Any) -> tuple[Callable[[Any], bool], str]:
    """Whether a value of a configuration is what an annotation says, true where that is not known; and the words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        kind, words = _PLAIN[hint]
        # To Python, true is a whole number.
        return lambda value: isinstance(value, kind) and (hint is bool or not isinstance(value, bool)), words
    if origin is Literal:
        exact = [(type(allowed), allowed) for allowed in arguments]
        return lambda value: (type(value), value) in exact, " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        options = [kind_of(option) for option in arguments]
        return lambda value: any(fits(value) for fits, _ in options), " or ".join(words for _, words in options)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        fits, words = kind_of(arguments[0])

        def each_fits(value: Any) -> bool:
            return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(map(fits, value))

        return each_fits, f"a list, each {words}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return lambda value: isinstance(value, Mapping), "a mapping"
    return lambda value: True, "anything"

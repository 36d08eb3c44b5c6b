# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of a reward term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from verl_uae.paths import existing_file, model_source
from verl_uae.reward.deadline import Guard
from verl_uae.reward.encodings import Encodings
from verl_uae.reward.params import check_arguments
from verl_uae.reward.sample import RewardBatch

#: What a term may ask for in ``needs``.
KNOWN_NEEDS = frozenset({"source", "reconstruction", "caption", "row", "group"})


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

    needs: frozenset[str] = frozenset({"source", "reconstruction"})
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
        """Refuse impossible parameters without loading a model; called before a run starts.

        Args:
            params: keyword arguments of the class.
            key: configuration key of ``params``, for the error.

        Raises:
            ConfigError: naming what does not fit.
        """
        check_arguments(cls, params, key)
        for names, check in ((cls.model_params, model_source), (cls.file_params, existing_file)):
            for name in names:
                if isinstance(params.get(name), str):
                    check(params[name], f"{key}.{name}")
        if cls.model_free:
            cls(**params)

    @classmethod
    def value_scale(cls, params: Mapping[str, Any]) -> Scale:
        """Bounds and direction with these parameters, known without loading a model."""
        return Scale(cls.bounds, cls.higher_is_better)

    # Not abstract: most terms have no timeout of their own.
    @classmethod  # noqa: B027
    def check_timeout(cls, params: Mapping[str, Any], timeout_s: float, key: str) -> None:
        """Refuse parameters that do not fit the scorer's timeout; called after :meth:`check_params`.

        Args:
            params: keyword arguments of the class.
            timeout_s: seconds the scorer gives a term.
            key: configuration key of ``params``, for the error.

        Raises:
            ConfigError: naming what does not fit.
        """

    # Not abstract: most terms without a model have nothing to do here.
    def setup(self, context: TermContext) -> None:  # noqa: B027
        """Called once by the scorer, before the first batch: move models to ``context.device``."""

    def to(self, device: torch.device) -> None:
        """Move the models to another device; by default every module and tensor among the attributes."""
        for name, value in list(vars(self).items()):
            if isinstance(value, nn.Module):
                value.to(device)
            elif isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @abstractmethod
    def score(self, batch: RewardBatch) -> Tensor | Sequence[object]:
        """Score every sample, gradients off.

        Returns:
            One outcome per sample, in order: a (B,) tensor, or a sequence of numbers or
            :class:`~verl_uae.reward.record.RewardRecord`. Anything else becomes INVALID, an exception ERROR.
        """

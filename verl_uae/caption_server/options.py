# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Options of the caption server: ``actor_rollout_ref.rollout.engine_kwargs.hf``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

#: Key of our section in verl's free-form ``engine_kwargs``.
ENGINE_KEY = "hf"

_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class HFOptions:
    """Typed options of the caption server.

    Attributes:
        max_batch_size: captions decoded together.
        prefill_batch_size: distinct prompts that enter the model together. 1 wastes nothing when image sizes vary.
        batch_wait_ms: a batch starts when no request has arrived for this long, in milliseconds.
        fixed_shapes: fill every batch with dummy rows, so that a caption does not depend, bit for bit, on the
            requests that share its batch. False saves work on small batches and gives that up.
        attn_implementation: ``sdpa`` or ``eager`` (both accept the additive masks used here).
        device: torch device of the model; None takes the accelerator when the server can see one.
        num_threads: intra-op threads on the CPU. More than one gives up what ``fixed_shapes`` buys: torch's CPU
            attention then rounds differently in the rows of different threads.
        num_cpus: CPUs that Ray reserves for the server; 0 lets it share the trainer's, which idles meanwhile.
    """

    max_batch_size: int = 64
    prefill_batch_size: int = 8
    batch_wait_ms: float = 20.0
    fixed_shapes: bool = True
    attn_implementation: str = "sdpa"
    device: str | None = None
    num_threads: int = 1
    num_cpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "prefill_batch_size", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_path(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("batch_wait_ms", "num_cpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_path(name)} must not be negative, got {getattr(self, name)}")
        if self.attn_implementation not in _ATTENTION:
            raise ValueError(
                f"{_path('attn_implementation')} must be one of {_ATTENTION}, got {self.attn_implementation!r}"
            )

    @classmethod
    def from_engine_kwargs(cls, engine_kwargs: Mapping[str, Any] | None) -> HFOptions:
        """Read the options out of verl's ``rollout.engine_kwargs`` (a missing section means defaults).

        Raises:
            ValueError: an unknown key or a value out of range; the message names the full config key.
            TypeError: a value of the wrong type.
        """
        section = dict((engine_kwargs or {}).get(ENGINE_KEY) or {})
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(section) - set(known)):
            raise ValueError(f"unknown option {_path(unknown[0])}; known: {sorted(known)}")
        for name, value in section.items():
            default = known[name].default
            section[name] = _typed(name, value, str if default is None or default is MISSING else type(default))
        return cls(**section)


def _typed(name: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``; an int is a valid float, a bool is not a valid int."""
    if value is None and kind is str:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{_path(name)} must be {kind.__name__}, got {type(value).__name__}: {value!r}")
    return value


def _path(name: str) -> str:
    return f"actor_rollout_ref.rollout.engine_kwargs.{ENGINE_KEY}.{name}"

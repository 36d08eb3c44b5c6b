# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Options of the caption server: ``actor_rollout_ref.rollout.engine_kwargs.hf``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from verl_uae.errors import ConfigError
from verl_uae.settings import check_fields, key

#: Key of our section in verl's free-form ``engine_kwargs``.
ENGINE_KEY = "hf"

#: Full name of it.
SECTION = f"actor_rollout_ref.rollout.engine_kwargs.{ENGINE_KEY}"


@dataclass(frozen=True)
class HFOptions:
    """Read with ``actor_rollout_ref.rollout.name=hf`` only.

    Raises:
        ConfigError: a value is impossible, by its full key.
    """

    max_batch_size: int = key(64, at_least=1)
    """Captions decoded together."""

    prefill_batch_size: int = key(8, at_least=1)
    """Distinct prompts that enter the model together. 1 wastes nothing when image sizes vary."""

    batch_wait_ms: float = key(20.0, at_least=0)
    """A batch starts when no request has arrived for this long, in milliseconds."""

    fixed_shapes: bool = True
    """Fill every batch with dummy rows, so that a caption does not depend, bit for bit, on the requests that share its
    batch. false saves work on small batches and gives that up."""

    attn_implementation: str = key("sdpa", choices=("sdpa", "eager"))
    """sdpa or eager: both accept the additive masks used here."""

    device: str | None = None
    """torch device of the model; null takes the accelerator when the server can see one."""

    num_threads: int = key(1, at_least=1)
    """Intra-op threads on the CPU. More than one gives up what ``fixed_shapes`` buys: torch's CPU attention then rounds
    differently in the rows of different threads."""

    num_cpus: float = key(0.0, at_least=0)
    """CPUs that Ray reserves for the server; 0 lets it share the trainer's, which idles meanwhile."""

    def __post_init__(self) -> None:
        check_fields(self, f"{SECTION}.")

    @classmethod
    def from_engine_kwargs(cls, engine_kwargs: Mapping[str, Any] | None) -> HFOptions:
        """Read the options out of verl's ``rollout.engine_kwargs`` (a missing section means defaults).

        Raises:
            ConfigError: an unknown key or an impossible value.
        """
        section = dict((engine_kwargs or {}).get(ENGINE_KEY) or {})
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(section) - set(known)):
            raise ConfigError(f"{SECTION}.{unknown[0]}", f"unknown key; known keys: {', '.join(known)}")
        return cls(**section)

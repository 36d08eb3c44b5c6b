# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Waiting for a rank that reads or writes files, outside the collectives that compute.

Those have a timeout of minutes, after which torch ends the processes; a model is read, downloaded or written in as long
as the disk takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

#: Longest wait for a rank that works on files. One that dies ends the wait at once: its connections close.
LONGEST_WAIT = timedelta(days=1)


@contextmanager
def together(error: Callable[[str], Exception]) -> Iterator[None]:
    """Work that may take long on some ranks and not on others; every rank must enter, and none leaves before all do.

    Args:
        error: makes of a text the exception that ranks raise where another one failed.

    Raises:
        BaseException: what the body raised, on its own rank; on the others ``error`` with the rank and that text.
    """
    try:
        yield
    except BaseException as problem:
        # An interrupt too: its process goes on, and whoever waited for it would do so for as long as there is.
        of_all_ranks(f"{type(problem).__name__}: {problem}")
        raise
    for rank, text in enumerate(of_all_ranks(None)):
        if text is not None:
            raise error(f"rank {rank}: {text}")


def of_all_ranks(value: Any) -> list[Any]:
    """What each rank calls it with, in order, through the hosts' memory; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_patient_group(dist.group.WORLD))
    return values


@functools.lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """A group of all ranks on gloo, made at its first use in a process group; every rank must ask for it."""
    return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

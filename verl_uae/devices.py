# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The device that computes, by the name of an option, and batches that shrink to what its memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from verl_uae.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What errors say for lack of memory that are no ``torch.OutOfMemoryError``: the CPU allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def checked_device(name: str | None) -> torch.device:
    """A device that computes here; without a name the accelerator, or the host where there is none.

    Raises:
        ConfigError: this machine has none of that name.
    """
    # Heavy: the command line imports this module for every command.
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # torch goes on with every backend that it knows.
        first = str(error).splitlines()[0].split(". ")[0]
        reason = f"{name}: {first}; give a device that this machine has, such as cpu"
        raise ConfigError("--device", reason) from error
    if device.type == "meta":
        raise ConfigError("--device", "meta holds no numbers; give cpu or an accelerator")
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory did not suffice, so that fewer samples may pass.

    A plain ``MemoryError`` does not count: Python and Pillow raise it over one sample.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def one_by_one(rows: slice, work: Callable[[slice], T], lose: Callable[[int, Exception], T]) -> list[T]:
    """What comes of consecutive samples; where that fails, of each by itself, and of what fails alone as ``lose`` says.

    Where memory runs out over more than one the error is raised, for :class:`FittingBatch` to make batches smaller.

    Args:
        rows: numbers of the samples.
        work: of several of them.
        lose: of one, and why.
    """
    try:
        return [work(rows)]
    except Exception as error:
        # Fault boundary: whatever one sample raises costs that sample.
        if rows.stop - rows.start == 1:
            return [lose(rows.start, error)]
        if is_out_of_memory(error):
            raise
    return [part for row in range(rows.start, rows.stop) for part in one_by_one(slice(row, row + 1), work, lose)]


class FittingBatch:
    """How many samples go through a model together; halved where they do not fit, and kept so.

    Args:
        size: samples at a time at first, at least 1.
        what: what they are, for the log.
        key: configuration key of the size, for the log; empty where there is none.
    """

    def __init__(self, size: int, what: str, key: str = "") -> None:
        self.size = size
        self.what = what
        self.key = key
        self._failed = 0

    def map(self, count: int, call: Callable[[slice], T], *, filled: bool = False) -> list[T]:
        """Call with consecutive parts of ``range(count)``, ``size`` at a time.

        Args:
            count: samples in all.
            call: of a part; asked again for its first half where memory does not hold it.
            filled: ``call`` fills every part up to :attr:`size`, so that a short one takes as much memory as any.

        Returns:
            The answers, in order.

        Raises:
            RuntimeError: of ``call``: there is no memory for a single one, or another fault.
        """
        answers: list[T] = []
        start = 0
        while start < count:
            rows = slice(start, min(start + self.size, count))
            try:
                answers.append(call(rows))
            except RuntimeError as error:
                tried = self.size if filled else rows.stop - rows.start
                if not is_out_of_memory(error) or tried == 1:
                    raise
                self._failed = self._failed or tried
                self.size = tried // 2
                # Here the traceback, which holds the tensors of the failed call, is let go.
                continue
            self._report()
            start = rows.stop
        return answers

    def _report(self) -> None:
        """Say once what fits."""
        if self._failed:
            hint = f"; {self.key}={self.size} saves the attempt" if self.key else ""
            logger.warning(
                "out of memory with up to %d %s at a time; %d fit and are used from here on%s",
                *(self._failed, self.what, self.size, hint),
            )
            self._failed = 0

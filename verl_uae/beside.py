# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Work in a thread beside the caller's, and on an accelerator in a stream beside the caller's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Job(Generic[T]):
    """Work that has begun in a thread of its own, which ends with it.

    Args:
        name: of the thread.
        work: made in it. Gradient mode, autocast and the like are per thread: it sets its own.
        behind: called in the thread that waits, when the work has ended.
    """

    def __init__(self, name: str, work: Callable[[], T], behind: Callable[[], None]) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._future = self._threads.submit(work)
        self._threads.shutdown(wait=False)
        self._behind = behind

    def wait(self) -> None:
        """Until the work has ended, however it did. What the caller queues on the accelerator from here on comes after
        what the work has queued there."""
        self._threads.shutdown(wait=True)
        self._behind()

    def result(self) -> T:
        """What the work returned, after :meth:`wait`.

        Raises:
            BaseException: what the work raised, with its traceback.
        """
        self.wait()
        return self._future.result()


class Beside:
    """Where jobs compute: the host, or a stream of an accelerator, one for all of them. The allocator keeps the memory
    of every stream apart, so a stream for each job would leave memory in all of them.

    Args:
        device: of the jobs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None

    def start(self, name: str, work: Callable[[], T]) -> Job[T]:
        """Begin work in a thread of that name; on the accelerator it comes after what the caller has queued there so
        far, such as weights that are on their way.

        What the work reads on the accelerator must be neither freed nor written to by the caller before
        :meth:`Job.wait`.
        """
        if self.device.type == "cpu":
            return Job(name, work, lambda: None)
        # Heavy, and the files at the top of the package are imported by every command.
        import torch

        module: Any = torch.get_device_module(self.device)
        self._stream = stream = self._stream or module.Stream()
        stream.wait_stream(module.current_stream())
        return Job(name, _within(module, stream, work), lambda: module.current_stream().wait_stream(stream))


def in_this_stream(call: Callable[[], T]) -> Callable[[], T]:
    """The call, in whatever thread it is made, on the accelerator and in the stream that are current here.

    Both are per thread, and a new one has the default stream: it would not wait for what is queued here, and would wait
    for what is queued there.
    """
    import torch

    if not torch.accelerator.is_available():
        return call
    module: Any = torch.get_device_module()
    # Asking for its stream would start an accelerator that this process does not use.
    return _within(module, module.current_stream(), call) if module.is_initialized() else call


def _within(module: Any, stream: Any, call: Callable[[], T]) -> Callable[[], T]:
    def made() -> T:
        with module.stream(stream):
            return call()

    return made

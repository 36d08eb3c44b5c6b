# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the driver of a training command and the trainer tell each other, through Ray's key-value store.

The trainer lives in an actor that verl starts and that runs one call as long as the run lasts, so it cannot be called;
it may be on another node, so a file or a signal does not reach it. The store is there as soon as Ray is.
"""

from __future__ import annotations

from typing import Any

_NAMESPACE = b"verl_uae"


class RunState:
    """Of the Ray job of this process.

    Raises:
        RuntimeError: Ray does not run; asked for its context, it would start a cluster of its own.
    """

    def __init__(self) -> None:
        import ray
        from ray.experimental import internal_kv

        if not ray.is_initialized():
            raise RuntimeError("Ray does not run")
        self._store: Any = internal_kv
        self._job = ray.get_runtime_context().get_job_id()

    def request_stop(self, reason: str) -> None:
        """Driver: ask the trainer to save and end; an empty reason takes the request back."""
        self._put("stop", reason)

    def stop_reason(self) -> str | None:
        """Trainer: why the driver asks to stop, if it does."""
        return self._get("stop") or None

    def tell(self, note: str) -> None:
        """Trainer: what is saved, for the driver's last line; empty once the loop has begun."""
        self._put("note", note)

    def note(self) -> str | None:
        """Driver: what the trainer said last; None before its loop has begun."""
        return self._get("note")

    def tell_useful(self, work: str) -> None:
        """Driver: the useful operations of a step, see :class:`~verl_uae.stages.common.speed.UsefulWork`."""
        self._put("useful", work)

    def useful(self) -> str | None:
        """Trainer: what the driver has said of them, if it has."""
        return self._get("useful") or None

    def tell_command(self, command: str) -> None:
        """Driver: the command that it was started by, without secrets."""
        self._put("command", command)

    def command(self) -> str | None:
        """Trainer: what the driver has said of it, if it has."""
        return self._get("command") or None

    def _put(self, name: str, value: str) -> None:
        self._store._internal_kv_put(f"{self._job}/{name}".encode(), value.encode(), True, namespace=_NAMESPACE)

    def _get(self, name: str) -> str | None:
        value = self._store._internal_kv_get(f"{self._job}/{name}".encode(), namespace=_NAMESPACE)
        return None if value is None else value.decode()

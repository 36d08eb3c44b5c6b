# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A circuit breaker: after repeated failures, fail at once for a while instead of waiting for every call.

States as in Nygard, "Release It!" (2007): *closed*, calls pass; *open*, calls are refused until the cool-down is over;
*half-open*, one call passes as a probe, and its outcome closes or opens again.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class State(str, enum.Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts consecutive failures of one server. Not thread-safe: one event loop uses it.

    Every call that :meth:`allow` has let through must end in :meth:`success` or :meth:`failure`.

    Args:
        name: of the server, for the log.
        failures: consecutive failures that open it, at least 1.
        cooldown_s: seconds it stays open before a probe.
        clock: seconds that never go back.
    """

    def __init__(
        self, name: str, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """The state now."""
        if self._opened is None:
            return State.CLOSED
        return State.HALF_OPEN if self._probing or self.wait_s == 0.0 else State.OPEN

    @property
    def probing(self) -> bool:
        """Whether a probe is under way, so that an answer to "may I?" will come soon."""
        return self._probing

    @property
    def wait_s(self) -> float:
        """Seconds until a probe is allowed; 0 where it is now, or where the breaker is closed."""
        return 0.0 if self._opened is None else max(0.0, self._opened + self._cooldown_s - self._clock())

    def allow(self) -> bool:
        """Whether a call may go out now; in the half-open state only for the first who asks."""
        if self._opened is None:
            return True
        if self._probing or self.wait_s > 0.0:
            return False
        self._probing = True
        return True

    def success(self) -> None:
        """The server has answered."""
        if self._opened is not None:
            logger.warning("reward server %s answers again", self.name)
        self._failures, self._opened, self._probing = 0, None, False

    def failure(self) -> None:
        """The server has not answered."""
        self._failures += 1
        if self._probing or (self._opened is None and self._failures >= self._limit):
            if self._opened is None:
                message = "reward server %s: %d failures in a row; not asked for %g s"
                logger.warning(message, self.name, self._failures, self._cooldown_s)
            self._opened, self._probing = self._clock(), False

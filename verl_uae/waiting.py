# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""No wait in silence: whoever waits says what for, once a minute."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Seconds after which a wait is told of, and again each time they have passed.
EVERY_S = 60.0


@contextlib.contextmanager
def saying(what: str | Callable[[], str], every_s: float = EVERY_S, phase: str = "") -> Iterator[None]:
    """While the body runs, log once in ``every_s`` seconds what it waits for and for how long.

    Args:
        what: what is waited for, as it completes the sentence "waiting for ..."; a function is asked each time.
        every_s: seconds between two lines, above 0.
        phase: of a run, which is logged when it begins and with its seconds when it is over; empty: it is none.
    """
    over = threading.Event()
    started = time.monotonic()
    if phase:
        logger.info("%s", phase)

    def tell() -> None:
        while not over.wait(every_s):
            text = what if isinstance(what, str) else what()
            logger.warning("waiting for %s, %.0f s so far", text, time.monotonic() - started)

    thread = threading.Thread(target=tell, name="verl_uae waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if phase:
        logger.info("%s: done in %.0f s", phase, time.monotonic() - started)

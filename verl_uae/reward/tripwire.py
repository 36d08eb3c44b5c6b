# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A warning when the reward rises and a held-out term falls: the run may be adapting to the reward alone.

A picture that suits the network of the reward better and everything else worse is the mark of an over-optimised
reward (Gao et al. 2023). This looks at means per step, so it costs nothing and proves nothing: it says when to look.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from verl_uae.errors import ConfigError

logger = logging.getLogger(__name__)

#: A trend counts when its slope is this many standard errors from 0. Our choice: of steady series of independent noise
#: about one window of 20 in 1000 then has both trends by chance.
THRESHOLD = 2.0


def trend(values: Sequence[float]) -> float:
    """Slope of the least-squares line over its standard error (Student's t), for evenly spaced values.

    Args:
        values: at least 3 finite numbers, in order.

    Returns:
        The statistic: above 0 rising, below 0 falling, 0 for equal values; infinite for a perfect line.

    Raises:
        ValueError: fewer than 3 values.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"a trend needs at least 3 values, got {count}")
    middle, mean = (count - 1) / 2.0, math.fsum(values) / count
    spread = math.fsum((place - middle) ** 2 for place in range(count))
    slope = math.fsum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    rest = math.fsum((value - mean - slope * (place - middle)) ** 2 for place, value in enumerate(values))
    error = math.sqrt(rest / (count - 2) / spread)
    # Equal values, and lines up to rounding: their rest is not exactly 0.
    tiny = 1e-12 * max(abs(value) for value in values)
    if abs(slope) * count <= tiny:
        return 0.0
    return math.copysign(math.inf, slope) if error * count <= tiny else slope / error


class Tripwire:
    """Watches the means of the reward and of held-out terms.

    Args:
        held_out: labels of the held-out terms, and whether higher is better for each.
        window: steps looked at, at least 3. Until that many were seen there is no flag.
        threshold: see :data:`THRESHOLD`, above 0.
        key: configuration key of ``window``, for the error.

    Raises:
        ConfigError: a window too short for a trend.
    """

    def __init__(
        self,
        held_out: Mapping[str, bool],
        window: int,
        threshold: float = THRESHOLD,
        key: str = "uae.reward.tripwire_window",
    ) -> None:
        if window < 3:
            raise ConfigError(key, f"must be at least 3 steps, got {window}")
        self.window, self.threshold = window, threshold
        self._higher = dict(held_out)
        # Steps without a mean of a label leave that label's history alone, so each keeps its reward beside it.
        self._pairs: dict[str, deque[tuple[float, float]]] = {label: deque(maxlen=window) for label in held_out}
        self._warned: set[str] = set()

    def update(self, reward: float | None, means: Mapping[str, float]) -> dict[str, float]:
        """Take a step's means.

        Args:
            reward: mean of the reward; None where no sample had one.
            means: mean by label; labels that are not held out are ignored.

        Returns:
            By held-out label 1.0 where over the window the reward rises and the term gets worse, else 0.0.
        """
        flags = {}
        for label, pairs in self._pairs.items():
            value = means.get(label)
            if reward is not None and value is not None and math.isfinite(reward) and math.isfinite(value):
                pairs.append((reward, value if self._higher[label] else -value))
            flags[label] = float(len(pairs) == self.window and self._trips(list(pairs)))
            if flags[label] and label not in self._warned:
                self._warned.add(label)
                logger.warning(
                    "over the last %d steps the reward rises while the held-out term %s gets worse: look at the "
                    "panels; the run may be adapting to the reward",
                    self.window,
                    label,
                )
        return flags

    def _trips(self, pairs: Sequence[tuple[float, float]]) -> bool:
        rewards, values = zip(*pairs, strict=True)
        return trend(rewards) >= self.threshold and trend(values) <= -self.threshold

    def state_dict(self) -> dict[str, Any]:
        """History and what was warned of, as plain data."""
        return {
            "pairs": {label: [list(pair) for pair in pairs] for label, pairs in self._pairs.items()},
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; labels that are no longer held out are left out."""
        for label, pairs in self._pairs.items():
            pairs.clear()
            pairs.extend((float(reward), float(value)) for reward, value in state["pairs"].get(label, []))
        self._warned = set(state["warned"]) & set(self._pairs)

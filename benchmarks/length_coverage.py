# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How often the interval of ``verl-uae bench length`` holds the truth, on simulated results.

python -m benchmarks.length_coverage

Two models caption the same pictures, the first 1 point better whatever the caption's length. Every figure is over
independent data sets; the nominal coverage is 0.95, and a percentile bootstrap over n pictures falls a little short of
it (by about 0.01 at n = 50, more at n = 15). ``needed`` is the width that a normal interval with the true standard
error has.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from verl_uae.bench.compare import TOLERANCE, compare_lengths
from verl_uae.bench.results import LEVEL, markdown_table
from verl_uae.bench.unified import SECTION

GAIN = 1.0
NORMAL = 1.96
BACKBONE = "dinov2"


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What results look like: points of similarity times 100, words."""

    level: float
    """Standard deviation between pictures."""
    noise: float
    """Standard deviation of a value of one picture."""
    per_word: float = 0.0
    """What a word more is worth."""
    tolerance: int = TOLERANCE
    same_picture: bool = False
    shared_length: float = 0.0
    """Correlation of the two captions' lengths."""


WORLDS: Mapping[str, World] = {
    "pictures differ": World(level=8.0, noise=2.0),
    "all alike": World(level=0.0, noise=8.0),
    "longer is better": World(level=8.0, noise=2.0, per_word=0.5, tolerance=0),
    "same picture": World(level=8.0, noise=2.0, same_picture=True, shared_length=0.9),
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of one world."""

    coverage: float
    width: float
    needed: float
    matched: float


def measure(world: World, *, sets: int, pictures: int = 60, resamples: int = 1000, seed: int = 0) -> Coverage:
    """Draw ``sets`` pairs of results and compare each."""
    rng = np.random.default_rng(seed)
    means, intervals, matched = [], [], []
    for number in range(sets):
        level_P, length_P = world.level * rng.normal(size=pictures), rng.normal(size=pictures)
        sides = []
        for gain, words in ((GAIN, 50.0), (0.0, 44.0)):
            own_P = np.sqrt(1.0 - world.shared_length**2) * rng.normal(size=pictures)
            words_P = np.rint(words + 12.0 * (world.shared_length * length_P + own_P)).clip(1)
            values_P = 60.0 + gain + level_P + world.per_word * words_P + world.noise * rng.normal(size=pictures)
            sides.append(_result(words_P, values_P))
        settings = {"tolerance": world.tolerance, "same_picture": world.same_picture}
        found = compare_lengths(*sides, seed=number, resamples=resamples, **settings)
        entry = found["difference"][BACKBONE]
        means.append(entry["mean"])
        intervals.append(entry["interval"])
        matched.append(found["matched"])
    low, high = np.array(intervals).T
    return Coverage(
        coverage=float(np.mean((low <= GAIN) & (high >= GAIN))),
        width=float(np.mean(high - low)),
        needed=float(2 * NORMAL * np.std(means)),
        matched=float(np.mean(matched)),
    )


def _result(words_P: np.ndarray, values_P: np.ndarray) -> dict:
    """What a comparison reads of a result."""
    names = [f"{number}.png" for number in range(len(words_P))]
    return {
        "statistics_by_model": {BACKBONE: {}},
        "similarities_by_model": {BACKBONE: dict(zip(names, (values_P / 100.0).tolist(), strict=True))},
        SECTION: {
            "complete": False,
            "references": "all",
            "models": {},
            "pairs": [{"name": n, "sha256": n, "words": int(w)} for n, w in zip(names, words_P, strict=True)],
        },
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="data sets of each kind (default 1000)")
    parser.add_argument("--pictures", type=int, default=60, help="in each (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    print(f"{args.sets} data sets of {args.pictures} pictures, nominal coverage {LEVEL}\n")
    found = {name: measure(w, sets=args.sets, pictures=args.pictures, seed=args.seed) for name, w in WORLDS.items()}
    cells = [
        [name, f"{one.coverage:.3f}", f"{one.width:.2f}", f"{one.needed:.2f}", f"{one.matched:.1f}"]
        for name, one in found.items()
    ]
    print("\n".join(markdown_table(["results", "coverage", "mean width", "needed width", "matches"], cells)))


if __name__ == "__main__":
    main()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results made of given numbers, through the code that makes them of measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_uae.bench.backbones import PROTOCOL
from verl_uae.bench.pairs import Pairing, PicturePair
from verl_uae.bench.results import Failure
from verl_uae.bench.unified import Scores, unified_result


def make_result(
    values: Mapping[str, Sequence[float | None]],
    captions: Sequence[str | None] | None = None,
    *,
    failures: Sequence[Failure] = (),
    digests: Sequence[str] | None = None,
    root: Path = Path("/pictures"),
) -> dict[str, Any]:
    """A result with the given cosines by backbone."""
    count = len(next(iter(values.values())))
    pairs = tuple(
        PicturePair(
            root / f"recon_{index}.png",
            root / f"{index}.png",
            f"{index}.png",
            digests[index] if digests is not None else f"digest {index}",
        )
        for index in range(count)
    )
    similarities = {
        name: {pair.name: value for pair, value in zip(pairs, column, strict=True)} for name, column in values.items()
    }
    texts = {pair.key: text for pair, text in zip(pairs, captions or [None] * count, strict=True) if text is not None}
    models = {name: {"source": name} for name in values}
    scores = Scores(Pairing(pairs, (), ()), tuple(values), similarities, models, tuple(failures))
    return unified_result(scores, captions=texts, resamples=100)


def same_columns(column: Sequence[float]) -> dict[str, list[float]]:
    """All four backbones with the same values."""
    return {name: list(column) for name in PROTOCOL}

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Long captions: the whole caption against its first 77 tokens. Writes ``long.json`` and ``long.png``.

Held-out crowds are drawn from whole and from cut captions, and every object is checked.

Shapes: B crowds, N cells (16), H = W = 32 pixels.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.crowd_models import ARMS, CUT_TOKENS, CrowdConfig, build_conditioner, load, train_arms
from benchmarks.learning.crowds import (
    ATTRIBUTES,
    CELLS,
    SENTENCE_WORDS,
    Crowd,
    caption,
    cut,
    hits,
    mentioned,
    render,
    sample_crowd,
)
from benchmarks.learning.experiment import Bar, Experiment, Report, every, figure
from benchmarks.learning.statistics import bootstrap, mean_and_spread
from verl_uae.bench.results import markdown_table
from verl_uae.scenes.evaluate import NUM_STEPS, draw
from verl_uae.scenes.quickstart import Say
from verl_uae.seeding import derive_seed

COUNTS: tuple[int, ...] = (2, 4, 6, 8, 12, 16)
"""Numbers of objects; a caption has ten tokens for each, so seven objects fit before the cut."""
VARIANTS: dict[str, tuple[str, int | None]] = {
    "full": ("full", None),
    "cut_inference": ("full", CUT_TOKENS),
    "cut_trained": ("cut", None),
}
"""Variant: which decoder draws, and to how many tokens its captions are cut beforehand (its condition may cut too)."""
#: Variant -> what it is called.
LABELS = {
    "full": "whole caption",
    "cut_inference": "cut at inference",
    "cut_trained": "trained with the cut",
}
#: Figure -> what it is called.
FIGURES = {
    "mse": "MSE",
    "occupied": "cells rightly empty or not",
    "colour": "colour",
    "size": "size",
    "shape": "shape",
    "object": "objects right",
    "object_before": "objects right, named before the cut",
    "object_after": "objects right, named after it",
}
_SAY_EVERY = 50


@dataclass(frozen=True, slots=True)
class Drawn:
    """Figures of each crowd with one number of objects, drawn by one variant; NaN where a crowd has none to count.

    `scores`: `mse` (of pictures in [0, 1]); shares in [0, 1]: `occupied` (of all cells); `colour`, `size`, `shape` and
    `object` (all right in the right cell), of the crowd's objects; `object_before` and `object_after`, of the objects
    whose sentence is and is not complete within the first 77 tokens.
    """

    variant: str
    count: int
    seed: int
    tokens: int
    scores: dict[str, list[float]]


class Long(Experiment):
    """What a condition that holds the whole caption buys."""

    name = "long"
    axes = ("step",)
    assumed_minutes = 18.0
    #: Of each of the two decoders, after the short phase they share.
    steps = 400

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        """One seed after the other on one core, so ``jobs`` is not used."""
        drawn: list[Drawn] = []
        for seed in seeds:
            say(f"== seed {seed}")
            config = CrowdConfig(seed=seed, steps=steps)
            drawn += run_seed(out / f"seed{seed}", config, say)
            yield summary(drawn, config)

    def bars(self, report: Report) -> list[Bar]:
        def shares(variant: str, count: int, key: str = "object") -> list[float]:
            return list(_by_seed(_entry(report, variant, count), key).values())

        def leads(other: str, count: int) -> list[float]:
            return [ours - theirs for ours, theirs in zip(shares("full", count), shares(other, count), strict=True)]

        most, least = max(COUNTS), min(COUNTS)
        past_the_cut = [count for count in COUNTS if count > CUT_TOKENS // SENTENCE_WORDS]
        after = [share for count in past_the_cut for share in shares("full", count, "object_after")]
        return [
            *(
                every(
                    f"{most} objects: objects right with the whole caption at least 0.2 above {LABELS[other]}, "
                    "every seed",
                    leads(other, most),
                    0.2,
                )
                for other in ("cut_inference", "cut_trained")
            ),
            every(
                f"{least} objects, nothing cut: the whole caption's decoder at most 0.05 below {LABELS['cut_trained']}",
                leads("cut_trained", least),
                -0.05,
                "smallest lead",
            ),
            every(
                "objects named after the cut at least half right, every length and seed", after, 0.5, "smallest share"
            ),
        ]

    def table(self, report: Report, key: str = "object") -> list[str]:
        """A figure against the length: mean and 95 % interval over crowds of all seeds, ± over seeds."""
        rows = []
        for count in COUNTS:
            cells = [_cell(_entry(report, variant, count), key) for variant in VARIANTS]
            rows.append([str(count), str(count * SENTENCE_WORDS), *cells])
        return markdown_table(["objects", "caption tokens", *LABELS.values()], rows, words=())

    def plot(self, out: Path, report: Report) -> None:
        """Objects right against the length: all of them, named before and after the cut."""
        keys = ("object", "object_before", "object_after")
        with figure(out / "long.png", len(keys), (11, 3.2), dpi=110, sharey=True) as axes:
            for axis, key in zip(axes, keys, strict=True):
                for variant, label in LABELS.items():
                    entries = [_entry(report, variant, count) for count in COUNTS]
                    found = {entry["caption_tokens"]: entry["pooled"][key] for entry in entries if entry["pooled"][key]}
                    mean, low, high = ([one[name] for one in found.values()] for name in ("mean", "low", "high"))
                    axis.plot(list(found), mean, marker="o", label=label)
                    axis.fill_between(list(found), low, high, alpha=0.2)
                axis.axvline(CUT_TOKENS, color="gray", linestyle=":")
                axis.set_title(FIGURES[key], fontsize=9)
                axis.set_xlabel("caption tokens")
                axis.set_ylim(0, 1.02)
            axes[0].set_ylabel("share of objects")


def _entry(report: Report, variant: str, count: int) -> Mapping[str, Any]:
    """The figures of a variant at a length."""
    (found,) = (one for one in report["figures"] if (one["variant"], one["objects"]) == (variant, count))
    return found


def _by_seed(entry: Mapping[str, Any], key: str) -> dict[str, float]:
    """Mean of a figure by seed."""
    return {seed: found[key]["mean"] for seed, found in entry["by_seed"].items()}


def _cell(entry: Mapping[str, Any], key: str) -> str:
    if entry["pooled"][key] is None:
        return "–"
    digits, seeds = 4 if key == "mse" else 3, list(_by_seed(entry, key).values())
    mean, low, high = (f"{entry['pooled'][key][name]:.{digits}f}" for name in ("mean", "low", "high"))
    spread = f" ± {mean_and_spread(seeds)[1]:.{digits}f}" if len(seeds) > 1 else ""
    return f"{mean} ({low}, {high}){spread}"


def run_seed(root: Path, config: CrowdConfig, say: Say) -> list[Drawn]:
    """Figures of one seed.

    Raises:
        SystemExit: the folder holds a seed with other settings.
    """
    root.mkdir(parents=True, exist_ok=True)
    stamp, scores = root / "config.json", root / "scores.json"
    fingerprint = json.dumps(asdict(config), sort_keys=True)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") != fingerprint:
        raise SystemExit(f"{root} was trained with other settings: remove it or name another --out")
    stamp.write_text(fingerprint, encoding="utf-8")
    if not scores.is_file():
        train_arms(root, config, lambda phase, step, loss: _progress(say, phase, step, loss))
        drawn = [asdict(result) for result in evaluate_arms(root, config.seed)]
        scores.write_text(json.dumps(drawn), encoding="utf-8")
    return [Drawn(**entry) for entry in json.loads(scores.read_text(encoding="utf-8"))]


def _progress(say: Say, phase: str, step: int, loss: float) -> None:
    if step % _SAY_EVERY == 0:
        say(f"  {phase} {step}: loss {loss:.3f}, {time.process_time():.0f} CPU s")


def summary(drawn: Sequence[Drawn], config: CrowdConfig) -> Report:
    """Means and intervals over crowds, of all seeds together and of each."""

    def pooled(variant: str, count: int, seeds: Sequence[int]) -> dict[str, Mapping[str, float] | None]:
        mine = [one for one in drawn if (one.variant, one.count) == (variant, count) and one.seed in seeds]
        values = {key: [value for one in mine for value in one.scores[key]] for key in FIGURES}
        return {key: interval(values[key], variant, count, key) for key in FIGURES}

    seeds = sorted({one.seed for one in drawn})
    return {
        "seeds": seeds,
        "settings": {key: value for key, value in asdict(config).items() if key != "seed"},
        "cut_tokens": CUT_TOKENS,
        "figures": [
            {
                "variant": variant,
                "objects": count,
                "caption_tokens": count * SENTENCE_WORDS,
                "crowds": sum(len(d.scores["mse"]) for d in drawn if (d.variant, d.count) == (variant, count)),
                "pooled": pooled(variant, count, seeds),
                "by_seed": {str(seed): pooled(variant, count, [seed]) for seed in seeds},
            }
            for variant in VARIANTS
            for count in COUNTS
        ],
    }


def held_out(count: int, crowds: int, seed: int) -> tuple[list[Crowd], list[str]]:
    """Held-out crowds with a number of objects, and their captions; the same for the same seed."""
    rng = random.Random(derive_seed(seed, "crowd-held-out", count))
    drawn = [sample_crowd(rng, count, "val") for _ in range(crowds)]
    return drawn, [caption(crowd, rng) for crowd in drawn]


@torch.no_grad()
def evaluate_arms(
    folder: Path, seed: int, *, counts: Sequence[int] = COUNTS, crowds: int = 64, num_steps: int = NUM_STEPS
) -> list[Drawn]:
    """Draw the same crowds with the same noise by every variant.

    Args:
        folder: what `train_arms` wrote.
        seed: names crowds, captions and noise.
        counts: numbers of objects.
        crowds: crowds per number of objects.
        num_steps: Euler steps of the sampler.
    """
    models = {arm: load(folder / arm) for arm in ARMS}
    results = []
    for count in counts:
        truth, captions = held_out(count, crowds, seed)
        for variant, (arm, tokens) in VARIANTS.items():
            shown = captions if tokens is None else [cut(text, tokens) for text in captions]
            language_model, decoder = models[arm]
            conditioner = build_conditioner(language_model, ARMS[arm])
            image = draw(decoder, conditioner, shown, seed=seed, num_steps=num_steps, name="crowd-eval-noise")
            results.append(Drawn(variant, count, seed, len(captions[0].split(" ")), score(image, truth, captions)))
    return results


def score(image_B3HW: torch.Tensor, crowds: Sequence[Crowd], captions: Sequence[str]) -> dict[str, list[float]]:
    """The `scores` of `Drawn` for pictures of crowds, whose whole captions say what stands before the cut."""
    hits_BN = hits(image_B3HW, crowds)
    true_BN = torch.tensor([crowd.codes for crowd in crowds]) > 0
    early = [mentioned(cut(text, CUT_TOKENS)) for text in captions]
    early_BN = torch.tensor([[name in found for name in CELLS] for found in early])
    scores = {"mse": (image_B3HW - render(crowds)).square().mean((1, 2, 3))}
    scores |= {name: _share(hits_BN[name], true_BN) for name in ATTRIBUTES}
    scores["occupied"] = hits_BN["occupied"].float().mean(1)
    scores["object_before"] = _share(hits_BN["object"], true_BN & early_BN)
    scores["object_after"] = _share(hits_BN["object"], true_BN & ~early_BN)
    return {name: values.tolist() for name, values in scores.items()}


def _share(hits_BN: torch.Tensor, of_BN: torch.Tensor) -> torch.Tensor:
    """Share of hits among the cells of a mask; NaN where it is empty."""
    return (hits_BN & of_BN).sum(1) / of_BN.sum(1)


def interval(values: Sequence[float], *name: int | str) -> dict[str, float] | None:
    """Mean over crowds and its 95 % bootstrap interval, NaN left out; None if nothing is left.

    Args:
        values: one number per crowd.
        name: of the draws of the bootstrap.
    """
    kept = [value for value in values if value == value]
    if not kept:
        return None
    low, high = bootstrap([kept], *name, "crowd-bootstrap")
    return {"mean": float(np.mean(kept)), "low": low, "high": high}

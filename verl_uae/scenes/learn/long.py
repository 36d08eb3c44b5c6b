# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Long captions: the whole caption against its first 77 tokens. Writes ``long.json`` and ``long.png``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from verl_uae.scenes.crowd.evaluate import COUNTS, VARIANTS, Drawn, evaluate_arms, pooled
from verl_uae.scenes.crowd.training import CUT_TOKENS, CrowdConfig, train_arms
from verl_uae.scenes.crowd.world import SENTENCE_WORDS
from verl_uae.scenes.learn.bars import Bar, every, mean_and_spread
from verl_uae.scenes.quickstart import Say

#: Steps of each of the two decoders, after the short phase they share.
STEPS = 400
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


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Train and measure all seeds, one after the other on one core, and write the results.

    Seeds that are there with the same settings are not run again; ``jobs`` is not used.
    """
    results: list[Drawn] = []
    for seed in seeds:
        say(f"== seed {seed}")
        config = CrowdConfig(seed=seed, steps=steps)
        results += run_seed(out / f"seed{seed}", config, say)
        write_results(out, results, config)
    say(table(results))
    return verdicts(results)


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


def verdicts(results: Sequence[Drawn]) -> list[Bar]:
    """The bars, set before the runs."""
    most, least = max(COUNTS), min(COUNTS)
    after = [
        min(_mean(results, seed, "full", n, "object_after") for n in COUNTS if n > _fit()) for seed in _seeds(results)
    ]
    bars = [
        every(
            f"{most} objects: objects right with the whole caption at least 0.2 above {LABELS[other]}, every seed",
            [_lead(results, seed, other, most) for seed in _seeds(results)],
            0.2,
        )
        for other in ("cut_inference", "cut_trained")
    ]
    return [
        *bars,
        every(
            f"{least} objects, nothing cut: the whole caption's decoder at most 0.05 below {LABELS['cut_trained']}",
            [_lead(results, seed, "cut_trained", least) for seed in _seeds(results)],
            -0.05,
            "smallest lead",
        ),
        every("objects named after the cut at least half right, every length and seed", after, 0.5, "smallest share"),
    ]


def _seeds(results: Sequence[Drawn]) -> list[int]:
    return sorted({result.seed for result in results})


def _fit() -> int:
    """Objects that fit before the cut."""
    return CUT_TOKENS // SENTENCE_WORDS


def _mean(results: Sequence[Drawn], seed: int, variant: str, count: int, key: str) -> float:
    mine = [result for result in results if result.seed == seed]
    found = pooled(mine, variant, count, key)
    if found is None:
        raise ValueError(f"seed {seed} has no {key} of {variant} with {count} objects")
    return found["mean"]


def _lead(results: Sequence[Drawn], seed: int, other: str, count: int) -> float:
    return _mean(results, seed, "full", count, "object") - _mean(results, seed, other, count, "object")


def table(results: Sequence[Drawn], key: str = "object") -> str:
    """Markdown: a figure against the length, mean and 95 % interval over crowds of all seeds, ± over seeds."""
    lines = ["| objects | caption tokens | " + " | ".join(LABELS.values()) + " |", "|---|---|" + "---|" * len(LABELS)]
    for count in COUNTS:
        cells = []
        for variant in VARIANTS:
            found = pooled(results, variant, count, key)
            if found is None:
                cells.append("–")
                continue
            means = [_mean(results, seed, variant, count, key) for seed in _seeds(results)]
            digits = 4 if key == "mse" else 3
            mean, low, high = (f"{found[name]:.{digits}f}" for name in ("mean", "low", "high"))
            spread = f" ± {mean_and_spread(means)[1]:.{digits}f}" if len(means) > 1 else ""
            cells.append(f"{mean} ({low}, {high}){spread}")
        lines.append(f"| {count} | {count * SENTENCE_WORDS} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(out: Path, results: Sequence[Drawn], config: CrowdConfig) -> None:
    """Write the figures and the plot."""
    settings = {key: value for key, value in asdict(config).items() if key != "seed"}
    figures = [
        {
            "variant": variant,
            "objects": count,
            "caption_tokens": count * SENTENCE_WORDS,
            "crowds": sum(len(r.scores["mse"]) for r in results if (r.variant, r.count) == (variant, count)),
            "pooled": {key: pooled(results, variant, count, key) for key in FIGURES},
            "by_seed": {
                seed: {key: pooled([r for r in results if r.seed == seed], variant, count, key) for key in FIGURES}
                for seed in _seeds(results)
            },
        }
        for variant in VARIANTS
        for count in COUNTS
    ]
    content = {
        "seeds": _seeds(results),
        "settings": settings,
        "cut_tokens": CUT_TOKENS,
        "torch": torch.__version__,
        "bars": {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results)},
        "figures": figures,
    }
    (out / "long.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(out / "long.png", results)


def plot(path: Path, results: Sequence[Drawn]) -> None:
    """Objects right against the length: all of them, named before and after the cut."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = ("object", "object_before", "object_after")
    figure, axes = pyplot.subplots(1, len(keys), figsize=(11, 3.2), sharey=True, constrained_layout=True)
    for axis, key in zip(axes, keys, strict=True):
        for variant, label in LABELS.items():
            found = [(n * SENTENCE_WORDS, pooled(results, variant, n, key)) for n in COUNTS]
            points = [(tokens, f["mean"], f["low"], f["high"]) for tokens, f in found if f is not None]
            tokens, mean, low, high = (list(column) for column in zip(*points, strict=True))
            axis.plot(tokens, mean, marker="o", label=label)
            axis.fill_between(tokens, low, high, alpha=0.2)
        axis.axvline(CUT_TOKENS, color="gray", linestyle=":")
        axis.set_title(FIGURES[key], fontsize=9)
        axis.set_xlabel("caption tokens")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of objects")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

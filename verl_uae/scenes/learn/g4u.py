# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding: ``g4u.json``, ``g4u_curves.png`` and ``seed<N>/scenes.png``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from verl_uae.scenes.learn.bars import Bar, beyond_seeds, every
from verl_uae.scenes.learn.runs import read_curve
from verl_uae.scenes.quickstart import Say, Timings, measure, prepare, train, trained_encoder
from verl_uae.scenes.report import COLUMNS, comparison_picture, write_report

#: Metrics of the curves: name in the results -> name in verl's log.
CURVE = {"reward": "reward/score/mean", "words": "caption/words/mean", "seconds": "timing_s/step"}


@dataclass(frozen=True)
class SeedResult:
    """One seed."""

    seed: int
    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    """Per training step: step, reward, words, seconds."""
    seconds: dict[str, float]


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Run all seeds, one after the other (a run of this stage fills two cores), and write the results."""
    results: list[SeedResult] = []
    for seed in seeds:
        say(f"== seed {seed}")
        results.append(run_seed(out / f"seed{seed}", seed, steps, say))
        write_results(out, results, steps)
    say(table(results))
    return verdicts(results)


def run_seed(root: Path, seed: int, steps: int, say: Say) -> SeedResult:
    """Cold start and G4U of one seed; raises SystemExit if the training command fails."""
    timings = Timings()
    prepare(root, seed, timings, say)
    before = measure(root, root / "encoder", seed)
    run = root / "runs" / "g4u"
    code = train(root, run, seed=seed, steps=steps, overrides=(), timings=timings, say=say)
    if code != 0:
        raise SystemExit(f"seed {seed}: the training command failed, see {run / 'train.log'}")
    after = measure(root, trained_encoder(run, steps), seed)
    write_report(root / "report.html", before, after)
    comparison_picture(before, after).save(root / "scenes.png")
    return SeedResult(seed, before.metrics, after.metrics, read_curve(run / "metrics.jsonl", CURVE), timings.seconds)


def verdicts(results: Sequence[SeedResult]) -> list[Bar]:
    """The bars of the stage."""

    def gains(key: str) -> list[float]:
        return [result.after[key] - result.before[key] for result in results]

    ratios = [result.after["words"] / result.before["words"] for result in results]
    detail = [result.after["full_detail"] for result in results]
    return [
        every("held-out reward up by at least 0.12, every seed", gains("reward"), 0.12),
        Bar("words per caption at least x 1.3, every seed", min(ratios) >= 1.3, f"smallest ratio x {min(ratios):.2f}"),
        Bar(
            "captions with full detail at least 0.55, every seed",
            min(detail) >= 0.55,
            f"smallest share {min(detail):.3f}",
        ),
        beyond_seeds("drawn attribute accuracy up by more than twice its spread over seeds", gains("drawn")),
        every("true captions down by at most 0.05, every seed", gains("true"), -0.05, "largest change"),
    ]


def write_results(out: Path, results: Sequence[SeedResult], steps: int) -> None:
    """Write the figures and the curves."""
    bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results)}
    content = {"steps": steps, "torch": torch.__version__, "bars": bars, "seeds": [vars(r) for r in results]}
    (out / "g4u.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot_curves(out / "g4u_curves.png", results)


def plot_curves(path: Path, results: Sequence[SeedResult]) -> None:
    """Training reward and caption length against the step, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    for axis, key, label in zip(axes, ("reward", "words"), ("training reward", "words per caption"), strict=True):
        for result in results:
            axis.plot([p["step"] for p in result.curve], [p[key] for p in result.curve], label=f"seed {result.seed}")
        axis.set_xlabel("G4U step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(results: Sequence[SeedResult]) -> str:
    """Markdown table, before -> after per seed."""
    lines = [
        "| 128 held-out scenes | " + " | ".join(f"seed {result.seed}" for result in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for key, label in COLUMNS.items():
        cells = [f"{result.before[key]:.3f} → {result.after[key]:.3f}" for result in results]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

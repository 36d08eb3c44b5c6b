# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding: ``g4u.json``, ``g4u_curves.png`` and ``seed<N>/scenes.png``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.learning.experiment import Bar, Experiment, Report, beyond_seeds, every, figure, shown
from benchmarks.learning.runs import CURVE, RESULT, Run, kept, read_curve
from benchmarks.learning.statistics import AXES, Row, gains, spent
from verl_uae.bench.results import markdown_table
from verl_uae.files import write_json
from verl_uae.scenes.quickstart import (
    COLUMNS,
    METRICS,
    Say,
    Timings,
    comparison_picture,
    measure,
    prepare,
    train,
    trained_captioner,
    write_report,
)


class G4U(Experiment):
    """The quickstart's chain over seeds."""

    name = "g4u"

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        """One seed after the other: a run of this stage fills two cores, so ``jobs`` is not used."""
        rows: list[Row] = []
        for seed in seeds:
            say(f"== seed {seed}")
            rows.append(run_seed(out / f"seed{seed}", seed, steps, say))
            yield {"seeds": rows}

    def bars(self, report: Report) -> list[Bar]:
        rows = report["seeds"]
        ratios = [row["after"]["words"] / row["before"]["words"] for row in rows]
        detail = min(row["after"]["full_detail"] for row in rows)
        return [
            every("held-out reward up by at least 0.12, every seed", gains(rows, "reward"), 0.12),
            Bar(
                "words per caption at least x 1.3, every seed",
                min(ratios) >= 1.3,
                f"smallest ratio x {min(ratios):.2f}",
            ),
            Bar("captions with full detail at least 0.55, every seed", detail >= 0.55, f"smallest share {detail:.3f}"),
            beyond_seeds("drawn attribute accuracy up by more than twice its spread over seeds", gains(rows, "drawn")),
            every("true captions down by at most 0.05, every seed", gains(rows, "true"), -0.05, "largest change"),
        ]

    def table(self, report: Report) -> list[str]:
        """Before -> after per seed."""
        rows = report["seeds"]
        cells = [
            [label, *(f"{row['before'][key]:.3f} → {row['after'][key]:.3f}" for row in rows)]
            for key, label in shown(COLUMNS, (row["before"] for row in rows)).items()
        ]
        return markdown_table(["128 held-out scenes", *(f"seed {row['seed']}" for row in rows)], cells)

    def plot(self, out: Path, report: Report) -> None:
        """Training reward and caption length, one line per seed."""
        with figure(out / "g4u_curves.png", 2, (9, 3.2), dpi=110, legend=None) as axes:
            labels = {"reward": "training reward", "words": "words per caption"}
            for axis, (key, label) in zip(axes, labels.items(), strict=True):
                for row in report["seeds"]:
                    values = [point[key] for point in row["curve"]]
                    axis.plot(spent(row, self.axis), values, label=f"seed {row['seed']}")
                axis.set_xlabel("G4U step" if self.axis == "step" else AXES[self.axis])
                axis.set_ylabel(label)


def run_seed(root: Path, seed: int, steps: int, say: Say) -> Row:
    """Tiny models and G4U of one seed, unless they are there; raises SystemExit if the training command fails."""
    timings, result, request = Timings(), root / RESULT, {"seed": seed, "steps": steps}
    if (row := kept(result, request)) is not None:
        say("there already")
        return row["row"]
    prepare(root, seed, timings, say)
    before = measure(root, root / "captioner", seed)
    run = root / "runs" / "g4u"
    code = train(root, run, seed=seed, steps=steps, overrides=(), timings=timings, say=say)
    if code != 0:
        raise SystemExit(f"seed {seed}: the training command failed, see {run / 'train.log'}")
    after = measure(root, trained_captioner(run, steps), seed)
    write_report(root / "report.html", before, after)
    comparison_picture(before, after).save(root / "scenes.png")
    curve = read_curve(run / METRICS, {name: CURVE[name] for name in ("reward", "words", "seconds")})
    found = {
        "seed": seed,
        "before": before.metrics,
        "after": after.metrics,
        "curve": curve,
        "seconds": timings.seconds,
        "cost": Run({}, "uae_g4u", root, run, seed, steps).costs(),
    }
    write_json(result, {**request, "row": found})
    return found

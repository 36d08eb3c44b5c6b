# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The map of `mutual`: how grounded a word must be at the start for both stages together to win.

The starts differ in how often the decoder's captions say the word, and in how long the joint training is. Runs and
folders are those of `mutual`, so that what one has done the other does not do again. Writes ``grounding.json`` and
``grounding.png``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.learning.experiment import Bar, Experiment, Report, figure, leads_bar
from benchmarks.learning.mutual import (
    ALONE,
    BLIND,
    HALF_GROUNDED,
    Start,
    evaluated,
    figures,
    measured,
    planned,
    without_pictures,
)
from benchmarks.learning.statistics import REPORTED_SEEDS, Row, leads, mean_and_spread, select, t_interval
from benchmarks.learning.u4g import SCENES
from verl_uae.bench.results import between, markdown_table
from verl_uae.scenes.quickstart import Say

#: The decoder is told the word never, hardly, sometimes, nearly as often as the rest; and the latter for other lengths.
STARTS = (
    *(Start(eps, HALF_GROUNDED.updates) for eps in (0.0, 0.02, 0.05, 0.25, 0.75)),
    *(Start(HALF_GROUNDED.eps, updates) for updates in (300, 1000)),
)
BLIND_START = STARTS[0]
#: Grounding that two drawings of 256 scenes differ by when nothing was learnt.
NOISE = 0.05
GROUNDING, SAID = f"grounding/{BLIND}", f"mentions/{BLIND}"


class Grounding(Experiment):
    """Where both stages together win, and where they cannot."""

    name = "grounding"
    steps = 120
    seeds = REPORTED_SEEDS[:3]
    axes = ("step",)
    folder = "mutual"
    arms = (*ALONE, "turns")
    #: 7 starts x 3 seeds x (350 + 120 + 235 s of steps, and the joint training), at 2.9 s and 1 s a step.
    assumed_minutes = 290.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        runs = [planned(out, arm, start, seed, steps) for start in STARTS for seed in seeds for arm in self.arms]
        starts = {start.name: {"eps": start.eps, "updates": start.updates} for start in STARTS}
        for rows in measured(out, runs, jobs, say):
            yield {
                "blind": BLIND,
                "scenes": SCENES,
                "starts": starts,
                "runs": [{**without_pictures(row), "curve": []} for row in rows],
            }

    def bars(self, report: Report) -> list[Bar]:
        """Set before the runs; those of starts whose runs are all there."""
        last, bars = evaluated(report["steps"])[-1], []
        half, blind = (select(report["runs"], start=start.name) for start in (HALF_GROUNDED, BLIND_START))
        if found := lead_by_seed(half, last):
            claim = f"{HALF_GROUNDED.name}: turns above the better of both alone, every seed"
            bars.append(leads_bar(claim, list(found.values())))
        if lead_by_seed(blind, last):
            learnt = [change for arm in ("u4g", "turns") for change in changes(blind, arm, last, GROUNDING).values()]
            claim = f"{BLIND_START.name}: grounding of {BLIND} up by at most {NOISE}, whoever trains the decoder"
            bars.append(Bar(claim, max(learnt) <= NOISE, f"largest gain {max(learnt):+.3f}"))
            said = list(changes(blind, "g4u", last, SAID).values())
            claim = f"{BLIND_START.name}: G4U alone unlearns to say {BLIND}, every seed"
            bars.append(Bar(claim, max(said) < 0.0, f"largest change {max(said):+.3f}"))
        return bars

    def table(self, report: Report) -> list[str]:
        """A row per start: means over seeds, and the lead with its t interval."""
        last, lines = evaluated(report["steps"])[-1], []
        for name, start in report["starts"].items():
            rows = select(report["runs"], start=name)
            lead = list(lead_by_seed(rows, last).values())
            if not lead:
                continue
            cells = [f"{start['eps']:g}", str(start["updates"])]
            cells += [
                _mean(rows, "g4u", 0, GROUNDING),
                *(_mean(rows, arm, last, GROUNDING) for arm in ("u4g", "turns")),
            ]
            cells += [_mean(rows, "g4u", 0, SAID), *(_mean(rows, arm, last, SAID) for arm in ("g4u", "turns"))]
            cells += [f"{mean_and_spread(lead)[0]:+.3f}", between(t_interval(lead), "+.3f"), f"{min(lead):+.3f}"]
            lines.append(cells)
        head = ["told", "updates", "grounding", "after U4G", "after turns", "said", "after G4U", "after turns"]
        head += ["lead of turns", "t interval", "smallest"]
        return markdown_table(head, lines, words=())

    def plot(self, out: Path, report: Report) -> None:
        """Against the grounding of the start, a colour per start and a point per seed: the lead of turns over the
        better of both alone, and the grounding that U4G alone and turns end with."""
        last = evaluated(report["steps"])[-1]
        with figure(out / "grounding.png", 2, (9, 3.6), dpi=110, legend=6) as (lead, learnt):
            for name, start in report["starts"].items():
                rows = select(report["runs"], start=name)
                found = lead_by_seed(rows, last)
                before = figures(rows, "g4u", 0, GROUNDING)
                x = [before[seed] for seed in found]
                label = f"told {100 * start['eps']:g} %, {start['updates']} updates"
                points = lead.scatter(x, list(found.values()), s=18, label=label)
                for arm, marker in (("u4g", "x"), ("turns", "o")):
                    after = figures(rows, arm, last, GROUNDING)
                    y = [after[seed] for seed in found]
                    learnt.scatter(x, y, s=18, marker=marker, color=points.get_facecolor()[:1])
            lead.axhline(0.0, color="gray", linewidth=0.8)
            lead.set_ylabel("lead of turns over the better alone")
            learnt.axline((0.0, 0.0), slope=1.0, color="gray", linewidth=0.8)
            learnt.set_ylabel("grounding after U4G (x) and turns (o)")
            for drawn in (lead, learnt):
                drawn.set_xlabel(f"grounding of {BLIND} at the start")


def lead_by_seed(rows: Sequence[Row], step: int) -> dict[int, float]:
    """Seed -> held-out reward of turns above the better of both alone, of the seeds that have all three."""
    both, *alone = (figures(rows, arm, step, "reward") for arm in ("turns", *ALONE))
    return {seed: both[seed] - max(one[seed] for one in alone) for seed in both if all(seed in one for one in alone)}


def changes(rows: Sequence[Row], arm: str, step: int, key: str) -> dict[int, float]:
    """Seed -> a figure of an arm after so many steps minus before."""
    after, before = (figures(rows, arm, when, key) for when in (step, 0))
    return dict(zip(sorted(after), leads(after, before), strict=True))


def _mean(rows: Sequence[Row], arm: str, step: int, key: str) -> str:
    return f"{mean_and_spread(list(figures(rows, arm, step, key).values()))[0]:.3f}"

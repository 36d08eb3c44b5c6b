# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Do captioner and decoder gain from each other? From a start in which neither can say and draw everything.

The tiny models are trained jointly on captions that leave one attribute out more often than the others: the captioner
seldom says its word, the decoder half obeys it. From there, with equally many drawn pictures, run G4U alone, U4G alone,
and both. Writes ``mutual.json`` and ``mutual.png``.

A drawing of the true full caption and one of the same caption without an attribute, its *silent* caption, from the same
noise, say what the decoder makes of the word: the difference in how often the attribute is right is its *grounding*.

Shape legend: B scenes, H = W = 32 pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.experiment import Bar, Experiment, Report, every, figure, leads_bar, spread_cells
from benchmarks.learning.runs import QUIET, RESULT, Run, executed, joint_trainings, kept, read_curve
from benchmarks.learning.statistics import (
    AXES,
    REPORTED_SEEDS,
    Row,
    bootstrap,
    leads,
    mean_and_spread,
    select,
    spent,
    t_interval,
)
from benchmarks.learning.u4g import REWARD, SCENES, similarity
from verl_uae.bench.results import between, markdown_table
from verl_uae.errors import ConfigError
from verl_uae.files import write_json
from verl_uae.scenes.evaluate import caption_metrics, draw, drawing_metrics, held_out_scenes, load_loop
from verl_uae.scenes.grammar import ATTRIBUTES, FULL, CaptionMix, caption
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import METRICS, Say
from verl_uae.scenes.render import render_float
from verl_uae.seeding import generator
from verl_uae.settings import EXPLORING

#: The attribute whose word is held back.
BLIND = "size"


@dataclass(frozen=True, slots=True)
class Start:
    """What the tiny models have learnt before RL."""

    eps: float
    """Share of the decoder's captions that say the blind attribute, in [0, 1]."""
    updates: int
    """Of the joint training."""

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        return f"{BLIND}_{self.eps:g}_{self.updates}"

    def joint(self, seed: int) -> JointConfig:
        """Of the joint training."""
        return JointConfig(
            seed=seed,
            steps=self.updates,
            captioner_mix=CaptionMix(bare=0.0, full=0.0, partial=0.9, own={BLIND: 0.3}),
            decoder_mix=CaptionMix(bare=0.1, full=0.6, own={BLIND: self.eps}),
        )


HALF_GROUNDED, GROUNDED = Start(0.75, 600), Start(0.75, 1000)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to spend the drawn pictures."""

    stage: str
    words: tuple[str, ...] = ()
    """Overrides; ``{turn}`` is an eighth of all steps, ``{half}`` half of them."""
    start: Start | None = None
    """Where it is not the start of the others."""


def turns(length: str) -> tuple[str, ...]:
    """Turns of so many steps; G4U first, since it unlearns a word that the decoder does not obey."""
    return ("uae.unified.first=g4u", *(f"uae.unified.{stage}_steps={length}" for stage in ("g4u", "u4g")))


#: Of a step that trains both: 4 pictures with 4 captions, each drawn 4 times, are 64 drawn pictures too.
_JOINT = (
    "uae.unified.schedule=joint",
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "uae.u4g.samples_per_caption=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
)

ARMS: dict[str, Arm] = {
    "g4u": Arm("g4u"),
    "u4g": Arm("u4g"),
    "turns": Arm("unified", turns("{turn}")),
    "once": Arm("unified", turns("{half}")),
    "joint": Arm("unified", _JOINT),
    "ceiling": Arm("g4u", start=GROUNDED),
}
"""Either stage alone; both in eight turns, one turn of each, and every step; G4U on a decoder that needs no U4G."""
#: Both stages; what they are compared with.
TOGETHER, ALONE = ("turns", "once", "joint"), ("g4u", "u4g")

#: Each picture costs as many denoising steps in either stage, and in the evaluation.
_COMMON = (REWARD, "uae.u4g.guidance=1.0", "uae.decoder.num_steps=8", "uae.u4g.num_steps=8", *QUIET)
_DECODER = (
    "decoder/objective=dppo",
    "uae.u4g.objective.params.threshold=1e-5",
    "uae.train.optim.lr=3e-4",
    "uae.u4g.captions.do_sample=true",
    "uae.train.save_contents=[model,diffusers]",
    "uae.checkpoint.export=every",
)

COLUMNS = {
    "reward": "reward",
    "drawn": "attributes",
    f"drawn/{BLIND}": f"{BLIND} drawn",
    f"mentions/{BLIND}": f"{BLIND} said",
    "true": "true",
    "full/reward": "full: reward",
    f"full/{BLIND}": f"full: {BLIND}",
    f"silent/{BLIND}": f"silent: {BLIND}",
    f"grounding/{BLIND}": f"grounding of {BLIND}",
}
#: What leads are of -> figure.
LEADS = {
    "held-out reward": "reward",
    "reward of full captions": "full/reward",
    f"{BLIND} of full captions": f"full/{BLIND}",
}


class Mutual(Experiment):
    """Whether both stages together beat either alone, and whether each is worth more beside the other."""

    name = "mutual"
    steps = 120
    seeds = REPORTED_SEEDS
    arms = tuple(ARMS)
    #: 5 seeds x (350 + 120 + 3 x 235 + 350 s of steps, and the joint trainings), at 2.9 s and 1 s a step.
    assumed_minutes = 155.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        runs = [planned(out, arm, HALF_GROUNDED, seed, steps) for seed in seeds for arm in self.arms]
        head = {"blind": BLIND, "scenes": SCENES, "starts": {arm: start_of(arm).name for arm in self.arms}}
        for rows in measured(out, runs, jobs, say):
            yield {**head, "leads": paired(rows, evaluated(steps)), "runs": [without_pictures(row) for row in rows]}

    def bars(self, report: Report) -> list[Bar]:
        """Set before the runs; those of arms that are there on all seeds."""
        last = evaluated(report["steps"])[-1]

        def after(arm: str, key: str) -> dict[int, float]:
            return figures(report["runs"], arm, last, key)

        def lead(claim: str, other: str, key: str) -> Iterator[Bar]:
            ours, theirs = after("turns", key), after(other, key)
            if ours and ours.keys() == theirs.keys():
                yield leads_bar(f"turns: {claim}, every seed", leads(ours, theirs))

        bars = [bar for alone in ALONE for bar in lead(f"held-out reward above {alone} alone", alone, "reward")]
        twice = "above u4g alone, which has twice the steps of U4G"
        bars += lead(f"reward of full captions {twice}", "u4g", "full/reward")
        bars += lead(f"{BLIND} of full captions {twice}", "u4g", f"full/{BLIND}")
        ours, theirs = after("turns", "true"), after("g4u", "true")
        if ours and ours.keys() == theirs.keys():
            changes = leads(ours, theirs)
            bars.append(every("turns: true captions at most 0.05 below g4u alone, every seed", changes, -0.05, "least"))
        return bars

    def table(self, report: Report) -> list[str]:
        """Figures of every arm at both evaluations, then the leads of both stages over either alone."""
        rows, lines = report["runs"], []
        for arm in dict.fromkeys(row["arm"] for row in rows):
            mine = select(rows, arm=arm)
            for place, point in enumerate(mine[0]["points"]):
                found = [row["points"][place] for row in mine]
                cost = [f"{point['pictures']:.0f}", f"{point['flops'] / 1e12:.2f}"]
                seconds = f"{mean_and_spread([one['seconds'] for one in found])[0]:.0f}"
                lines.append([f"`{arm}`", str(point["step"]), *spread_cells(found, COLUMNS), *cost, seconds])
        head = ["arm", "step", *COLUMNS.values(), "pictures", "TFLOP", "seconds of steps"]
        found = report["leads"]
        return [*markdown_table(head, lines), *(["", *leads_table(found)] if found else [])]

    def plot(self, out: Path, report: Report) -> None:
        """Held-out reward and grounding, mean over seeds with its t interval, a line per arm."""
        panels = {"reward": "held-out reward", f"grounding/{BLIND}": f"grounding of {BLIND}"}
        with figure(out / "mutual.png", len(panels), (9, 3.4), dpi=110) as axes:
            for drawn, (key, label) in zip(axes, panels.items(), strict=True):
                for arm in dict.fromkeys(row["arm"] for row in report["runs"]):
                    mine = select(report["runs"], arm=arm)
                    columns = list(zip(*(row["points"] for row in mine), strict=True))
                    x = [mean_and_spread([point[self.axis] for point in column])[0] for column in columns]
                    values = [[point[key] for point in column] for column in columns]
                    (line,) = drawn.plot(x, [mean_and_spread(found)[0] for found in values], marker="o", label=arm)
                    bounds = [t_interval(found) for found in values]
                    if None not in bounds:
                        drawn.fill_between(x, *zip(*bounds, strict=True), color=line.get_color(), alpha=0.12)
                drawn.set_xlabel(AXES[self.axis])
                drawn.set_ylabel(label)


# ---------------------------------------------------------------- runs


def evaluated(steps: int) -> tuple[int, int]:
    """Steps after which a run is measured: half of them, and all.

    Raises:
        ConfigError: they cannot be divided into as many turns.
    """
    if steps < 2 or steps % 2:
        raise ConfigError("--steps", f"must be even and at least 2, since half of them are measured too, got {steps}")
    return steps // 2, steps


def start_of(arm: str, start: Start = HALF_GROUNDED) -> Start:
    """Of an arm, where the others have this one."""
    return ARMS[arm].start or start


def planned(out: Path, arm: str, start: Start, seed: int, steps: int) -> Run:
    """The training command of an arm; each has a folder of its own below that of its start."""
    how, begin = ARMS[arm], start_of(arm, start)
    half, _ = evaluated(steps)
    words = [word.format(turn=max(1, steps // 8), half=half) for word in how.words]
    own = _DECODER if how.stage in EXPLORING else ()
    root = out / f"seed{seed}_{begin.name}"
    labels = {"start": begin.name, "arm": arm}
    overrides = (*own, *_COMMON, *words, f"trainer.save_freq={half}")
    return Run(labels, f"uae_{how.stage}", root, root / "runs" / arm, seed, steps, overrides)


def measured(out: Path, runs: Sequence[Run], jobs: int, say: Say) -> Iterator[list[Row]]:
    """Rows of the runs, in their order, as far as they are done; what a folder holds a result of is not run again.

    A row has the run's labels and seed, ``curve``, ``cost`` and ``seconds``, ``points`` (`measure` before and after
    half and all steps, with ``step`` and what it had cost by then) and ``rewards`` (of each held-out picture at each
    point).
    """
    rows: dict[str, Row] = {}
    for run in runs:
        if (before := kept(run.folder / RESULT, {"command": run.words, "scenes": SCENES})) is not None:
            rows[run.name] = before["row"]
    say(f"{len(runs)} runs, {len(rows)} measured already")
    left = [run for run in runs if run.name not in rows]
    if not left:
        yield [rows[run.name] for run in runs]
    joint_trainings({run.root: joint_of(run) for run in left}, jobs, say)
    for run, seconds in executed(left, jobs, say):
        rows[run.name] = row_of(run, seconds)
        write_json(run.folder / RESULT, {"command": run.words, "scenes": SCENES, "row": rows[run.name]})
        yield [rows[run.name] for run in runs if run.name in rows]


def joint_of(run: Run) -> JointConfig:
    """Of the models that a run starts from."""
    _, eps, updates = run.labels["start"].split("_")
    return Start(float(eps), int(updates)).joint(run.seed)


def row_of(run: Run, seconds: float) -> Row:
    """Measure a run that has ended."""
    curve, cost = read_curve(run.folder / METRICS), run.costs()
    made: dict[str, Any] = {**run.labels, "seed": run.seed, "curve": curve, "cost": cost, "seconds": seconds}
    used = {axis: {0: 0, **dict(zip(spent(made, "step"), spent(made, axis), strict=True))} for axis in AXES}
    made["points"], made["rewards"] = [], []
    for step in (0, *evaluated(run.steps)):
        found, rewards = measure(run, step)
        made["points"].append({**found, **{axis: values[step] for axis, values in used.items()}})
        made["rewards"].append(rewards)
    return made


# ---------------------------------------------------------------- figures


def measure(run: Run, step: int) -> tuple[dict[str, float], list[float]]:
    """Held-out figures of a run after so many steps, and the reward of every held-out picture.

    Returns:
        ``reward``, what `caption_metrics` and `drawing_metrics` have, and what `obedience` has.
    """
    return measure_pair(run.root, *run.models(step), run.seed)


@torch.no_grad()
def measure_pair(root: Path, captioner: Path, decoder: Path, seed: int) -> tuple[dict[str, float], list[float]]:
    """As `measure`, of a captioner and a decoder; captions are read by the language model of the root's captioner."""
    writer, painter, reader = load_loop(captioner, decoder, root / "captioner")
    scenes = held_out_scenes(SCENES, seed)
    image_B3HW = render_float(scenes)
    captions = writer.sample(image_B3HW, generator(seed, "scenes-eval-captions"))
    drawn_B3HW = draw(painter, reader, captions, seed=seed)
    reward_B = similarity(drawn_B3HW, image_B3HW)
    found = {"reward": float(reward_B.mean()), **caption_metrics(scenes, captions)}
    found |= drawing_metrics(drawn_B3HW, scenes) | obedience(root, decoder, seed)
    return found, [round(reward, 5) for reward in reward_B.tolist()]


@functools.cache
@torch.no_grad()
def obedience(root: Path, decoder: Path, seed: int) -> Mapping[str, float]:
    """What a decoder makes of words, whatever the captioner says.

    Returns:
        ``full/reward``; for every attribute that captions can leave out, shares in [0, 1] of pictures or objects that
        have it right: ``full/<attribute>`` drawn from full captions, ``silent/<attribute>`` from those without it, and
        ``grounding/<attribute>``, their difference.
    """
    _, painter, reader = load_loop(root / "captioner", decoder, root / "captioner")
    scenes = held_out_scenes(SCENES, seed)

    def drawn(levels: frozenset[str]) -> torch.Tensor:
        return draw(painter, reader, [caption(scene, levels) for scene in scenes], seed=seed)

    full_B3HW = drawn(FULL)
    full, found = drawing_metrics(full_B3HW, scenes), {}
    found["full/reward"] = float(similarity(full_B3HW, render_float(scenes)).mean())
    for name in ATTRIBUTES:
        silent = drawing_metrics(drawn(FULL - {name}), scenes)[f"drawn/{name}"]
        found |= {f"full/{name}": full[f"drawn/{name}"], f"silent/{name}": silent}
        found[f"grounding/{name}"] = full[f"drawn/{name}"] - silent
    return found


def figures(rows: Iterable[Row], arm: str, step: int, key: str) -> dict[int, float]:
    """Seed -> a figure of an arm after so many steps."""
    return {row["seed"]: at(row, step)[key] for row in select(rows, arm=arm)}


def at(row: Row, step: int) -> Mapping[str, float]:
    """The point of a row after so many steps."""
    (found,) = select(row["points"], step=step)
    return found


def without_pictures(row: Row) -> Row:
    """A row of the report: what the bootstrap needs of each picture stays in the folder of the run."""
    return {key: value for key, value in row.items() if key != "rewards"}


def paired(rows: Sequence[Row], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Leads of both stages over either alone, on the seeds that have both runs: of each seed, their t interval, and for
    the reward the bootstrap interval over seeds and pictures."""
    found = []
    for ours, theirs in ((ours, theirs) for ours in TOGETHER for theirs in ALONE):
        pairs = [(one, other) for one in select(rows, arm=ours) for other in select(rows, arm=theirs, seed=one["seed"])]
        for place, step in enumerate(steps if pairs else ()):
            for claim, key in LEADS.items():
                values = {one["seed"]: at(one, step)[key] - at(other, step)[key] for one, other in pairs}
                entry = {"arm": ours, "over": theirs, "step": step, "figure": claim}
                entry |= {"by_seed": list(values.values()), "t_interval": t_interval(list(values.values()))}
                if key == "reward":
                    groups = [
                        [a - b for a, b in zip(one["rewards"][place + 1], other["rewards"][place + 1], strict=True)]
                        for one, other in pairs
                    ]
                    entry["bootstrap"] = bootstrap(groups, ours, theirs, step, "mutual-bootstrap")
                found.append(entry)
    return found


def leads_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: mean lead, its intervals, and the smallest of a seed."""
    lines = []
    for entry in found:
        values = entry["by_seed"]
        intervals = [between(entry.get(name), "+.3f") for name in ("t_interval", "bootstrap")]
        mean, least = mean_and_spread(values)[0], min(values)
        names = [f"`{entry['arm']}`", f"`{entry['over']}`", entry["figure"], str(entry["step"])]
        lines.append([*names, f"{mean:+.3f}", *intervals, f"{least:+.3f}"])
    head = ["lead of", "over", "figure", "step", "mean", "t interval", "bootstrap interval", "smallest"]
    return markdown_table(head, lines, words=(0, 1, 2))

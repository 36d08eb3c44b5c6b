# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What of a gain is left when the loop is changed in one place? Writes ``controls.json`` and ``controls.png``.

Every arm is a stage with one change, from the start with room of `u4g`, and is compared with the same stage without it:

* ``short``: captions may hold hardly more words than before training. What is gained is then what they say.
* ``length``: the captioner is paid for length alone. What is gained is then length.
* ``synced``: the condition is made by the captioner as it is, and not as it was. The reward moves with it.
* ``shared_noise``: the drawings of a caption start from one noise.
* ``deceit``: both stages in turns, paid for a good drawing only where its caption is false: a language of their own.
* ``detailed``: a cold start that imitates full captions and not under-descriptive ones.
* ``longer``: a cold start of three times as many updates.
* ``in_context``: a cold start whose condition is of states that have seen the picture. What is drawn from text then?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning import control_rewards
from benchmarks.learning.experiment import Bar, Experiment, Report, curves, shown, spread_cells
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.statistics import REPORTED_SEEDS, by_seed, leads, mean_and_spread, select, t_interval
from benchmarks.learning.u4g import RECOMMENDED, REWARD, SCENES, STARTS, STEEPNESS, similarity
from verl_uae.bench.results import between, markdown_table
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.evaluate import evaluate
from verl_uae.scenes.grammar import CAPTIONER_MIX, CaptionMix
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say
from verl_uae.settings import EXPLORING

START = "room"
#: Folder of pairs with under-descriptive captions below that of the models, and how many there are.
UNDER, PAIRS = "under", 2000
SYNCED = "uae.conditioner.weights=synced"
#: Tokens of a caption in ``short``, with its end: 6.5 words are the mean before training.
SHORT_TOKENS = 8


def paid(function: str) -> tuple[str, ...]:
    """Overrides that make a function of `control_rewards` the only reward; the similarity is held out."""
    return (
        f"uae.reward.terms=[{{name: pixel, held_out: true, params: {{k: {STEEPNESS}}}}}]",
        f"reward.custom_reward_function.path={control_rewards.__file__}",
        f"reward.custom_reward_function.name={function}",
    )


@dataclass(frozen=True, slots=True)
class Arm:
    """A stage, with one change."""

    stage: str
    base: str = ""
    """Arm without the change; "": this is one."""
    words: tuple[str, ...] = ()
    """The change."""
    captions: CaptionMix | None = None
    """That a cold start imitates; None: full ones."""
    times: int = 1
    """As many steps as the others."""


ARMS: dict[str, Arm] = {
    "g4u": Arm("g4u"),
    "u4g": Arm("u4g"),
    "unified": Arm("unified"),
    "short": Arm("g4u", "g4u", (f"data.max_response_length={SHORT_TOKENS}",)),
    "length": Arm("g4u", "g4u", paid("length")),
    "synced": Arm("g4u", "g4u", (SYNCED,)),
    "shared_noise": Arm("u4g", "u4g", ("uae.u4g.share_noise=true",)),
    "deceit": Arm("unified", "unified", paid("deceit")),
    "cold_start": Arm("cold_start", captions=CAPTIONER_MIX),
    "detailed": Arm("cold_start", "cold_start"),
    "longer": Arm("cold_start", "cold_start", captions=CAPTIONER_MIX, times=3),
    "in_context": Arm("cold_start", "cold_start", ("uae.cold_start.states=in_context",), CAPTIONER_MIX),
}
COLUMNS = {"reward": "reward", "drawn": "attributes", "words": "words", "full_detail": "full detail", "true": "true"}

_DECODER = (
    f"decoder/objective={RECOMMENDED}",
    "uae.u4g.guidance=1.0",
    "uae.u4g.captions.do_sample=true",
    "uae.train.save_contents=[model,diffusers]",
)


class Controls(Experiment):
    """What the gains of the stages are made of."""

    name = "controls"
    seeds = REPORTED_SEEDS[:3]
    arms = tuple(ARMS)
    #: 3 seeds x (4 x 174 s of G4U, 2 x 60 of U4G, 2 x 117 of both, 6 x 60 of the cold start, and the joint training),
    #: at 2.9 s and 1 s a step.
    assumed_minutes = 78.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        roots = {seed: out / f"seed{seed}_{START}" for seed in seeds}
        joint_trainings({root: JointConfig(seed=seed, steps=STARTS[START]) for seed, root in roots.items()}, jobs, say)
        for seed, root in roots.items():
            # Captions that leave G4U something to learn.
            write_dataset(root / UNDER, train=PAIRS, val=64, seed=seed, captions=CAPTIONER_MIX)
        runs = [planned(root, arm, seed, steps) for seed, root in roots.items() for arm in self.arms]
        rows = compare(runs, jobs, say, before=lambda run: measure(run, False), after=lambda run: measure(run, True))
        yield {"bases": {name: arm.base for name, arm in ARMS.items()}, "runs": rows}

    def bars(self, report: Report) -> list[Bar]:
        """None: a control has an effect or it has none, and either is an answer."""
        return []

    def table(self, report: Report) -> list[str]:
        """Figures of every arm, then the effect of every change: mean of the paired differences and its t interval."""
        rows = report["runs"]
        columns = shown(COLUMNS, (row["after"] for row in rows))
        start = {row["seed"]: row["before"] for row in rows}
        lines = [["before", *spread_cells(list(start.values()), columns)]]
        effects = []
        for arm in dict.fromkeys(row["arm"] for row in rows):
            mine, base = select(rows, arm=arm), select(rows, arm=report["bases"][arm])
            lines.append([f"`{arm}`", *spread_cells([row["after"] for row in mine], columns)])
            if base:
                values = [leads(by_seed(mine, key), by_seed(base, key)) for key in columns]
                cells = [f"{mean_and_spread(v)[0]:+.3f} ({between(t_interval(v), '+.3f')})" for v in values]
                effects.append([f"`{arm}` against `{report['bases'][arm]}`", *cells])
        head = ["arm", *columns.values()]
        return [*markdown_table(head, lines), "", *markdown_table(["effect", *head[1:]], effects)]

    def plot(self, out: Path, report: Report) -> None:
        """Training reward, a panel per arm and a line per seed; that of ``length`` and ``deceit`` is another one, and a
        cold start has none."""
        rows = [row for row in report["runs"] if row["curve"]]
        how = {"x": "step", "axis": self.axis, "size": (2.2 * len({row["arm"] for row in rows}), 2.6)}
        if rows:
            curves(out / "controls.png", rows, "arm", "seed", **how, sharey=True)


def planned(root: Path, arm: str, seed: int, steps: int) -> Run:
    """The training command of an arm."""
    how = ARMS[arm]
    own = _DECODER if how.stage in EXPLORING else ()
    turn = max(1, steps // 4)
    turns = tuple(f"uae.unified.{stage}_steps={turn}" for stage in ("g4u", "u4g")) if how.stage == "unified" else ()
    where, named, preset = root / "runs" / arm, {"arm": arm}, "scenes"
    if how.stage == "cold_start":
        preset = "scenes_cold_start"
        data = root / (UNDER if how.captions else "data")
        own = (f"data.train_files={data}/train.parquet", "uae.train.save_contents=[model,diffusers]")
    overrides = (*(() if how.stage == "cold_start" else (REWARD,)), *own, *turns, *QUIET, *how.words)
    return Run(named, f"uae_{how.stage}", root, where, seed, steps * how.times, overrides, preset)


def measure(run: Run, trained: bool) -> Mapping[str, float]:
    """Held-out figures of a run, before or after it; captions are read, as text alone, by what reads them in its
    training."""
    captioner, decoder = run.models(run.steps if trained else 0)
    follows = SYNCED in run.overrides or run.config == "uae_cold_start"
    reader = captioner if follows else run.root / "captioner"
    return evaluate(captioner, decoder, reader, n=SCENES, seed=run.seed, reward=similarity).metrics

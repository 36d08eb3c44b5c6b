# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Do both gain: what is run, measured and judged, and the map of its starts."""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.learning import grounding, mutual, runs
from benchmarks.learning import statistics as s
from benchmarks.learning.experiment import Report
from benchmarks.learning.u4g import STEEPNESS
from verl_uae.errors import ConfigError
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.evaluate import draw, evaluate, held_out_scenes
from verl_uae.scenes.grammar import ATTRIBUTES, parse
from verl_uae.scenes.render import POSITIONS, Scene, SceneObject, render_float

MUTUAL, MAP = mutual.Mutual(), grounding.Grounding()
COST = {"pictures": 64.0, "flops": 2e10}


# ---------------------------------------------------------------- what is run


@pytest.mark.parametrize("arm", mutual.ARMS)
def test_every_arm_is_a_valid_command_that_draws_as_many_pictures(
    arm: str, compose: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    from verl_uae.config.validate import validate

    run = mutual.planned(tmp_path, arm, mutual.HALF_GROUNDED, 10, 120)
    run = dataclasses.replace(run, root=tiny_models)
    words = run.words
    config = compose(*words[words.index(run.config) + 1 :], name=run.config)
    validate(config)
    uae = config.uae
    assert [(term.name, term.params.k) for term in uae.reward.terms] == [("pixel", STEEPNESS)]
    assert uae.decoder.guidance == uae.u4g.guidance == 1.0 and uae.decoder.num_steps == uae.u4g.num_steps == 8
    assert config.trainer.save_freq == 60 and config.trainer.total_training_steps == 120
    costs = run.costs()
    assert {cost["pictures"] for cost in costs.values()} == {64.0}
    assert all(cost["flops"] > 1e9 for cost in costs.values())
    if uae.stage != "g4u":
        objective = uae.u4g.objective
        assert (objective.name, objective.params.threshold, uae.train.optim.lr) == ("dppo", 1e-5, 3e-4)
        assert uae.checkpoint.export == "every"


def test_turns_are_eight_and_once_is_two(tmp_path: Path) -> None:
    def lengths(arm: str) -> list[str]:
        found = mutual.planned(tmp_path, arm, mutual.HALF_GROUNDED, 0, 120).overrides
        return [word for word in found if word.startswith("uae.unified.")]

    assert lengths("turns")[1:] == ["uae.unified.g4u_steps=15", "uae.unified.u4g_steps=15"]
    assert lengths("once")[1:] == ["uae.unified.g4u_steps=60", "uae.unified.u4g_steps=60"]
    assert lengths("turns")[0] == "uae.unified.first=g4u" and lengths("g4u") == []


def test_every_run_has_a_folder_and_the_ceiling_another_start(tmp_path: Path) -> None:
    planned = [
        mutual.planned(tmp_path, arm, start, seed, 120)
        for arm in mutual.ARMS
        for start in grounding.STARTS
        for seed in (10, 11)
    ]
    # The ceiling's start is its own, whatever the others start from.
    assert len({run.folder for run in planned}) == 2 * (len(grounding.STARTS) * (len(mutual.ARMS) - 1) + 1)
    assert len({run.folder for run in planned}) == len({run.name for run in planned})
    ceiling = mutual.planned(tmp_path, "ceiling", mutual.HALF_GROUNDED, 10, 120)
    assert mutual.joint_of(ceiling) == mutual.GROUNDED.joint(10) and ceiling.root != planned[0].root
    for start in grounding.STARTS:
        config = mutual.joint_of(mutual.planned(tmp_path, "g4u", start, 11, 120))
        assert config == start.joint(11) and config.steps == start.updates
        assert config.decoder_mix.own == {"size": start.eps} and config.captioner_mix.own == {"size": 0.3}


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_steps_that_have_no_half_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="--steps"):
        mutual.evaluated(steps)


def ended(made: list[str]) -> Callable[..., Iterator[tuple[runs.Run, float]]]:
    """In place of training commands: each logs two steps."""

    def executed(left: list[runs.Run], jobs: int, say: Callable[[str], None]) -> Iterator[tuple[runs.Run, float]]:
        for run in left:
            made.append(run.name)
            run.folder.mkdir(parents=True, exist_ok=True)
            steps = [
                {"step": n, "data": {"reward/score/mean": 0.5, "timing_s/step": 2.0, "unified/stage": float(n - 1)}}
                for n in (1, 2)
            ]
            (run.folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
            yield run, 9.0

    return executed


def test_what_a_folder_holds_a_result_of_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    joint: list[Path] = []
    monkeypatch.setattr(mutual, "executed", ended(made))
    monkeypatch.setattr(mutual, "joint_trainings", lambda folders, jobs, say: joint.extend(folders))
    monkeypatch.setattr(runs.Run, "costs", lambda run: {"g4u": COST, "u4g": {"pictures": 32.0, "flops": 1.0}})
    monkeypatch.setattr(mutual, "measure", lambda run, step: ({"reward": step / 10}, [step / 10] * 4))
    # Only unified runs: the fake log has both stages.
    planned = [
        mutual.planned(tmp_path, arm, mutual.HALF_GROUNDED, seed, 2) for seed in (0, 1) for arm in ("turns", "once")
    ]
    reports = list(mutual.measured(tmp_path, planned[:3], 1, lambda _: None))
    assert [len(rows) for rows in reports] == [1, 2, 3] and made == [run.name for run in planned[:3]]
    (*_, rows) = mutual.measured(tmp_path, planned, 1, lambda _: None)
    assert made[3:] == [planned[3].name] and [row["seed"] for row in rows] == [0, 0, 1, 1]
    assert joint[-1] == planned[3].root and len(joint) == 3
    points = rows[0]["points"]
    assert [point["step"] for point in points] == [0, 1, 2] and [p["reward"] for p in points] == [0.0, 0.1, 0.2]
    assert [point["pictures"] for point in points] == [0, 64, 96] and [p["seconds"] for p in points] == [0, 2, 4]
    assert rows[0]["rewards"][2] == [0.2] * 4 and "rewards" not in mutual.without_pictures(rows[0])
    # All of them are there: nothing runs, and the rows are whole.
    (again,) = mutual.measured(tmp_path, planned, 1, lambda _: None)
    assert again == rows and len(made) == 4
    # Other words are another run.
    other = dataclasses.replace(planned[0], overrides=(*planned[0].overrides, "uae.train.optim.lr=1e-4"))
    list(mutual.measured(tmp_path, [other], 1, lambda _: None))
    assert len(made) == 5


# ---------------------------------------------------------------- figures


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(mutual, "SCENES", 6)
    mutual.obedience.cache_clear()
    yield 6
    mutual.obedience.cache_clear()


def test_a_pair_is_measured_as_the_other_experiments_measure_it(tiny_models: Path, few: int) -> None:
    folders = (tiny_models / "captioner", tiny_models / "decoder")
    found, rewards = mutual.measure_pair(tiny_models, *folders, 3)
    reward = lambda drawn, source: pixel_similarity(drawn, source, STEEPNESS)  # noqa: E731
    expected = evaluate(*folders, folders[0], n=few, seed=3, reward=reward, scene_eval_items=1).metrics
    shared = expected.keys() & found.keys()
    assert {"reward", "drawn/size", "mentions/size", "true", "words"} <= shared
    assert {key: found[key] for key in shared} == pytest.approx({key: expected[key] for key in shared}, abs=1e-6)
    assert sum(rewards) / few == pytest.approx(found["reward"], abs=1e-4) and len(rewards) == few


def obedient(painter: Any, reader: Any, captions: list[str], *, seed: int) -> torch.Tensor:
    """In place of a decoder: draws what is said, and of what is not, always the same."""
    scenes = []
    for text in captions:
        parsed = parse(text)
        assert parsed is not None
        cells: list[SceneObject | None] = [None] * len(POSITIONS)
        for place, stated in enumerate(parsed.objects):
            where = place if stated.position is None else POSITIONS.index(stated.position)
            cells[where] = SceneObject(stated.shape, stated.colour or "red", stated.size or "small")
        scenes.append(Scene(parsed.background or "white", tuple(cells)))
    return render_float(scenes)


def test_grounding_is_what_the_word_alone_changes(tiny_models: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual, "draw", obedient)
    found = mutual.obedience(tiny_models, tiny_models / "decoder", 3)
    scenes = held_out_scenes(few, 3)
    objects = [[thing for _, thing in scene.objects] for scene in scenes]
    right = {
        "size": [statistics.mean(thing.size == "small" for thing in things) for things in objects],
        "colour": [statistics.mean(thing.colour == "red" for thing in things) for things in objects],
        "background": [float(scene.background == "white") for scene in scenes],
        "position": [float(all(cell is not None for cell in scene.cells[: len(scene.objects)])) for scene in scenes],
    }
    expected = {"full/reward": 1.0}
    for name in ATTRIBUTES:
        silent = statistics.mean(right[name])
        assert silent < 1.0
        expected |= {f"full/{name}": 1.0, f"silent/{name}": silent, f"grounding/{name}": 1.0 - silent}
    assert found == pytest.approx(expected)


def test_a_decoder_is_asked_once_for_all_arms_that_do_not_train_it(
    tiny_models: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = (tiny_models / "captioner", tiny_models / "decoder")
    first, _ = mutual.measure_pair(tiny_models, *folders, 3)
    calls: list[int] = []
    monkeypatch.setattr(mutual, "draw", lambda *given, seed: calls.append(seed) or draw(*given, seed=seed))
    again, _ = mutual.measure_pair(tiny_models, *folders, 3)
    assert again == first and calls == [3]


def test_each_stage_is_measured_with_what_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "trained_captioner", lambda folder, step: folder / f"captioner{step}")
    monkeypatch.setattr(mutual, "measure_pair", lambda root, captioner, decoder, seed: (captioner.name, decoder))
    found = {arm: mutual.planned(tmp_path, arm, mutual.HALF_GROUNDED, 0, 120) for arm in ("g4u", "u4g", "turns")}
    after = {arm: mutual.measure(run, 60) for arm, run in found.items()}
    assert [name for name, _ in after.values()] == ["captioner60", "captioner", "captioner60"]
    assert after["g4u"][1] == found["g4u"].root / "decoder"
    assert after["u4g"][1] == found["u4g"].folder / "global_step_60" / "decoder"
    assert {mutual.measure(run, 0) for run in found.values()} == {("captioner", found["g4u"].root / "decoder")}


# ---------------------------------------------------------------- bars, tables, plots


def row(arm: str, seed: int, start: str, points: list[dict[str, float]]) -> dict[str, Any]:
    made = [
        {"step": step, "pictures": 64.0 * step, "seconds": 2.0 * step, "flops": 2e10 * step, **point}
        for step, point in zip((0, 60, 120), points, strict=True)
    ]
    rewards = [[point["reward"] + 0.01 * n for n in range(8)] for point in points]
    return {"start": start, "arm": arm, "seed": seed, "curve": [], "cost": {}, "seconds": 9.0} | {
        "points": made,
        "rewards": rewards,
    }


def point(reward: float, *, grounded: float = 0.2, said: float = 0.3, true: float = 0.95) -> dict[str, float]:
    figures = dict.fromkeys(mutual.COLUMNS, 0.5)
    figures |= {"reward": reward, "true": true, "mentions/size": said, "full/reward": reward + 0.1}
    return figures | {"full/size": 0.5 + grounded, "silent/size": 0.5, "grounding/size": grounded}


#: Reward at the end, and its grounding.
ENDS = {
    "g4u": (0.80, 0.2),
    "u4g": (0.72, 0.24),
    "turns": (0.84, 0.28),
    "once": (0.85, 0.28),
    "joint": (0.83, 0.26),
    "ceiling": (0.9, 0.4),
}


def made_rows(start: str = mutual.HALF_GROUNDED.name, seeds: tuple[int, ...] = (10, 11, 12)) -> list[dict[str, Any]]:
    return [
        row(arm, seed, start, [point(0.67), point((0.67 + end) / 2), point(end + 0.002 * seed, grounded=grounded)])
        for seed in seeds
        for arm, (end, grounded) in ENDS.items()
    ]


def report() -> Report:
    rows = made_rows()
    found = {"leads": mutual.paired(rows, (60, 120)), "runs": [mutual.without_pictures(one) for one in rows]}
    return {"steps": 120, "made": {}, "blind": "size", **found}


def set_last(key: str, value: float, **labels: object) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        for found in s.select(report["runs"], **labels):
            found["points"][-1][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_last("reward", 0.81, arm="turns", seed=11), "turns: held-out reward above g4u alone"),
        (set_last("reward", 0.9, arm="u4g", seed=10), "turns: held-out reward above u4g alone"),
        (set_last("full/reward", 0.5, arm="turns", seed=12), "turns: reward of full captions"),
        (set_last("full/size", 0.5, arm="turns", seed=12), "turns: size of full captions"),
        (set_last("true", 0.8, arm="turns", seed=12), "turns: true captions"),
    ],
)
def test_a_bar_is_missed_by_what_it_names(change: Callable[[Report], None], words: str) -> None:
    made = report()
    assert len(MUTUAL.bars(made)) == 5 and all(bar.met for bar in MUTUAL.bars(made))
    change(made)
    (missed,) = [bar.claim for bar in MUTUAL.bars(made) if not bar.met]
    assert missed.startswith(words)


def test_bars_are_of_arms_that_are_there_on_all_seeds() -> None:
    made = report()
    made["runs"] = [found for found in made["runs"] if found["arm"] != "u4g"]
    assert [bar.claim for bar in MUTUAL.bars(made)] == [
        "turns: held-out reward above g4u alone, every seed",
        "turns: true captions at most 0.05 below g4u alone, every seed",
    ]
    made["runs"] = made["runs"][1:]
    assert MUTUAL.bars(made) == []


def test_leads_have_both_intervals() -> None:
    found = mutual.paired(made_rows(), (60, 120))
    (entry,) = s.select(found, arm="turns", over="g4u", step=120, figure="held-out reward")
    assert entry["by_seed"] == pytest.approx([0.04] * 3) and entry["t_interval"] == pytest.approx([0.04] * 2)
    assert entry["bootstrap"] == pytest.approx([0.04] * 2)
    assert len(found) == len(mutual.TOGETHER) * len(mutual.ALONE) * 2 * len(mutual.LEADS)
    # An arm that was not run has no lead.
    some = [found for found in made_rows() if found["arm"] in ("g4u", "turns")]
    assert {(entry["arm"], entry["over"]) for entry in mutual.paired(some, (60, 120))} == {("turns", "g4u")}


@pytest.mark.parametrize("axis", s.AXES)
def test_tables_and_plot_are_made_of_the_report(axis: str, tmp_path: Path) -> None:
    file = tmp_path / "mutual.json"
    file.write_text(json.dumps(report()))
    said: list[str] = []
    (tmp_path / "out").mkdir()
    assert all(bar.met for bar in MUTUAL.chosen(None, axis).show(tmp_path / "out", file, said.append))
    rows = said[0].splitlines()
    assert sum(line.startswith("| `turns` | 120 | 0.862 ± 0.002 |") for line in rows) == 1
    assert "| `turns` | `g4u` | held-out reward | 120 | +0.040 | +0.040 to +0.040 | +0.040 to +0.040 | +0.040 |" in rows
    assert len(MUTUAL.table({**report(), "leads": []})) == 2 + 3 * len(ENDS)
    (plot,) = (tmp_path / "out").iterdir()
    assert plot.name == "mutual.png" and plot.stat().st_size > 10_000


def mapped() -> Report:
    rows: list[dict[str, Any]] = []
    for start in grounding.STARTS:
        for found in made_rows(start.name):
            if found["arm"] in MAP.arms:
                rows.append(found)
                if start == grounding.BLIND_START:
                    found["points"][-1] |= {"grounding/size": 0.21, "mentions/size": 0.1}
    starts = {start.name: {"eps": start.eps, "updates": start.updates} for start in grounding.STARTS}
    return {"steps": 120, "made": {}, "blind": "size", "starts": starts, "runs": rows}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_last("reward", 0.8, arm="turns", start="size_0.75_600", seed=11), "size_0.75_600: turns above the better"),
        (set_last("grounding/size", 0.3, arm="u4g", start="size_0_600", seed=11), "size_0_600: grounding of size up"),
        (set_last("mentions/size", 0.4, arm="g4u", start="size_0_600", seed=11), "size_0_600: G4U alone unlearns"),
    ],
)
def test_a_bar_of_the_map_is_missed_by_what_it_names(change: Callable[[Report], None], words: str) -> None:
    made = copy.deepcopy(mapped())
    assert len(MAP.bars(made)) == 3 and all(bar.met for bar in MAP.bars(made))
    change(made)
    (missed,) = [bar.claim for bar in MAP.bars(made) if not bar.met]
    assert missed.startswith(words)


def test_the_map_has_a_row_and_a_colour_per_start(tmp_path: Path) -> None:
    made = mapped()
    # Of the last start one arm of one seed is not there yet, and of the one before nothing but an arm.
    made["runs"] = [
        found
        for found in made["runs"]
        if (found["start"], found["arm"], found["seed"]) != (grounding.STARTS[-1].name, "u4g", 10)
        and (found["start"] != grounding.STARTS[-2].name or found["arm"] == "g4u")
    ]
    table = MAP.table(made)
    assert len(table) == 2 + len(grounding.STARTS) - 1
    assert table[2].startswith("| 0 | 600 | 0.200 | 0.210 | 0.210 | 0.300 | 0.100 | 0.100 | +0.040 |")
    MAP.plot(tmp_path, made)
    assert (tmp_path / "grounding.png").stat().st_size > 10_000


def test_the_lead_is_over_the_better_of_both_alone() -> None:
    rows = made_rows(seeds=(10,))
    assert grounding.lead_by_seed(rows, 120) == pytest.approx({10: 0.04})
    set_last("reward", 0.9, arm="u4g")({"runs": rows})
    assert grounding.lead_by_seed(rows, 120) == pytest.approx({10: 0.86 - 0.9})
    assert grounding.changes(rows, "turns", 120, "grounding/size") == pytest.approx({10: 0.08})

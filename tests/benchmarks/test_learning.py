# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The learning experiments, on the results in the documentation: what is shown of them, and which bars are missed."""

from __future__ import annotations

import copy
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import spearmanr

from benchmarks.learning import __main__ as program
from benchmarks.learning import rewards, runs, stages, u4g
from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    beyond_seeds,
    every,
    lines,
    spread_note,
)
from benchmarks.learning.statistics import mean_and_spread, select
from tests.config.test_validate_policy import PRESETS
from verl_uae.errors import ConfigError, DataError
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.evaluate import Evaluation, held_out_scenes
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.render import render_float
from verl_uae.scenes.scene_eval import items

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
#: A page has their method, and no figures yet.
WITHOUT_RESULTS = {"controls", "emoji", "grounding", "mutual", "objectives", "rates"}
REPORTED = [name for name in program.EXPERIMENTS if name not in WITHOUT_RESULTS]


def results(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.json"


def missed(name: str, report: Report) -> list[str]:
    return [bar.claim for bar in program.EXPERIMENTS[name].bars(report) if not bar.met]


# ---------------------------------------------------------------- runner


class Count(Experiment):
    """A figure per seed, and nothing to train."""

    name = "count"

    def measure(self, out: Path, *, seeds: Sequence[int], **_: Any) -> Iterator[Report]:
        for number in range(len(seeds)):
            yield {"figures": list(seeds[: number + 1])}

    def bars(self, report: Report) -> list[Bar]:
        return [Bar("first", True, "1"), every("at least two", report["figures"], 2)]

    def table(self, report: Report) -> list[str]:
        return [f"{len(report['figures'])} seeds"]

    def plot(self, out: Path, report: Report) -> None:
        with open(out / "plots", "a", encoding="utf-8") as file:
            file.write(f"{len(report['figures'])}\n")


@pytest.mark.parametrize(("seed", "code"), [(4, 0), (1, 1)])
def test_a_run_writes_as_it_goes_and_says_whether_its_bars_are_met(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, code: int
) -> None:
    monkeypatch.setitem(program.EXPERIMENTS, "count", Count())
    threads, out = torch.get_num_threads(), tmp_path / "new"
    assert program.main(["count", "--seeds", "3", str(seed), "--steps", "7", "--out", str(out)]) == code
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["2 seeds", spread_note(2), "[met] first: 1"]
    assert said[3].startswith("[MISSED]" if code else "[met]")
    written = json.loads((out / "count.json").read_text())
    assert list(written) == ["steps", "made", "bars", "figures"] and written["steps"] == 7
    made = written["made"]
    assert made["seeds"] == [3, seed] and made["versions"]["torch"] == torch.__version__ and "commit" in made
    assert made["command"] == f"python -m benchmarks.learning count --seeds 3 {seed} --steps 7 --jobs 1"
    assert written["bars"]["first"] == {"met": True, "figure": "1"} and written["figures"] == [3, seed]
    assert (out / "plots").read_text() == "1\n2\n"
    # The file is shown like the run.
    shown = program.main(["count", "--results", str(out / "count.json"), "--out", str(tmp_path / "again")])
    torch.set_num_threads(threads)
    assert shown == code and capsys.readouterr().out.splitlines() == [said[0], *said[2:]]


def test_what_an_experiment_does_not_have_is_refused_by_its_option(tmp_path: Path) -> None:
    out = str(tmp_path / "new")
    for words, error in (
        (["g4u", "--arms", "turns"], "--arms: g4u has no arm turns; its arms: none"),
        (["mutual", "--arms", "u4g", "solo"], "--arms: mutual has no arm solo; its arms: g4u, u4g, turns"),
        (["long", "--axis", "flops"], "--axis: flops: the plot of long has step"),
        (["mutual", "--steps", "7"], "--steps: must be even"),
        (["all", "--seeds", "1"], "--seeds: is of one experiment"),
    ):
        where = [] if words[0] == "all" else ["--out", out]
        with pytest.raises(ConfigError, match=re.escape(error)):
            program.main([*words, *where])


def test_a_narrowed_experiment_is_another_one() -> None:
    whole = program.EXPERIMENTS["mutual"]
    some = whole.chosen(["turns", "g4u"], "flops")
    assert (some.arms, some.axis) == (("turns", "g4u"), "flops") and whole.axis == "step"
    assert whole.chosen(None, "step").arms == whole.arms


def test_the_plan_scales_measured_seconds_and_counts_what_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = tmp_path / "outputs" / "learn-unified" / "seed1" / "runs" / "g4u"
    ended.mkdir(parents=True)
    (ended / runs.FINISHED).touch()
    # Two seeds of 60 steps took 10 minutes, so five of 120 take 50.
    report = {"steps": 60, "runs": [{"seed": seed, "seconds": 300.0} for seed in (0, 1)]}
    (tmp_path / "unified.json").write_text(json.dumps(report))
    parts = {"joint training": 60.0, "start of verl": 20.0, "training command": 120.0}
    (tmp_path / "g4u.json").write_text(json.dumps({"steps": 60, "seeds": [{"seed": 0, "seconds": parts}]}))
    rows = [line.split(" | ") for line in program.plan(program.EXPERIMENTS.values(), tmp_path)[2:]]
    found = {row[0].removeprefix("| "): row[1:] for row in rows}
    assert set(found) == set(program.EXPERIMENTS)
    assert found["unified"] == ["10 11 12 13 14", "120", "50", "measured on 2 seeds", "1 |"]
    assert found["g4u"] == ["0 1 2", "60", "9", "measured on 1 seeds", "0 |"]
    assert found["stages"][2:] == ["–", "–", "0 |"] and found["mutual"][2:4] == ["155", "assumed"]


@pytest.mark.parametrize("axis", ["step", "seconds"])
def test_a_plot_has_the_axis_that_is_asked_for(axis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("benchmarks.learning.experiment.spent", lambda row, axis: seen.append(axis) or [1] * 60)
    program.EXPERIMENTS["unified"].chosen(None, axis).show(tmp_path, results("unified"), lambda _: None)
    assert set(seen) == {axis}


def test_a_file_that_does_not_say_what_steps_cost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--axis: pictures: the result file does not say"):
        program.EXPERIMENTS["unified"].chosen(None, "pictures").show(tmp_path, results("unified"), lambda _: None)


def test_every_experiment_has_a_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = (line.split(":")[0].split() for line in makefile.splitlines() if line.startswith("learn-"))
    assert targets == ["learn-all", *(f"learn-{name}" for name in program.EXPERIMENTS)]


def test_an_experiment_has_its_results_in_the_documentation_or_is_said_to_have_none() -> None:
    assert {name for name in program.EXPERIMENTS if not results(name).is_file()} == WITHOUT_RESULTS


@pytest.mark.parametrize("name", REPORTED)
def test_the_page_of_results_shows_what_the_result_file_holds(name: str, tmp_path: Path) -> None:
    experiment, said = program.EXPERIMENTS[name], []
    bars = experiment.show(tmp_path, results(name), said.append)
    rows = [line for text in said for line in text.splitlines() if line.startswith("|")]
    rows += [f"| {bar.claim} | {bar.figure} | {'yes' if bar.met else '**no**'} |" for bar in bars]
    page = PAGE.splitlines()
    assert len(rows) > 6 and not [row for row in rows if row not in page]
    (plot,) = tmp_path.iterdir()
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000


@pytest.mark.parametrize("name", program.EXPERIMENTS)
def test_a_file_of_another_experiment_is_refused_by_name(name: str, tmp_path: Path) -> None:
    for other in {*REPORTED, "u4g_ssim"} - {name}:
        with pytest.raises(DataError, match=rf"{other}\.json: is no result of {name}: "):
            program.EXPERIMENTS[name].show(tmp_path, results(other), pytest.fail)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- bars


def test_every_seed_must_reach_the_number() -> None:
    assert every("up", [0.03, 0.02], 0.02) == Bar("up", True, "smallest gain +0.020")
    assert every("up", [0.3, 0.019], 0.02) == Bar("up", False, "smallest gain +0.019")


def test_a_gain_counts_beyond_twice_its_spread_over_seeds() -> None:
    steady, shaky = [0.10, 0.11, 0.12], [0.00, 0.11, 0.22]
    assert 2 * statistics.stdev(steady) < 0.11 and not 2 * statistics.stdev(shaky) < 0.11
    assert beyond_seeds("up", steady).met and not beyond_seeds("up", shaky).met
    assert beyond_seeds("up", steady).figure == "mean gain +0.110, standard deviation over seeds 0.010"
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread_note(3).endswith("the 95 % t interval of a mean over them is ± 2.48 times that.")
    assert lines([Bar("a", True, "1"), Bar("b", False, "0")]) == ["[met] a: 1", "[MISSED] b: 0"]


def gain(rows: str, key: str, value: float, **labels: object) -> Callable[[Report], None]:
    """Changes the gain of a figure in the rows with these labels."""

    def change(report: Report) -> None:
        for row in select(report[rows], **labels):
            row["after"][key] = row["before"][key] + value

    return change


def exported(report: Report) -> None:
    report["exported"]["1"]["pixel_difference"] = 0.1


def share(key: str, value: float, **labels: object) -> Callable[[Report], None]:
    """Changes a seed's share of the crowds with these labels."""

    def change(report: Report) -> None:
        for entry in select(report["figures"], **labels):
            entry["by_seed"]["1"][key]["mean"] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("g4u", gain("seeds", "reward", 0.11, seed=1), "held-out reward up by at least 0.12"),
        ("g4u", gain("seeds", "words", 0.1, seed=1), "words per caption"),
        ("g4u", gain("seeds", "full_detail", 0.1, seed=1), "captions with full detail"),
        ("g4u", gain("seeds", "drawn", 0.0, seed=1), "drawn attribute accuracy"),
        ("g4u", gain("seeds", "true", -0.06, seed=1), "true captions"),
        ("u4g", gain("runs", "reward", 0.01, preset="mix_grpo", seed=1), "mix_grpo: held-out reward"),
        ("u4g", gain("runs", "reward", 0.025, preset="nft", start="room"), "nft: held-out reward up by at least 0.03"),
        ("u4g", gain("runs", "mse", 0.001, preset="dppo", seed=2), "dppo: error not higher"),
        ("u4g", gain("runs", "drawn", -0.1, preset="dppo", seed=2), "dppo: exact attribute accuracy"),
        ("u4g", gain("runs", "reward", -0.001, preset="nft", start="finished"), "nft: reward of a finished decoder"),
        ("rewards", gain("runs", "drawn", 0.0, reward="ssim", seed=0), "ssim: exact attribute accuracy"),
        ("unified", gain("runs", "reward", 0.0, variant="unified", seed=0), "above u4g alone"),
        ("stages", exported, "exported folder draws what training drew"),
        ("long", share("object", 0.8, variant="cut_inference", objects=16), "above cut at inference"),
        ("long", share("object", 0.99, variant="cut_trained", objects=2), "2 objects, nothing cut"),
        ("long", share("object_after", 0.45, variant="full", objects=12), "objects named after the cut"),
    ],
)
def test_a_bar_is_missed_by_what_it_names(name: str, change: Callable[[Report], None], words: str) -> None:
    report = json.loads(results(name).read_text(encoding="utf-8"))
    before = missed(name, report)
    change(report)
    (new,) = set(missed(name, report)) - set(before)
    assert words in new


def test_a_stage_must_raise_the_reward_of_every_seed() -> None:
    report = json.loads(results("stages").read_text(encoding="utf-8"))
    assert [claim.partition(",")[0] for claim in missed("stages", report)] == [
        "cold start: held-out reward up",
        "the end is better with a cold start than without",
    ]
    for row in report["results"]:
        order = ("start", "pretrain", "cold start", "g4u", "u4g").index(row["stage"])
        row["metrics"]["reward"] = order / 5 - 0.01 * (row["route"] == "no cold start" and order > 2)
    assert missed("stages", report) == []
    rows = {row["stage"]: row for row in select(report["results"], route="cold start", seed=1)}
    for stage, bar in (("start", 0), ("cold start", 2), ("g4u", 3)):
        changed = copy.deepcopy(report)
        changed["results"][report["results"].index(rows[stage])]["metrics"]["reward"] = 1.0
        assert stages.Stages().bars(report)[bar].claim in missed("stages", changed), stage


def test_taking_turns_beats_each_stage_alone_or_does_not() -> None:
    report = json.loads(results("unified").read_text(encoding="utf-8"))
    assert missed("unified", report) == ["unified: held-out reward above g4u alone after as many steps, every seed"]
    gain("runs", "reward", 0.6, variant="unified")(report)
    assert missed("unified", report) == []


def test_the_best_reward_is_named_and_must_lead_beyond_seeds() -> None:
    report = json.loads(results("rewards").read_text(encoding="utf-8"))
    gain("runs", "drawn", 0.6, reward="ssim")(report)
    clear = rewards.Rewards().bars(report)[-1]
    assert clear.met and clear.claim.startswith("ssim buys more attributes than pixel, beyond seeds")
    # The same reward leads, but on one seed.
    gain("runs", "drawn", 0.45, reward="ssim")(report)
    gain("runs", "drawn", 0.7, reward="ssim", seed=0)(report)
    close = rewards.Rewards().bars(report)[-1]
    assert not close.met and close.claim == clear.claim


# ---------------------------------------------------------------- what is run


def test_runs_that_have_finished_are_not_run_again_and_rows_hold_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that log a step in place of training ones; what is measured is how often something was."""
    logged = {"step": 1, "data": {"reward/score/mean": 0.5, "timing_s/step": 2.0}}
    write = f"import os; open(os.environ['VERL_FILE_LOGGER_PATH'], 'w').write({json.dumps(logged)!r})"
    monkeypatch.setattr(runs.Run, "costs", lambda run: {"g4u": {"pictures": 64.0}})
    monkeypatch.setattr(runs, "command", lambda *_, seed, **__: [sys.executable, "-c", f"{write}; assert {seed} != 3"])
    made = [
        runs.Run({"variant": name}, "uae_g4u", tmp_path, tmp_path / name, seed, 1)
        for seed, name in ((0, "one"), (1, "two"))
    ]
    left = tmp_path / "one" / "global_step_9"
    left.mkdir(parents=True)
    measured, said = [], []

    def measure(run: runs.Run) -> dict[str, int]:
        measured.append(run.name)
        return {"reward": len(measured)}

    rows = runs.compare(made, 2, said.append, before=measure, after=measure)
    assert not left.exists(), "of a run that was interrupted"
    # One start, since both have one root.
    assert len(measured) == 3 and [row["before"] for row in rows] == [{"reward": 1}] * 2
    assert [(row["variant"], row["seed"], row["after"]["reward"]) for row in rows] == [("one", 0, 2), ("two", 1, 3)]
    assert rows[0]["curve"] == [{"step": 1, "reward": 0.5, "seconds": 2.0}] and rows[0]["seconds"] > 0
    assert rows[0]["cost"] == {"g4u": {"pictures": 64.0}}
    again = runs.execute(made, 1, said.append)
    assert said[-2:] == ["one/seed0: there already", "two/seed1: there already"]
    assert list(again.values()) == [row["seconds"] for row in rows]
    with pytest.raises(SystemExit, match=r"bad/seed3: exit code 1, see .*train\.log"):
        runs.execute([runs.Run({"variant": "bad"}, "uae_g4u", tmp_path, tmp_path / "bad", 3, 1)], 1, said.append)


def test_one_term_is_rewarded_and_the_others_are_held_out() -> None:
    override = OverridesParser.create().parse_override(rewards.terms("ssim"))
    found = {entry["name"]: entry for entry in override.value()}
    assert set(found) == set(rewards.WATCHED)
    assert [name for name, entry in found.items() if entry.get("held_out")] == ["pixel", "efficientnet_lite0"]
    assert found["ssim"]["weight"] == 1.0 and found["efficientnet_lite0"]["params"] == {"image_size": 64}
    pooled = OverridesParser.create().parse_override(rewards.terms("pooled")).value()
    assert [entry.get("held_out", False) for entry in pooled] == [True, True, True, False]
    assert pooled[-1] == {
        "name": "efficientnet_lite0",
        "label": "pooled",
        "weight": 1.0,
        "params": {"image_size": 64, "mode": "pooled"},
    }


def test_term_means_are_those_of_the_terms() -> None:
    scenes = held_out_scenes(6, 0)
    images = render_float(scenes)
    drawings = images.roll(1, 0)
    means = rewards.term_means(Evaluation({}, scenes, [""] * 6, images, drawings))
    assert set(means) == {f"term/{name}" for name in rewards.WATCHED}
    assert means["term/pixel"] == pytest.approx(float(pixel_similarity(drawings, images).mean()), abs=1e-6)
    assert all(torch.isfinite(torch.tensor(list(means.values()))))


def test_measuring_compares_drawings_with_the_held_out_scenes(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(u4g, "SCENES", 6)
    monkeypatch.setattr(u4g, "items", lambda seed: items(seed, 1))
    metrics = u4g.measure(tiny_models, tiny_models / "decoder", 3)
    scenes = held_out_scenes(6, 3)
    image = render_float(scenes)
    drawing = u4g.drawings(tiny_models, tiny_models / "decoder", [caption(scene) for scene in scenes], 3)
    assert metrics["mse"] == pytest.approx(float((drawing - image).square().mean()))
    assert metrics["reward"] == pytest.approx(float(pixel_similarity(drawing, image, u4g.STEEPNESS).mean()))


def test_every_shipped_preset_is_run() -> None:
    assert set(PRESETS) == set(u4g.PRESETS)


def test_the_overrides_make_a_valid_config(compose, tiny_overrides: list[str]) -> None:
    from verl_uae.config.validate import validate

    for preset in u4g.PRESETS:
        config = compose(*tiny_overrides, *u4g.words(preset), name="uae_u4g")
        validate(config)
        assert config.uae.u4g.guidance == config.uae.decoder.guidance == 1.0
        assert [(term.name, term.params.k) for term in config.uae.reward.terms] == [("pixel", u4g.STEEPNESS)]


def test_the_run_that_is_gamed_rewards_ssim_and_watches_pixels(compose, tiny_overrides: list[str]) -> None:
    terms = compose(*tiny_overrides, *u4g.words(u4g.GAMED), name="uae_u4g").uae.reward.terms
    assert [(term.name, term.held_out) for term in terms] == [("ssim", False), ("pixel", True)]


def test_each_seed_has_both_routes_from_one_pre_training(tmp_path: Path) -> None:
    planned = stages.plan(tmp_path, 3, 60)
    assert set(planned) == {"pretrain", "cold start"} | {f"{s}/{r}" for s in ("g4u", "u4g") for r in stages.ROUTES}
    drawn = f"uae.decoder.path={planned['pretrain'].checkpoint}/decoder"
    assert drawn in planned["cold start"].overrides and drawn in planned["g4u/no cold start"].overrides
    assert f"uae.conditioner.path={planned['cold start'].checkpoint}/captioner" in planned["u4g/cold start"].overrides
    assert len({run.folder for run in planned.values()}) == len(planned)


def test_orders_are_compared_by_spearmans_correlation_within_groups() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, 40).astype(float)
    truth = values + rng.integers(0, 4, 40)
    groups = [str(number // 8) for number in range(40)]
    expected = np.mean([spearmanr(values[s : s + 8], truth[s : s + 8]).statistic for s in range(0, 40, 8)])
    assert rewards.rank_correlation(values.tolist(), truth.tolist(), groups) == pytest.approx(expected, abs=1e-12)
    # Differences between groups do not count.
    offset = [100.0 * int(group) for group in groups]
    assert rewards.rank_correlation((values + offset).tolist(), truth.tolist(), groups) == pytest.approx(
        expected, abs=1e-12
    )


def test_groups_without_an_order_are_left_out() -> None:
    values, truth = [1.0, 2.0, 3.0, 3.0], [1.0, 2.0, 5.0, 6.0]
    assert rewards.rank_correlation(values, truth, ["a", "a", "b", "b"]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no group has an order"):
        rewards.rank_correlation([1.0, 1.0], [1.0, 2.0], ["a", "a"])


def test_terms_are_compared_on_the_same_drawings(tiny_models: Path) -> None:
    terms = {"pixel": ("pixel", {}), "again": ("pixel", {}), "ssim": ("ssim", {})}
    found = rewards.orders(tiny_models, terms, 0, pictures=4)
    assert set(found) == set(terms) and found["pixel"] == found["again"] != found["ssim"]
    assert all(-1.0 <= value <= 1.0 for value in found.values())

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.composing import composed
from verl_uae import curves
from verl_uae.checkpoints.step import mark_complete, step_folder
from verl_uae.curves import HEIGHT, WIDTH, MetricsFiles, charts
from verl_uae.paths import override
from verl_uae.stages.common.run_page import RunPage

LOSS, NORM = "train/loss", "train/grad_norm"


def page(folder: Path, metrics: str | None = None, command: str | None = None) -> RunPage:
    words = ["hardware=cpu", "preset=scenes", f"trainer.default_local_dir={folder}"]
    return RunPage(composed(*words), metrics, command)


def log(path: Path, *found: tuple[int, dict[str, float]], tail: str = "") -> str:
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in found) + tail)
    return str(path)


def test_a_curve_goes_through_its_points() -> None:
    data = {
        2: {"reward/score/mean": 0.5, "other": 1.0},
        4: {"other": 2.0},
        6: {"reward/score/mean": 1.0},
    }
    data[10] = {"reward/score/mean": 0.0, "val-core/scenes/reward/mean@1": 0.25}
    validation, reward = charts(data)
    assert reward.title == "Reward of training" and reward.steps == (2, 10) and reward.values == (0.0, 1.0)
    (curve,) = reward.curves
    assert curve.points == f"0.0,{HEIGHT / 2:.1f} {WIDTH / 2:.1f},0.0 {WIDTH:.1f},{HEIGHT:.1f}" and curve.last == 0.0
    (single,) = validation.curves
    assert single.points == f"{WIDTH / 2:.1f},{HEIGHT / 2:.1f}" and single.name == "val-core/scenes/reward/mean@1"


def test_long_curves_keep_their_newest_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 10)
    (chart,) = charts({step: {"timing_s/step": float(step)} for step in range(1, 26)})
    (curve,) = chart.curves
    assert len(curve.points.split()) == 9 and curve.last == 25.0 and chart.steps == (1, 25)


def test_all_starts_of_a_run_are_one_curve(tmp_path: Path) -> None:
    log(
        tmp_path / "metrics_1.jsonl",
        (1, {LOSS: 1.0}),
        (2, {LOSS: 2.0, NORM: 2.0, "of no chart": 3.0}),
        (9, {LOSS: 9.0}),
    )
    second = log(tmp_path / "metrics_2.jsonl", (2, {LOSS: 20.0}), (3, {LOSS: 30.0}), tail='{"step": 4, "da')
    assert MetricsFiles(second).rows() == {1: {LOSS: 1.0}, 2: {LOSS: 20.0, NORM: 2.0}, 3: {LOSS: 30.0}}
    assert MetricsFiles(str(tmp_path / "none.jsonl")).rows(), "a file that is not there yet"
    anew = log(tmp_path / "a.jsonl", (1, {LOSS: 5.0}))
    assert MetricsFiles(anew).rows() == {1: {LOSS: 5.0}}, "a run that began again, whatever its file is called"


@pytest.mark.parametrize(
    "line",
    [
        '{"mine": 1}',
        "[1]",
        '{"step": null, "data": {}}',
        '{"step": 1, "data": 3}',
        '{"step": Infinity, "data": {"train/loss": 1}}',
        '{"step": 1e999, "data": {"train/loss": 1}}',
        "[" * 200_000,
        '{"step": 5, "data": [[1, 2]]}',
        '{"step": 3, "data": {"train/loss": 1' + "0" * 400 + "}}",
        '{"step": 1' + "0" * 400 + ', "data": {"train/loss": 1}}',
        '{"step": 3, "data": {"train/loss": 1.7e308, "val-core/x": NaN, "train/grad_norm": "2"}}',
    ],
)
def test_lines_of_somebody_else_are_no_points(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics_0.jsonl").write_text(f"{line}\n")
    own = log(tmp_path / "metrics_1.jsonl", (3, {LOSS: 1.0}))
    with open(own, "a") as file:
        file.write(f"{line}\n")
    found = MetricsFiles(own).rows()
    assert found == {3: {LOSS: 1.0}} and charts(found)


def test_a_growing_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics_1.jsonl"
    files = MetricsFiles(log(path, (1, {LOSS: 1.0}), tail='{"step": 2, "da'))
    assert files.rows() == {1: {LOSS: 1.0}}
    # Who reads the first line again, finds another value.
    path.write_bytes(path.read_bytes().replace(b"1.0", b"7.0") + b'ta": {"train/loss": 2.0}}\n')
    assert files.rows() == {1: {LOSS: 1.0}, 2: {LOSS: 2.0}}
    with path.open("a") as file:
        file.write('{"step": 3, "data": {"train/loss": 3.0}}\n')
    assert files.rows() == {1: {LOSS: 1.0}, 2: {LOSS: 2.0}, 3: {LOSS: 3.0}}
    log(path, (1, {LOSS: 9.0}))
    assert files.rows() == {1: {LOSS: 9.0}}, "written anew"


def test_the_page_says_what_the_run_is_and_links_what_it_has(tmp_path: Path) -> None:
    metrics = log(tmp_path / "metrics_1.jsonl", (1, {"train/loss": 1.0}))
    (tmp_path / "panels").mkdir()
    for name in ("step_000010", "step_by_step"):
        (tmp_path / "panels" / f"{name}.html").touch()
    step = step_folder(tmp_path, 10)
    step.mkdir()
    (step / "weights").touch()
    mark_complete(step, 10)
    made = page(tmp_path, metrics, "python -m x 'a=<b>'")
    made.update(now=True)
    text = (tmp_path / "index.html").read_text()
    assert '<a href="panels/step_000010.html">step 10</a>' in text and 'http-equiv="refresh"' in text
    assert "trains the captioner" in text and "seed 42" in text and "<td>saved steps</td><td>10</td>" in text
    assert "python -m x &#39;a=&lt;b&gt;&#39;" in text and "<polyline" in text and "<script" not in text
    made.update()
    (tmp_path / "index.html").unlink()
    made.update()
    assert not (tmp_path / "index.html").exists(), "at most one in half a minute"
    made.update(now=True, ended=True)
    text = (tmp_path / "index.html").read_text()
    assert "This run is over." in text and "refresh" not in text


def test_links_hold_for_folders_of_any_name(tmp_path: Path) -> None:
    panels = tmp_path / "a#b 100%25?"
    panels.mkdir()
    (panels / "step_000010.html").touch()
    words = ["hardware=cpu", "preset=scenes", override("trainer.default_local_dir", tmp_path / "run")]
    RunPage(composed(*words, override("uae.panel.dir", panels)), None, None).update(now=True)
    (address,) = re.findall('href="(.*?)"', (tmp_path / "run" / "index.html").read_text())
    found = urljoin((tmp_path / "run" / "index.html").as_uri(), address)
    assert found == (panels / "step_000010.html").as_uri()


def test_a_page_that_cannot_be_written_costs_the_page_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.html").mkdir()
    page(tmp_path).update(now=True)
    assert "the page of the run was not written" in caplog.text

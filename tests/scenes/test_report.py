# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import torch

from verl_uae.scenes.evaluate import Evaluation
from verl_uae.scenes.quickstart import COLUMNS, LOG_FILE, METRICS, write_report


def evaluation(figure: float, captions: list[str]) -> Evaluation:
    pictures = torch.zeros(len(captions), 3, 4, 4)
    rewards = torch.full((len(captions),), figure)
    return Evaluation(dict.fromkeys(COLUMNS, figure), [], captions, pictures, pictures, rewards)


def test_the_report_shows_figures_pictures_and_captions_as_they_are(tmp_path: Path) -> None:
    before, after = evaluation(0.25, ["a <b> & c"] * 12), evaluation(0.5, ["red"] * 12)
    run = tmp_path / "runs" / "g4u"
    run.mkdir(parents=True)
    (run / METRICS).write_text('{"step": 1, "data": {"reward/score/mean": 0.125}}\n')
    (run / LOG_FILE).touch()
    about = {"run": run, "facts": {"seed": 7}, "commands": {"Training command": "python -m x 'a=<b>'"}}
    text = write_report(tmp_path / "report.html", before, after, **about).read_text(encoding="utf-8")
    assert text.count("<td>0.250</td><td>0.500</td>") == len(COLUMNS)
    assert text.count("<img ") == 30 and text.count("a &lt;b&gt; &amp; c") == text.count("<b>after</b>: red") == 10
    assert text.count("<figcaption>before: reward 0.250") == text.count("<figcaption>after: reward 0.500") == 10
    assert "reward/score/mean: 0.125" in text and '<a href="runs/g4u/train.log">its log</a>' in text
    assert "page of the run" not in text, "it is not there"
    assert "<td>seed</td><td>7</td>" in text and "python -m x &#39;a=&lt;b&gt;&#39;" in text and "verl_uae 0." in text

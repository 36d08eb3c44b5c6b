# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import torch

from verl_uae.scenes.evaluate import Evaluation
from verl_uae.scenes.quickstart import COLUMNS, write_report


def evaluation(figure: float, captions: list[str]) -> Evaluation:
    pictures = torch.zeros(len(captions), 3, 4, 4)
    return Evaluation(dict.fromkeys(COLUMNS, figure), [], captions, pictures, pictures)


def test_the_report_shows_figures_pictures_and_captions_as_they_are(tmp_path: Path) -> None:
    before, after = evaluation(0.25, ["a <b> & c"] * 12), evaluation(0.5, ["red"] * 12)
    text = write_report(tmp_path / "report.html", before, after).read_text(encoding="utf-8")
    assert text.count("<td>0.250</td><td>0.500</td>") == len(COLUMNS)
    assert text.count("<img ") == 30 and text.count("a &lt;b&gt; &amp; c") == text.count("<td>red</td>") == 10

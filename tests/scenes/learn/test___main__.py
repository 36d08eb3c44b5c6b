# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from verl_uae.scenes.learn import __main__ as program
from verl_uae.scenes.learn.bars import Bar


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_all_bars_are_met(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], met: bool, code: int
) -> None:
    asked = {}

    def learn(out: Path, **settings: object) -> list[Bar]:
        asked.update(settings, out=out)
        return [Bar("first", True, "1"), Bar("second", met, "2")]

    monkeypatch.setitem(program.STAGES, "u4g", learn)
    threads = torch.get_num_threads()
    assert program.main(["u4g", "--seeds", "4", "--steps", "7", "--out", str(tmp_path / "new")]) == code
    torch.set_num_threads(threads)
    assert asked == {"out": tmp_path / "new", "seeds": [4], "steps": 7, "jobs": 1, "say": program.say}
    assert "[met] first: 1" in capsys.readouterr().out


def test_every_stage_has_a_make_target() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    (targets,) = (line.split(":")[0].split() for line in makefile.splitlines() if line.startswith("learn-"))
    assert targets == [f"learn-{stage}" for stage in program.STAGES]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import HTMLResponse

from tests.bench.judge.server import Judges, Shown, completion
from tests.bench.test_report import CAPTION as ATTACK
from tests.bench.test_report import Page
from tests.pipeline.conftest import picture
from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, Contest, read_contest
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.prompt import load_prompt
from verl_uae.bench.judge.protocol import Judged
from verl_uae.bench.judge.report import rate_text, write_report
from verl_uae.bench.judge.result import result


def write(path: Path, judged: Judged, count: int = 6) -> Page:
    content = result(judged, load_prompt(None, judged.contest.mode), side=1024, resamples=50)
    write_report(path, content, judged, count)
    return Page(path)


def test_captions_verdicts_and_rates(
    contest: Contest, judge: Callable[..., Judge], decide: Callable[..., Judged], tmp_path: Path
) -> None:
    judged = decide(contest, [judge("longer"), judge("always-a"), judge("longer", parameters={"seed": 1})][:2])
    page = write(tmp_path / "judge.html", judged)
    assert "Incomplete" not in page.text and "kappa" in page.text and "Mean over judges: 54.17" in page.text
    # Win against inconsistent is no majority: all six pictures are of one kind.
    assert "No majority, or a tie: 6" in page.text and "Most judges" not in page.text
    assert "longer: win (in order, swapped: A, B)" in page.text
    assert "always-a: inconsistent (in order, swapped: A, A)" in page.text
    assert "58.3% = 3.5/6" in page.text and "A is so and B is so." in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 6
    alone = replace(judged, judges=judged.judges[:1], outcomes={"longer": judged.outcomes["longer"]})
    page = write(tmp_path / "alone.html", alone, count=1)
    assert "Most judges prefer one: 3" in page.text and "Most judges prefer two: 2" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3 and "kappa" not in page.text
    biased = replace(judged, judges=judged.judges[1:], outcomes={"always-a": judged.outcomes["always-a"]})
    assert "Every judge follows the position: 6" in write(tmp_path / "biased.html", biased).text


def test_nothing_that_a_caption_or_a_judge_writes_is_markup(
    contest: Contest, judge: Callable[..., Judge], server: Judges, decide: Callable[..., Judged], tmp_path: Path
) -> None:
    def attack(shown: Shown, count: int) -> Any:
        if shown.caption("A").startswith("5"):
            return HTMLResponse(ATTACK, 400)
        return completion(ATTACK) if shown.caption("A").startswith("s") else shown.says("A", before=ATTACK)

    server.behaviours["attack"] = attack
    items = tuple(replace(item, first=f"{index} {ATTACK}") for index, item in enumerate(contest.items))
    named = replace(contest, items=items, names=(f"a{ATTACK}", "b"))
    page = write(tmp_path / "judge.html", decide(named, [judge("attack")]))
    assert page.text.count(ATTACK) > 12 and "Not judged by all: 6" in page.text and "Incomplete" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "not end with a verdict" in page.text and page.text.count(f"HTTP 400: {ATTACK}") == 2


def test_three_pictures_of_a_reconstruction(
    world: Path, judge: Callable[..., Judge], decide: Callable[..., Judged], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (world / name).mkdir()
        for index in range(6):
            picture(index if name == "a" else index + 50).save(world / name / f"recon_{index}.png")
    contest = read_contest(world / "images", str(world / "a"), str(world / "b"), RECONSTRUCTION)
    judged = decide(contest, [judge("brighter")])
    (world / "b" / "recon_0.png").unlink()
    page = write(tmp_path / "judge.html", judged)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 17 and all(entry["src"].startswith("data:image/jpeg;base64,") for entry in images)
    assert {entry["alt"] for entry in images} == {"original", "a", "b"} and "Words per caption" not in page.text


def test_a_rate_says_its_fraction() -> None:
    rate = {"value": 62.5, "numerator": 5.0, "denominator": 8.0, "interval": [25.0, 100.0]}
    assert rate_text(rate) == "62.5% = 5/8 (25.0 to 100.0)"
    assert rate_text({**rate, "value": None}) == rate_text(None) == ""


@pytest.mark.usefixtures("server")
def test_the_prompt_is_shown(
    contest: Contest, judge: Callable[..., Judge], decide: Callable[..., Judged], tmp_path: Path
) -> None:
    page = write(tmp_path / "judge.html", decide(contest, [judge("always-tie")]))
    assert load_prompt(None, CAPTION).text.strip() in page.text

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.responses import HTMLResponse

from tests.bench.judge.conftest import LENGTHS, write_captions
from tests.bench.judge.server import Judges, Shown, completion, error, longer
from tests.bench.test_unified import CAPTION as ATTACK
from tests.bench.test_unified import Page
from tests.chain.conftest import picture
from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, Contest, load_prompt, read_contest
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.protocol import Judged
from verl_uae.bench.judge.result import judge_result, mean_words, rate_text, write_report
from verl_uae.bench.results import Failure, read_json, resampled_means
from verl_uae.bench.unified import reference_digest
from verl_uae.files import write_json


@pytest.fixture
def judged(contest: Contest, judge: Callable[..., Judge], decide: Callable[..., Judged]) -> Judged:
    """Length, position and indifference: W W W L L T, six inconsistent, six ties."""
    return decide(contest, [judge("longer"), judge("always-a"), judge("always-tie")])


def test_a_complete_result(judged: Judged, tmp_path: Path, server: Judges) -> None:
    prompt = load_prompt(None, CAPTION)
    content = judge_result(judged, prompt, side=1024, seed=3, resamples=400)
    assert content["complete"] and content["failures"] == [] and content["partial_overall"] is None
    rates = [100 * 3.5 / 6, 50.0, 50.0]
    assert [entry["win_rate"]["value"] for entry in content["judges"].values()] == pytest.approx(rates)
    assert content["overall"] == pytest.approx(sum(rates) / 3)
    values_N1 = np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [0.5]])
    means = 100 * (resampled_means(values_N1, 3, 400)[:, 0] + 0.5 + 0.5) / 3
    assert content["overall_interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist())
    # One judge of three decides nothing.
    assert content["majority"]["ties"] == 6 and "inconsistent" not in content["majority"]
    cohen = content["agreement"]["cohen"]
    assert set(cohen) == {"longer and always-a", "longer and always-tie", "always-a and always-tie"}
    assert cohen["longer and always-a"]["agreement"] == pytest.approx(1 / 6)
    assert cohen["longer and always-a"]["kappa"] == pytest.approx(0.0)
    assert cohen["always-a and always-tie"]["kappa"] is None
    # Votes of all: 3 wins, 2 losses, 13 ties; per picture 1/3 of the pairs of judges agree, for the last all.
    chance = (3 / 18) ** 2 + (2 / 18) ** 2 + (13 / 18) ** 2
    assert content["agreement"]["fleiss"]["kappa"] == pytest.approx(((5 / 3 + 1) / 6 - chance) / (1 - chance))
    assert content["candidates"] == {"first": "one", "second": "two"} and content["mode"] == "caption"
    assert content["references"] == reference_digest(item.source.digest for item in judged.contest.comparisons)
    assert content["prompt"]["sha256"] == prompt.digest and content["prompt"]["name"] == "caption.v1"
    assert content["sent"] == {"requests": 36, "from_cache": 0, "damaged_cache_lines": 0, "side": 1024}
    pair = content["pairs"][0]
    assert pair["first"] == {"caption": "f" * 9, "words": 1} and pair["reference"] == "0.png"
    assert pair["verdicts"]["longer"] == {"outcome": "win", "choices": ["A", "B"], "reasons": [None, None]}
    assert pair["verdicts"]["always-a"] == {"outcome": "inconsistent", "choices": ["A", "A"], "reasons": [None, None]}
    entry = content["judges"]["longer"]
    assert entry["scores"]["fluency"] == {"first": 5.0, "second": 5.0, "answers": 12} and len(entry["scores"]) == 3
    assert entry["base_url"] == server.base_url and entry["model"] == "longer" and entry["max_tokens"] == 2048
    assert mean_words(content) == [1.0, 1.0]
    write_json(tmp_path / "judge.json", content)
    assert read_json(tmp_path / "judge.json") == json.loads(json.dumps(content))


def test_a_result_that_lacks_an_answer_has_no_overall_rate(
    contest: Contest, judge: Callable[..., Judge], decide: Callable[..., Judged], server: Judges
) -> None:
    def refuses(shown: Shown, count: int) -> object:
        return error(400, "not this one") if shown.caption("B") == "f" * LENGTHS[3][0] else longer(shown, count)

    server.behaviours["picky"] = refuses  # type: ignore[assignment]
    judged = decide(contest, [judge("longer"), judge("picky")])
    content = judge_result(judged, load_prompt(None, CAPTION), side=1024, resamples=50)
    assert not content["complete"] and content["overall"] is None and content["overall_interval"] is None
    assert [failure["what"] for failure in content["failures"]] == ["picky: 3.png (swapped)", "picky: 4.png (swapped)"]
    assert all("not this one" in failure["reason"] for failure in content["failures"])
    assert content["judges"]["longer"]["complete"] and not content["judges"]["picky"]["complete"]
    assert content["judges"]["picky"]["win_rate"]["denominator"] == 4
    assert content["partial_overall"] == pytest.approx((100 * 3.5 / 6 + 100 * 3.5 / 4) / 2)
    assert content["majority"]["judged"] == 4 and content["majority"]["failed"] == 2
    assert content["agreement"]["cohen"]["longer and picky"] == {"pictures": 4, "agreement": 1.0, "kappa": 1.0}
    entry = content["pairs"][3]["verdicts"]["picky"]
    assert entry["outcome"] == "failed" and entry["choices"] == ["B", None] and "not this one" in entry["reasons"][1]


def test_a_judge_without_a_verdict_has_no_rate(
    world: Path, judge: Callable[..., Judge], decide: Callable[..., Judged], server: Judges
) -> None:
    """Identical candidates are ties without being asked about, which would be 50 % of nothing."""
    server.behaviours["away"] = lambda shown, count: error(400, "away")  # type: ignore[assignment]
    same = write_captions(world / "same.jsonl", ["f" * LENGTHS[0][0], *("s" * second for _, second in LENGTHS[1:])])
    contest = read_contest(world / "images", f"one={world / 'first.jsonl'}", f"two={same}", CAPTION)
    content = judge_result(decide(contest, [judge("away")]), load_prompt(None, CAPTION), side=1024, resamples=50)
    entry = content["judges"]["away"]
    assert (entry["identical"], entry["ties"], entry["failed"]) == (1, 1, 5)
    assert entry["win_rate"]["value"] is entry["win_rate_without_ties"]["value"] is None
    assert content["overall"] is content["partial_overall"] is None


def test_pictures_that_were_not_compared_make_it_incomplete(
    contest: Contest, judge: Callable[..., Judge], decide: Callable[..., Judged]
) -> None:
    missing = replace(contest, failures=(Failure("one: 9.png", "no caption"),), pictures=7)
    content = judge_result(decide(missing, [judge("longer")]), load_prompt(None, CAPTION), side=1024, resamples=50)
    assert not content["complete"] and content["overall"] is None and content["pictures"] == 7
    assert content["failures"] == [{"what": "one: 9.png", "reason": "no caption"}]
    assert not content["judges"]["longer"]["complete"] and content["judges"]["longer"]["failed"] == 0
    assert content["agreement"] == {"cohen": {}, "fleiss": None}


def write(path: Path, judged: Judged, count: int = 6) -> Page:
    content = judge_result(judged, load_prompt(None, judged.contest.mode), side=1024, resamples=50)
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
    items = tuple(replace(item, first=f"{index} {ATTACK}") for index, item in enumerate(contest.comparisons))
    named = replace(contest, comparisons=items, names=(f"a{ATTACK}", "b"))
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
    assert len(images) == 17 and all(entry["src"].startswith("data:image/png;base64,") for entry in images)
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

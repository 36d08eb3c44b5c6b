# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.judge.server import Judges, longer
from verl_uae.bench.results import read_json
from verl_uae.cli import main


def bench(world: Path, *words: object) -> int:
    candidates = [f"one={world / 'first.jsonl'}", f"two={world / 'second.jsonl'}"]
    return main(["bench", "judge", str(world / "images"), *candidates, "--out", str(world / "out"), *map(str, words)])


def test_a_complete_run(world: Path, server: Judges, capsys: pytest.CaptureFixture) -> None:
    words = [f"--judge={model}={server.base_url}#{model}" for model in ("longer", "always-a", "always-tie")]
    assert bench(world, *words, "--seed", 4) == 0
    content = read_json(world / "out" / "judge.json")
    assert content["complete"] and list(content["judges"]) == ["longer", "always-a", "always-tie"]
    assert content["seeds"]["bootstrap"] == 4
    printed = capsys.readouterr()
    assert "longer: 3 wins, 2 losses, 1 ties, 0 inconsistent, 0 failed" in printed.out
    assert "win rate 58.3% = 3.5/6" in printed.out and "without ties 60.0% = 3/5" in printed.out
    assert f"overall: {content['overall']:.2f}" in printed.out and "judging: 18 of 18" in printed.err
    assert "No majority" in (world / "out" / "judge.html").read_text()
    assert len((world / "out" / "answers.jsonl").read_text().splitlines()) == 36
    # Again: nothing is asked, and the result is the same but for where the answers came from.
    assert bench(world, *words, "--seed", 4) == 0
    again = read_json(world / "out" / "judge.json")
    assert again.pop("sent")["requests"] == 0 and content.pop("sent")["requests"] == 36
    assert again == content and sum(server.counts.values()) == 36


def test_a_dry_run_asks_nobody(world: Path, server: Judges, capsys: pytest.CaptureFixture) -> None:
    words = [f"--judge=a={server.base_url}#longer", f"--judge=b={server.base_url}#always-a"]
    # No token is needed to count.
    assert bench(world, *words, "--token-env", "a=NO_SUCH_VARIABLE", "--dry-run") == 0
    assert "24 requests: 6 pictures, 0 of them with identical candidates, 2 orders, 2 judges" in capsys.readouterr().out
    assert not server.asked and not (world / "out" / "judge.json").exists()
    assert bench(world, *words, "--max-requests", 7) == 1
    capsys.readouterr()
    assert bench(world, *words, "--dry-run", "--retries", 1) == 0
    printed = capsys.readouterr().out
    assert "17 requests" in printed and "7 answers from before" in printed and "at most 34 with" in printed


def test_an_incomplete_run_is_exit_code_1_and_says_why(
    world: Path, server: Judges, capsys: pytest.CaptureFixture
) -> None:
    (world / "images" / "5.png").write_bytes(b"no picture")
    assert bench(world, f"--judge=longer={server.base_url}#longer", "--max-requests", 4, "--concurrency", 1) == 1
    printed = capsys.readouterr().out
    assert "overall: none, 7 failures" in printed and "not an image" in printed
    assert "longer: 2.png (in order): not asked: the budget of requests is spent" in printed


def test_judges_of_a_file_with_token_and_parameters_and_a_prompt(
    world: Path, server: Judges, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "sk-very-secret")
    entry = {"name": "mine", "base_url": server.base_url, "model": "longer", "token_env": "JUDGE_TOKEN"}
    (world / "judges.yaml").write_text(json.dumps({"judges": [{**entry, "parameters": {"temperature": None}}]}))
    server.behaviours["longer"] = longer
    assert bench(world, "--judges", world / "judges.yaml", "--prompt", "caption_blind") == 0
    asked = server.asked[0]
    assert asked.headers["authorization"] == "Bearer sk-very-secret" and "temperature" not in asked.body
    assert not asked.pictures and isinstance(asked.body["messages"][0]["content"], str)
    printed = capsys.readouterr()
    written = "".join(path.read_text() for path in (world / "out").iterdir())
    assert "sk-very-secret" not in written + printed.out + printed.err
    assert read_json(world / "out" / "judge.json")["prompt"]["name"] == "caption_blind.v1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--judge: give at least one"),
        (["--judge", "a=b"], "--judge: must be NAME="),
        (["--judge", "a=http://127.0.0.1:1#m", "--judge", "a=http://127.0.0.1:1#n"], "two judges are named"),
        (["--judge", "a=http://127.0.0.1:1#m", "--token-env", "a=NO_SUCH_VARIABLE"], "holds no token"),
        (["--judge", "a=http://127.0.0.1:1#m", "--prompt", "none.txt"], "--prompt"),
        (["--judge", "a=http://127.0.0.1:1#m", "--mode", "reconstruction"], "is not a folder"),
        (["--judge", "a=http://127.0.0.1:1#m", "--concurrency", "0"], "--concurrency: must be at least 1"),
        (["--judge", "a=http://127.0.0.1:1#m", "--timeout", "nan"], "--timeout: must be positive"),
        (["--judge", "a=http://127.0.0.1:1#m", "--max-requests", "-1"], "--max-requests"),
        (["--judge", "a=http://127.0.0.1:1#m", "--out", "images/out"], "--out: images/out lies in"),
        (["--judges", "none.yaml"], "--judges: cannot read"),
    ],
    ids=range(11),
)
def test_errors_are_one_line(
    words: list[str], message: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(world)
    assert bench(world, *words) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("verl-uae: ") and message in error[0]

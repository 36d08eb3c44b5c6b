# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from verl_uae.bench.judge.cache import AnswerCache, request_key
from verl_uae.bench.judge.contest import Picture
from verl_uae.bench.judge.judges import Judge
from verl_uae.errors import ConfigError

JUDGE = Judge("name", "http://host/v1", "model")
PARTS = ("look: ", Picture(Path("a.png"), "digest a"), " and ", Picture(Path("b.png"), "digest b"))


def test_a_key_is_all_that_an_answer_depends_on() -> None:
    """Every change is another key, besides names that nobody is told."""
    key = request_key(JUDGE, PARTS, 64)
    others = [
        request_key(replace(JUDGE, model="other"), PARTS, 64),
        request_key(replace(JUDGE, base_url="http://other/v1"), PARTS, 64),
        request_key(replace(JUDGE, parameters={"temperature": 1}), PARTS, 64),
        request_key(replace(JUDGE, parameters={"seed": None}), PARTS, 64),
        request_key(JUDGE, PARTS, 65),
        request_key(JUDGE, PARTS[::-1], 64),
        request_key(JUDGE, ("look:", *PARTS[1:]), 64),
        request_key(JUDGE, (*PARTS[:3], Picture(Path("b.png"), "digest c")), 64),
    ]
    assert len({key, *others}) == 9
    assert request_key(replace(JUDGE, name="n", token_env="T"), PARTS, 64) == key
    assert request_key(JUDGE, (*PARTS[:3], Picture(Path("moved.png"), "digest b")), 64) == key


def test_answers_are_appended_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for index in range(3):
        with AnswerCache(path) as cache:
            assert list(cache.answers) == [f"key {n}" for n in range(index)] and cache.damaged == 0
            cache.add(f"key {index}", {"choices": [f"caf\u00e9\u2028{index}"]}, {"judge": "j", "swapped": False})
    before = path.read_bytes()
    with AnswerCache(path) as cache:
        assert cache.answers["key 1"] == {"choices": ["caf\u00e9\u20281"]}
        cache.add("key 1", {"choices": ["later"]}, {})
        # The first one counts.
        assert cache.answers["key 1"] == {"choices": ["caf\u00e9\u20281"]}
    assert path.read_bytes().startswith(before)
    with AnswerCache(path) as cache:
        assert cache.answers["key 1"] == {"choices": ["caf\u00e9\u20281"]}
    assert json.loads(before.splitlines()[0]) == {
        "key": "key 0", "judge": "j", "swapped": False, "answer": {"choices": ["caf\u00e9\u20280"]}
    }  # fmt: skip


def test_lines_that_are_no_entry_cost_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [
        b'{"key": "a", "answer": {"x": 1}}',
        b"[]",
        b'{"key": 3, "answer": {}}',
        b'{"key": "b", "answer": 1}',
        b"\xff",
    ]
    path.write_bytes(b"\n".join([*lines, b'{"key": "c", "answer": {"y"']))
    with AnswerCache(path) as cache:
        assert cache.answers == {"a": {"x": 1}} and cache.damaged == 5
        cache.add("d", {"z": 1}, {})
    with AnswerCache(path) as cache:
        assert cache.answers == {"a": {"x": 1}, "d": {"z": 1}}


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerCache(path), pytest.raises(ConfigError, match="in use"), AnswerCache(path):
        pass
    with AnswerCache(path):
        pass
    with pytest.raises(ConfigError, match="cannot open"), AnswerCache(tmp_path / "none" / "answers.jsonl"):
        pass

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.reward import TermSpec
from verl_uae.reward.remote.service import parse_terms, read_terms

CUSTOM = "def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs): return 1.0\n"


def test_entries_are_those_of_a_run() -> None:
    terms = parse_terms(
        [
            "clip",
            {"name": "ssim", "weight": 0.2, "label": "s", "floor": 0.1, "normalize": "none"},
            {"name": "pixel", "held_out": True, "params": {"scales": [4]}},
        ],
        "terms",
    )
    assert terms.summed == (
        TermSpec(name="clip", key="terms[0]"),
        TermSpec(name="ssim", weight=0.2, label="s", floor=0.1, key="terms[1]"),
    )
    assert terms.held_out == (TermSpec(name="pixel", weight=0.0, params={"scales": [4]}, key="terms[2]"),)


@pytest.mark.parametrize(
    "text",
    ["- pixel\n- {name: ssim}", "terms: [pixel, {name: ssim}]", "uae:\n  reward:\n    terms: [{name: pixel}, ssim]\n"],
)
def test_a_file_is_read_in_each_of_its_forms_and_the_command_line_comes_after(tmp_path: Path, text: str) -> None:
    (tmp_path / "terms.yaml").write_text(text)
    terms = read_terms(["psnr", "[{name: pixel, label: two}, repetition]"], tmp_path / "terms.yaml")
    assert [spec.name for spec in terms.summed] == ["pixel", "ssim", "psnr", "pixel", "repetition"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, r"terms\[0\]: must be a name"),
        ({"weight": 1}, r"terms\[0\]: must be a name"),
        ({"name": "pixel", "wieght": 1}, "unknown wieght; known: name, weight"),
        ({"name": "pixel", "weight": "a lot"}, r"terms\[0\]\.weight"),
        ({"name": "pixel", "weight": float("inf")}, r"terms\[0\]\.weight"),
        ({"name": "pixel", "held_out": "yes"}, r"terms\[0\]\.held_out"),
        ({"name": "pixel", "label": 5}, r"terms\[0\]\.label"),
        ({"name": "pixel", "floor": "low"}, r"terms\[0\]\.floor"),
        ({"name": "pixel", "params": [1]}, r"terms\[0\]\.params"),
        ({"name": "pixel", "params": {"k": float("nan")}}, r"terms\[0\]\.params: params\.k is nan"),
        ({"name": "pixel", "normalize": "running"}, "set it on the run's remote term"),
        ({"name": "preference"}, r"terms\[0\]\.name: preference compares the members of a group"),
    ],
)
def test_entries_that_do_not_fit_are_named(entry: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_terms(entry, "terms")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "terms.yaml"
    with pytest.raises(ConfigError, match="cannot read"):
        read_terms([], file)
    for text, message in (("a: [", "not YAML"), ("uae: {reward: {}}", "must hold a list"), ("5", "must hold a list")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_terms([], file)
    with pytest.raises(ConfigError, match="give at least one term"):
        read_terms([], None)
    with pytest.raises(ConfigError, match="not YAML"):
        read_terms(["!!python/object/apply:os.system [true]"], None)


def test_the_fingerprint_is_of_what_the_reward_is(tmp_path: Path) -> None:
    file, copy = tmp_path / "reward.py", tmp_path / "copy.py"
    file.write_text(CUSTOM)
    copy.write_text(CUSTOM)
    entry = {"name": "custom", "weight": 0.5, "params": {"path": str(file), "reward_kwargs": {"secret": "x"}}}

    def fingerprint(**changes: object) -> str:
        terms = parse_terms([{**entry, **changes}, "pixel"], "terms")
        return terms.fingerprint(terms.files())

    first = fingerprint()
    assert fingerprint(params={**entry["params"], "path": str(copy)}) == first
    others = [
        fingerprint(weight=0.6),
        fingerprint(floor=0.0),
        fingerprint(label="other"),
        fingerprint(held_out=True),
        fingerprint(params={**entry["params"], "reward_kwargs": {"secret": "y"}}),
    ]
    file.write_text(CUSTOM + "# changed\n")
    others.append(fingerprint())
    assert len({first, *others}) == 7
    terms = parse_terms(entry, "terms")
    assert terms.files() == {
        "custom": {"path": str(file.resolve()), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    }
    assert "secret" not in str(terms.describe()) and terms.describe()[0]["label"] == "custom"

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import math
import random
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_uae.errors import ConfigError, RewardError
from verl_uae.flow.advantage import group_advantage
from verl_uae.reward import RewardScorer, Status, to_tensors
from verl_uae.reward.function import CustomReward

HOSTILE = """
    import math, sys, threading
    RELEASE = threading.Event()
    BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "none": None, "text": "high", "list": [0.1, 0.2],
           "no_score": {"acc": 1.0}, "dict_nan": {"score": math.nan}, "complex": 1j}
    def compute_score(data_source, solution_str, ground_truth, extra_info, scale=1.0):
        fault = extra_info.get("fault")
        if fault == "raise":
            raise KeyError("no such thing")
        if fault == "exit":
            sys.exit(1)
        if fault == "hang":
            RELEASE.wait()
        return BAD.get(fault, scale * extra_info["index"] / 2000)
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(body: str) -> str:
        file = tmp_path / f"reward_{abs(hash(body))}.py"
        file.write_text(textwrap.dedent(body))
        return str(file)

    return write


def _scorer(path: str, timeout_s: float = 30.0, max_abandoned: int = 16, **params) -> RewardScorer:
    return RewardScorer([("custom", 1.0, {"path": path, **params})], timeout_s=timeout_s, max_abandoned=max_abandoned)


def test_what_the_function_is_given(make_batch, write) -> None:
    path = write("""
        SEEN = []
        def compute_score(data_source, solution_str, ground_truth, extra_info, bonus, **kwargs):
            SEEN.append((data_source, solution_str, ground_truth, extra_info, bonus, kwargs))
            return {"score": 0.25, "bonus": bonus, "words": 2, "note": "text", "bad": float("nan")}
    """)
    batch = make_batch(2)
    batch.rows[1].pop("ground_truth")
    batch.rows[1]["reward_model"] = {"style": "rule", "ground_truth": "verl's place"}
    term = CustomReward(path, reward_kwargs={"bonus": 3}, num_threads=1)
    records = term.score(batch)
    assert [record.value for record in records] == [0.25, 0.25]
    assert records[0].terms == {"bonus": 3.0, "words": 2.0}
    first, second = term._function.__globals__["SEEN"]
    assert first[:3] == ("test", "caption 0", 0) and first[4:] == (3, {}) and second[2] == "verl's place"
    extra = first[3]
    assert extra["index"] == 0 and extra["caption"] == "caption 0"
    expected = np.rint(batch.reconstruction_B3HW[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(extra["reconstruction"]), expected)
    assert extra["source_image"].size == (16, 16) and extra["source_image"].mode == "RGB"
    assert set(batch.rows[0]["extra_info"]) == {"index"}  # The row itself is not touched.


def test_a_coroutine_is_awaited_and_cancelled_when_late(make_batch, write) -> None:
    path = write("""
        import asyncio
        ENDED = []
        async def compute_score(data_source, solution_str, ground_truth, extra_info):
            try:
                await asyncio.sleep(30 if extra_info["index"] == 1 else 0.01)
            except asyncio.CancelledError:
                ENDED.append(extra_info["index"])
                raise
            return extra_info["index"]
    """)
    scorer = _scorer(path, timeout_s=1.0)
    start = time.monotonic()
    records = scorer.score(make_batch(4))
    assert time.monotonic() - start < 2.0
    assert [record.status for record in records] == ["ok", "timeout", "ok", "ok"]
    assert [record.value for record in records] == [0.0, None, 2.0, 3.0]
    term = scorer._summed[0].term
    assert term._function.__globals__["ENDED"] == [1]


@pytest.mark.parametrize(
    "body",
    [
        "def compute_score(solution_str, ground_truth): return 1.0",
        "def compute_score(data_source, solution_str, ground_truth, extra_info, required): return 1.0",
        "def compute_score(data_source, solution_str, ground_truth, extra_info, /): return 1.0",
        "compute_score = 3",
        "def another(): pass",
    ],
)
def test_a_wrong_signature_is_refused_at_construction(write, body: str) -> None:
    with pytest.raises(ConfigError, match=r"uae.reward.custom.name"):
        CustomReward(write(body))


DECLARED = """
    from verl_uae.reward import reward_function
    @reward_function(bounds=(0, 1), name="first", higher_is_better=False, num_threads=3)
    def one(row, factor=0.5):
        return factor
"""
SECOND = """
    @reward_function
    def second(source):
        return source.width
"""
VERL = """
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        return 7.0
"""


def _value(batch, path: str, name: str | None = None) -> float | None:
    return CustomReward(path, name).score(batch)[0].value


def test_which_function_of_a_file_is_taken(make_batch, write) -> None:
    batch = make_batch(1)
    alone, both, with_verl = write(DECLARED), write(DECLARED + SECOND), write(DECLARED + VERL)
    # verl's configuration always has a name, compute_score if the user gives none.
    assert [_value(batch, alone, name) for name in (None, "first", "one", "compute_score")] == [0.5] * 4
    assert [_value(batch, both, name) for name in ("first", "second")] == [0.5, 16.0]
    assert [_value(batch, with_verl, name) for name in (None, "first", "compute_score")] == [0.5, 0.5, 7.0]
    assert _value(batch, write(VERL)) == 7.0
    for name in (None, "compute_score", "third"):
        wanted = f"no function '{name or 'compute_score'}'; it declares first, second; name one"
        with pytest.raises(ConfigError, match=rf"uae\.reward\.custom\.name: .*{wanted}"):
            CustomReward(both, name)
    with pytest.raises(ConfigError, match="it declares none: put @reward_function above compute_score"):
        CustomReward(write(VERL), "f")


def test_a_forgotten_decorator_is_named_with_the_function(write) -> None:
    with pytest.raises(ConfigError, match="put @reward_function above mine, or name it here if it has verl's"):
        CustomReward(write("def mine(source, reconstruction):\n    return 1.0\n"))
    two = write("def one(source):\n    return 1.0\n\ndef two(source):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"above the function that is meant.*\(its functions: one, two\)"):
        CustomReward(two)


def test_an_argument_beside_reward_kwargs_is_told_where_it_belongs(write) -> None:
    with pytest.raises(ConfigError, match=r"custom\.sharpness: is no setting.*goes under custom\.reward_kwargs"):
        CustomReward.check_params({"path": write(VERL), "sharpness": 2.0}, "custom")


def test_what_is_declared_holds_unless_the_configuration_says_otherwise(write) -> None:
    path = write(DECLARED)
    term = CustomReward(path)
    assert (term.bounds, term.higher_is_better, term.num_threads) == ((0.0, 1.0), False, 3)
    changed = CustomReward(path, bounds=(-1, 2), num_threads=1)
    assert (changed.bounds, changed.higher_is_better, changed.num_threads) == ((-1.0, 2.0), False, 1)
    assert CustomReward.value_scale({"path": path}) == ((0.0, 1.0), False)
    assert CustomReward.value_scale({"path": path, "bounds": (0, 5)}) == ((0.0, 5.0), False)
    plain = CustomReward(write(VERL))
    assert (plain.bounds, plain.higher_is_better, plain.num_threads) == ((-math.inf, math.inf), True, 8)


def test_a_declared_function_by_module_name(make_batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "uae_test_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(textwrap.dedent(DECLARED))
    monkeypatch.syspath_prepend(str(tmp_path))
    for reference in ("uae_test_package.rewards", "pkg://uae_test_package.rewards", str(package / "rewards.py")):
        assert _value(make_batch(1), reference) == 0.5


@pytest.mark.parametrize(
    ("body", "params", "key", "text"),
    [
        (DECLARED, {"reward_kwargs": {"q": 1}}, "name", "one must take row, q by keyword"),
        (DECLARED, {"reward_kwargs": {"row": 1}}, "reward_kwargs", r"\['row'\] are passed for every sample"),
        (DECLARED, {"bounds": (2, 1)}, "bounds", "low < high"),
        (DECLARED, {"num_threads": 0}, "num_threads", "at least 1, got 0"),
        (DECLARED.replace("row, factor", "image"), {}, "path", r"TypeError: one\(image=0.5\) names none of the arg"),
        (DECLARED + SECOND.replace("_function", "_function(name='first')"), {}, "name", "two reward functions"),
    ],
)
def test_refusals_of_a_declared_function(write, body: str, params: dict, key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        CustomReward.check_params({"path": write(body), **params}, "uae.reward.terms[1].params")
    assert caught.value.key == f"uae.reward.terms[1].params.{key}"


def test_other_refusals(write) -> None:
    path = write("def compute_score(data_source, solution_str, ground_truth, extra_info): return 1.0")
    for params in (
        {"reward_kwargs": {"extra_info": 1}},
        {"reward_kwargs": {"a": 1}},
        {"num_threads": 0},
        {"bounds": (1, 0)},
    ):
        with pytest.raises(ConfigError):
            CustomReward(path, **params)
    with pytest.raises(ConfigError, match="URL"):
        CustomReward("https://example.org/reward.py")


def test_is_announced(write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("def compute_score(data_source, solution_str, ground_truth, extra_info, k=2): return 1.0")
    with caplog.at_level(logging.INFO):
        CustomReward(path)
    assert (
        f"compute_score(data_source, solution_str, ground_truth, extra_info, k=2) from {path}, sha256 " in caplog.text
    )


def test_bounds_are_kept(make_batch, write) -> None:
    path = write("def compute_score(data_source, solution_str, ground_truth, extra_info): return extra_info['index']")
    records = _scorer(path, bounds=(0, 1)).score(make_batch(3))
    assert [record.status for record in records] == ["ok", "ok", "invalid"]


FAULTS = {
    "raise": Status.ERROR,
    "exit": Status.ERROR,
    **dict.fromkeys(["nan", "inf", "-inf", "none", "text", "list", "no_score", "dict_nan", "complex"], Status.INVALID),
}


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_two_thousand_hostile_outcomes(make_batch, write, kind: str, rate: float) -> None:
    """Three plain functions hang, since their threads cannot be stopped; of coroutines as many as any fault."""
    count, members = 2000, 8
    batch, draw = make_batch(count, size=2), random.Random(3)
    body, faulty = HOSTILE, sorted(FAULTS)
    if kind == "coroutine":
        body = body.replace("import math", "import asyncio, math").replace("def compute", "async def compute")
        body, faulty = body.replace("RELEASE.wait()", "await asyncio.sleep(600)"), [*faulty, "hang"]
    # Long enough for a call that waits for a busy machine, since only the hanging ones may be late.
    scorer = _scorer(write(body), timeout_s=2.0, num_threads=64 if kind == "coroutine" else 8)
    group = [f"uid-{index // members}" for index in range(count)]
    clean_records = scorer.score(batch)
    assert all(record.ok for record in clean_records)
    clean, _ = group_advantage(*to_tensors(clean_records), group)
    for row in batch.rows:
        if draw.random() < rate:
            row["extra_info"]["fault"] = draw.choice(faulty)
    for index in (10, 500, 1999):
        batch.rows[index]["extra_info"]["fault"] = "hang"
    faults = [row["extra_info"].get("fault") for row in batch.rows]
    expected = {**FAULTS, "hang": Status.TIMEOUT, None: Status.OK}
    try:
        records = scorer.score(batch)
    finally:
        scorer._summed[0].term._function.__globals__["RELEASE"].set()
    assert [record.status for record in records] == [expected[fault] for fault in faults]
    assert all(record.value == index / 2000 for index, record in enumerate(records) if record.ok)
    advantage, stats = group_advantage(*to_tensors(records), group)
    dirty = torch.tensor([fault is not None for fault in faults]).view(-1, members).any(1).repeat_interleave(members)
    assert torch.equal(advantage[~dirty], clean[~dirty]) and torch.isfinite(advantage).all()
    assert stats.invalid == sum(fault is not None for fault in faults)


def test_too_many_hangs_stop_the_run(make_batch, write) -> None:
    batch = make_batch(8)
    for row in batch.rows:
        row["extra_info"]["fault"] = "hang"
    scorer = _scorer(write(HOSTILE), timeout_s=0.05, max_abandoned=3)
    try:
        with pytest.raises(RewardError, match="'custom'"):
            scorer.score(batch)
    finally:
        scorer._summed[0].term._function.__globals__["RELEASE"].set()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from verl_uae.chain.conditioner import BATCH, ConditionCache, Conditioner
from verl_uae.families.family import Condition
from verl_uae.families.sd3 import SD3
from verl_uae.families.text import Tokens

CAPTIONS = [
    "a red circle",
    "",
    "a large blue square",
    "red",
    "red " * 40,
    "blue circle",
    "green",
    "a",
    "b",
    "circle red",
]
UNREADABLE = "a \ud800 circle"
"""A lone surrogate has no UTF-8: the tokenizer raises."""


@pytest.fixture(scope="module")
def conditioner(tiny_models: Path) -> Conditioner:
    return Conditioner.from_pretrained(str(tiny_models / "captioner"), SD3({}, {}, length=20))


@pytest.fixture
def encoded(conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the conditioner was asked to encode, call by call."""
    calls: list[list[str]] = []
    condition = conditioner.condition

    def noting(tokens: Tokens) -> Condition:
        calls.append(texts(conditioner, tokens))
        return condition(tokens)

    monkeypatch.setattr(conditioner, "condition", noting)
    return calls


def texts(conditioner: Conditioner, tokens: Tokens) -> list[str]:
    """Captions of tokens, without the template of five."""
    rows = [ids[attend][2:-3] for ids, attend in zip(tokens.ids_BT, tokens.attend_BT, strict=True)]
    return [conditioner.tokenizer.decode(row) for row in rows]


def test_states_do_not_depend_on_the_neighbours(conditioner: Conditioner) -> None:
    together = ConditionCache(conditioner, 99).get(CAPTIONS)
    backwards = ConditionCache(conditioner, 99).get(CAPTIONS[::-1])
    for index, caption in enumerate(CAPTIONS):
        alone = ConditionCache(conditioner, 99).get([caption])
        for other in (alone.conditions[0], backwards.conditions[-1 - index]):
            assert torch.equal(together.conditions[index].states, other.states)
    assert together.truncated == [caption == "red " * 40 for caption in CAPTIONS]
    assert together.failures == [""] * len(CAPTIONS)


def test_states_are_the_conditioners(conditioner: Conditioner) -> None:
    expected = conditioner.encode(CAPTIONS[:BATCH])
    got = Condition.stack(ConditionCache(conditioner, 99).get(CAPTIONS[:BATCH]).conditions)
    assert torch.equal(got.states, expected.states) and got.lengths == expected.lengths


def test_host_memory_holds_the_conditioners_dtype(tiny_models: Path) -> None:
    half = Conditioner.from_pretrained(str(tiny_models / "captioner"), SD3({}, {}, length=20), dtype=torch.bfloat16)
    (condition,) = ConditionCache(half, 9).get(["red"]).conditions
    states = condition.states
    assert states.dtype == torch.bfloat16 and states.shape == (1, 20, half.width)
    assert states.untyped_storage().nbytes() == states.numel() * 2, "the batch it came from is not kept alive"


def test_a_caption_is_encoded_once_in_batches_of_one_shape(conditioner: Conditioner, encoded: list[list[str]]) -> None:
    cache = ConditionCache(conditioner, 99)
    first = cache.get(["red", "blue", "red"])
    assert encoded == [["red", "blue", *[""] * (BATCH - 2)]]
    assert first.conditions[0] is first.conditions[2]
    assert cache.get(["blue", "red"]).conditions[1] is first.conditions[0] and len(encoded) == 1
    cache.get([f"{n}" for n in range(BATCH + 1)])
    assert [len(call) for call in encoded] == [BATCH] * 3


def test_the_least_recently_used_go_first(conditioner: Conditioner, encoded: list[list[str]]) -> None:
    cache = ConditionCache(conditioner, 2)
    cache.get(["red"])
    cache.get(["blue"])
    cache.get(["red"])
    cache.get(["green"])
    cache.get(["red", "green"])
    assert len(encoded) == 3
    cache.get(["blue"])
    assert len(encoded) == 4
    assert len(cache.get(CAPTIONS).conditions) == len(CAPTIONS), "more captions than are kept"


def test_a_caption_that_cannot_be_encoded_costs_only_itself(conditioner: Conditioner, encoded: list[list[str]]) -> None:
    captions = [*CAPTIONS[:3], UNREADABLE, *CAPTIONS[3:], UNREADABLE]
    cache = ConditionCache(conditioner, 99)
    found = cache.get(captions)
    clean = ConditionCache(conditioner, 99).get([*captions[:3], "", *captions[4:-1], ""])
    pairs = zip(found.conditions, clean.conditions, strict=True)
    assert all(torch.equal(one.states, other.states) for one, other in pairs)
    assert [bool(reason) for reason in found.failures] == [caption == UNREADABLE for caption in captions]
    assert found.failures[3].startswith("condition: ")
    before = len(encoded)
    cache.get(captions[:3])
    assert len(encoded) == before


def test_memory_that_runs_out_costs_no_caption(
    conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ConditionCache(conditioner, 99).get(CAPTIONS)
    condition, tried = conditioner.condition, []

    def short(tokens: Tokens) -> Condition:
        tried.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return condition(tokens)

    monkeypatch.setattr(conditioner, "condition", short)
    found = ConditionCache(conditioner, 99).get(CAPTIONS)
    for one, other in zip(found.conditions, expected.conditions, strict=True):
        torch.testing.assert_close(one.states, other.states)
    assert found.failures == [""] * len(CAPTIONS) and found.truncated == expected.truncated
    assert tried == [BATCH, BATCH // 2, *[2] * (len(CAPTIONS) // 2)]
    assert [line for line in caplog.messages if "captions of the conditioner" in line and "2 fit" in line]


def test_a_caption_that_memory_does_not_hold_alone_is_named(
    conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = conditioner.condition

    def short(tokens: Tokens) -> Condition:
        if "red" in texts(conditioner, tokens) or len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return condition(tokens)

    monkeypatch.setattr(conditioner, "condition", short)
    found = ConditionCache(conditioner, 99).get(["blue", "red", "green"])
    assert [reason.startswith("condition: OutOfMemoryError") for reason in found.failures] == [False, True, False]


def test_a_conditioner_that_can_encode_nothing_raises(conditioner: Conditioner) -> None:
    broken = Conditioner(torch.nn.Linear(1, 1), conditioner.tokenizer, conditioner.family)
    with pytest.raises(AttributeError, match="layers"):
        ConditionCache(broken, 9).get(["red", "blue"])

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from verl_uae.chain.conditioner import BATCH, ConditionCache, Conditioner, stack_states

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
    return Conditioner.from_pretrained(str(tiny_models / "captioner"), length=20)


@pytest.fixture
def encoded(conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the conditioner was asked to encode, call by call."""
    calls: list[list[str]] = []
    encode = conditioner.encode

    def noting(captions: Any) -> Any:
        calls.append(list(captions))
        return encode(captions)

    monkeypatch.setattr(conditioner, "encode", noting)
    return calls


def test_states_do_not_depend_on_the_neighbours(conditioner: Conditioner) -> None:
    together = ConditionCache(conditioner, 99).get(CAPTIONS)
    backwards = ConditionCache(conditioner, 99).get(CAPTIONS[::-1])
    for index, caption in enumerate(CAPTIONS):
        alone = ConditionCache(conditioner, 99).get([caption])
        for other in (alone.states[0], backwards.states[-1 - index]):
            assert torch.equal(together.states[index], other)
    assert together.truncated == [caption == "red " * 40 for caption in CAPTIONS]
    assert together.failures == [""] * len(CAPTIONS)


def test_states_are_the_conditioners(conditioner: Conditioner) -> None:
    expected = conditioner.encode(CAPTIONS[:BATCH]).states_BLE
    got = ConditionCache(conditioner, 99).get(CAPTIONS[:BATCH]).states
    assert torch.equal(stack_states(got, "cpu"), expected)


def test_host_memory_holds_the_conditioners_dtype(tiny_models: Path) -> None:
    half = Conditioner.from_pretrained(str(tiny_models / "captioner"), length=20, dtype=torch.bfloat16)
    (states,) = ConditionCache(half, 9).get(["red"]).states
    assert states.dtype == torch.bfloat16 and states.shape == (20, half.width)
    assert states.untyped_storage().nbytes() == states.numel() * 2, "the batch it came from is not kept alive"


def test_a_caption_is_encoded_once_in_batches_of_one_shape(conditioner: Conditioner, encoded: list[list[str]]) -> None:
    cache = ConditionCache(conditioner, 99)
    first = cache.get(["red", "blue", "red"])
    assert encoded == [["red", "blue", *[""] * (BATCH - 2)]]
    assert first.states[0] is first.states[2]
    assert cache.get(["blue", "red"]).states[1] is first.states[0] and len(encoded) == 1
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
    assert len(cache.get(CAPTIONS).states) == len(CAPTIONS), "more captions than are kept"


def test_a_caption_that_cannot_be_encoded_costs_only_itself(conditioner: Conditioner, encoded: list[list[str]]) -> None:
    captions = [*CAPTIONS[:3], UNREADABLE, *CAPTIONS[3:], UNREADABLE]
    cache = ConditionCache(conditioner, 99)
    found = cache.get(captions)
    clean = ConditionCache(conditioner, 99).get([*captions[:3], "", *captions[4:-1], ""])
    assert all(torch.equal(one, other) for one, other in zip(found.states, clean.states, strict=True))
    assert [bool(reason) for reason in found.failures] == [caption == UNREADABLE for caption in captions]
    assert found.failures[3].startswith("condition: ")
    before = len(encoded)
    cache.get(captions[:3])
    assert len(encoded) == before


def test_memory_that_runs_out_costs_no_caption(
    conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ConditionCache(conditioner, 99).get(CAPTIONS)
    encode, tried = conditioner.encode, []

    def short(captions: Any) -> Any:
        tried.append(len(captions))
        if len(captions) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(captions)

    monkeypatch.setattr(conditioner, "encode", short)
    found = ConditionCache(conditioner, 99).get(CAPTIONS)
    torch.testing.assert_close(found.states, expected.states)
    assert found.failures == [""] * len(CAPTIONS) and found.truncated == expected.truncated
    assert tried == [BATCH, BATCH // 2, *[2] * (len(CAPTIONS) // 2)]
    assert [line for line in caplog.messages if "captions of the conditioner" in line and "2 fit" in line]


def test_a_caption_that_memory_does_not_hold_alone_is_named(
    conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = conditioner.encode

    def short(captions: Any) -> Any:
        if "red" in captions or len(captions) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(captions)

    monkeypatch.setattr(conditioner, "encode", short)
    found = ConditionCache(conditioner, 99).get(["blue", "red", "green"])
    assert [reason.startswith("condition: OutOfMemoryError") for reason in found.failures] == [False, True, False]


def test_a_conditioner_that_can_encode_nothing_raises(conditioner: Conditioner) -> None:
    broken = Conditioner(torch.nn.Linear(1, 1), conditioner.tokenizer, length=20)
    with pytest.raises(TypeError, match="input_ids"):
        ConditionCache(broken, 9).get(["red", "blue"])

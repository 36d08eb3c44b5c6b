# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta

from verl_uae.chain.records import OUTCOME_FIELD, Envelope, Outcome
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.stages.g4u import decoder_group
from verl_uae.stages.g4u.decoder_group import (
    DecoderGroup,
    _rows,
    canonical_order,
    fetch_in_order,
    select,
    split_key,
    store,
)
from verl_uae.stages.g4u.decoder_worker import SECONDS_FIELD


def meta(keys: list[str]) -> KVBatchMeta:
    tags = [{"key": key} for key in keys]
    return KVBatchMeta(partition_id="train", keys=keys, tags=tags, fields=["a"], extra_info={"step": 1})


def test_split_key() -> None:
    assert split_key("s00000001r0000000003_2_0") == ("s00000001r0000000003", 2, 0)
    assert split_key("with_underscore_10_1") == ("with_underscore", 10, 1)
    with pytest.raises(ValueError):
        split_key("nothing")


def test_canonical_order_does_not_depend_on_arrival() -> None:
    keys = [f"u{uid}_{session}_0" for uid in range(4) for session in range(12)]
    index = {key: 7 - int(key[1]) * 2 for key in keys}
    orders = set()
    for seed in range(5):
        shuffled = keys.copy()
        random.Random(seed).shuffle(shuffled)
        orders.add(tuple(canonical_order(meta(shuffled), [index[key] for key in shuffled]).keys))
    (order,) = orders
    assert [index[key] for key in order] == sorted(index.values())
    assert [split_key(key)[1] for key in order[:12]] == list(range(12)), "sessions as numbers: 2 before 10"


def test_row_numbers_and_names_are_both_accepted() -> None:
    keys = ["a_0_0", "b_0_0", "c_0_0"]
    assert canonical_order(meta(keys), [10, 9, 100]).keys == ["b_0_0", "a_0_0", "c_0_0"]
    assert canonical_order(meta(keys), ["x2", "x1", "x0"]).keys == ["c_0_0", "b_0_0", "a_0_0"]


def test_select_keeps_tags_with_their_keys() -> None:
    batch = meta(["a_0_0", "b_0_0", "c_0_0"])
    chosen = select(batch, [2, 0])
    assert chosen.keys == ["c_0_0", "a_0_0"] and [tag["key"] for tag in chosen.tags] == chosen.keys
    assert chosen.partition_id == "train" and chosen.extra_info == {"step": 1}
    assert select(batch, []).keys == []


def test_columns_as_lists() -> None:
    assert [row.tolist() for row in _rows(torch.tensor([[1, 2], [3, 4]]))] == [[1, 2], [3, 4]]
    ragged = torch.nested.as_nested_tensor([torch.arange(2), torch.arange(3)], layout=torch.jagged)
    assert [row.tolist() for row in _rows(ragged)] == [[0, 1], [0, 1, 2]]
    assert _rows(NonTensorStack({"a": 1}, {"a": 2})) == [{"a": 1}, {"a": 2}]


class Queue:
    """Stands for the TransferQueue: rows by key, and how often it was asked."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.asked = 0

    def kv_batch_put(self, *, keys: list[str], partition_id: str, fields: TensorDict, tags: Any) -> None:
        self.tags = tags
        for name, column in fields.items():
            for key, value in zip(keys, _rows(column), strict=True):
                self.rows.setdefault(key, {})[name] = value

    def kv_batch_get(self, *, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        self.asked += 1
        columns = {}
        for name in select_fields:
            values = [self.rows[key][name] for key in keys]
            tensors = isinstance(values[0], torch.Tensor)
            columns[name] = (
                torch.nested.as_nested_tensor(values, layout=torch.jagged) if tensors else NonTensorStack(*values)
            )
        return TensorDict(columns, batch_size=len(keys))


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(decoder_group, "tq", made)
    return made


def test_columns_come_in_canonical_order_with_their_keys(queue: Queue) -> None:
    batch = meta(["a_0_0", "b_1_0", "c_0_0", "b_0_0"])
    masks = [torch.full((length,), length) for length in (3, 1, 2, 4)]
    columns = {"index": [10, 9, 100, 9], "extra": [{"of": key} for key in batch.keys], "mask": masks}
    store(batch, columns, tagged=True)
    assert queue.tags == batch.tags, "verl goes on with those of the queue"
    store(batch, columns)
    assert queue.tags is None
    ordered, columns = fetch_in_order(batch, ["extra", "mask"])
    assert ordered.keys == ["b_0_0", "b_1_0", "a_0_0", "c_0_0"] and queue.asked == 1
    assert [extra["of"] for extra in columns["extra"]] == ordered.keys == [tag["key"] for tag in ordered.tags]
    assert [mask.tolist() for mask in columns["mask"]] == [[4] * 4, [1], [3] * 3, [2] * 2]


def test_outcomes_of_all_ranks_with_the_seconds_of_the_slowest(queue: Queue) -> None:
    """A rank that failed has spent no seconds that count."""
    group = object.__new__(DecoderGroup)
    group.group = SimpleNamespace(workers=[0, 1, 2])
    batch = meta([f"u_{member}_0" for member in range(6)])
    spent = {0: [1.0, 0.5, 1.5], 1: [0.25, 2.0, 2.25]}

    def attempt(metas: list[KVBatchMeta]) -> dict[int, tuple[Status, str]]:
        for rank, seconds in spent.items():
            found = [Envelope(Outcome(RewardRecord(float(rank), Status.OK))) for _ in metas[rank].keys]
            store(metas[rank], {OUTCOME_FIELD: found, SECONDS_FIELD: [torch.tensor(seconds).double()] * len(found)})
        return {2: (Status.TIMEOUT, "no answer")}

    group._attempt = attempt  # type: ignore[method-assign, assignment]
    outcomes, seconds = group.score(batch, step=1, probes=0)
    assert seconds == {"decode": 1.0, "score": 2.0, "draw": 2.25} and queue.asked == 1
    assert [outcome.record.value for outcome in outcomes] == [0.0, 0.0, 1.0, 1.0, None, None]
    assert outcomes[5].record.status is Status.TIMEOUT

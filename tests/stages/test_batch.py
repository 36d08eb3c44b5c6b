# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch
from tensordict import NonTensorStack
from transfer_queue import KVBatchMeta

from verl_uae.stages.g4u.decoder_group import _rows, canonical_order, select, split_key


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

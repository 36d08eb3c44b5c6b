# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the fields of a batch that lie in the TransferQueue.

Captions, numbers and masks pass through the controller; pictures stay where they are drawn, but for those that a
groupwise reward compares (`verl_uae.stages.common.group_rewards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta


def fetch(batch: KVBatchMeta, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a batch as plain lists, one entry per key."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))
    return {name: _rows(data[name]) for name in fields if name in data.keys()}


def store(batch: KVBatchMeta, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of a batch; tensors become ragged rows, everything else is stored as it is."""
    fields: dict[str, Any] = {}
    for name, values in columns.items():
        if values and isinstance(values[0], Tensor):
            fields[name] = torch.nested.as_nested_tensor(list(values), layout=torch.jagged)
        else:
            fields[name] = NonTensorStack(*values)
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
    )


def select(batch: KVBatchMeta, positions: Sequence[int]) -> KVBatchMeta:
    """The samples at the given positions, in that order."""
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[batch.keys[position] for position in positions],
        tags=[batch.tags[position] for position in positions],
        fields=batch.fields,
        extra_info=batch.extra_info,
    )


def split_key(key: str) -> tuple[str, int, int]:
    """(uid, session, output index) of a sample's key."""
    uid, session, index = key.rsplit("_", 2)
    return uid, int(session), int(index)


def canonical_order(batch: KVBatchMeta, row_index: Sequence[Any]) -> KVBatchMeta:
    """Sort by dataset row and member instead of by order of arrival, so a run repeats bit for bit."""

    def rank(position: int) -> tuple[str, str, int, int]:
        uid, session, output = split_key(batch.keys[position])
        # Row numbers are compared as text padded with zeros: some datasets use strings.
        return str(row_index[position]).zfill(20), uid, session, output

    return select(batch, sorted(range(len(batch.keys)), key=rank))


def _rows(column: Any) -> list[Any]:
    if isinstance(column, Tensor):
        return list(column.unbind(0))
    return [getattr(value, "data", value) for value in column]

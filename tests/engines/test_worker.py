# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Upstream issue 7899: batches of equally long sequences crash verl's split of 3D position ids."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from verl_uae.stages.g4u.worker import CaptionerTrainingWorker, CaptionerWorker, restore_ragged_position_ids

EQUAL = [[5], [4], [5, 5], [8, 8], [7, 7, 7], [16] * 4, [36] * 9]
RAGGED = [[4, 5], [8, 3, 6], [2, 2 + 2, 2]]


def rows(lengths: list[int], planes: int) -> list[torch.Tensor]:
    return [torch.arange(planes * n).view(planes, n) + 1000 * i for i, n in enumerate(lengths)]


def batch(lengths: list[int], planes: int = 4) -> TensorDict:
    fields = {
        "position_ids": torch.nested.as_nested_tensor(rows(lengths, planes), layout=torch.jagged),
        "input_ids": torch.nested.as_nested_tensor([torch.arange(n) for n in lengths], layout=torch.jagged),
    }
    return TensorDict(fields, batch_size=len(lengths))


def split_like_verl(data: TensorDict, lengths: list[int], planes: int) -> bool:
    """verl's fix-up, then its split into single samples; whether every sample kept its own numbers."""
    from verl.utils import tensordict_utils as tu

    tu.maybe_fix_3d_position_ids(data)
    pieces = [tu.index_select_tensor_dict(data, [i])["position_ids"][0] for i in range(len(lengths))]
    chunks = [chunk["position_ids"][0] for chunk in tu.chunk_tensordict(data, len(lengths))]
    expected = rows(lengths, planes)
    return all(
        torch.equal(piece, row) and torch.equal(chunk, row)
        for piece, chunk, row in zip(pieces, chunks, expected, strict=True)
    )


@pytest.mark.parametrize("lengths", [[5], [5, 5], [7, 7, 7]])
def test_verl_still_crashes_without_our_fix(lengths: list[int]) -> None:
    """Once this fails, upstream issue 7899 is fixed and restore_ragged_position_ids can go."""
    with pytest.raises(RuntimeError):
        split_like_verl(batch(lengths), lengths, 4)


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("lengths", [*EQUAL, *RAGGED], ids=str)
def test_cured_with_our_fix(lengths: list[int], planes: int) -> None:
    data = batch(lengths, planes)
    restore_ragged_position_ids(data)
    assert split_like_verl(data, lengths, planes)
    again = batch(lengths, planes)
    restore_ragged_position_ids(again)
    restore_ragged_position_ids(again)
    assert split_like_verl(again, lengths, planes)


def test_other_batches_are_left_alone() -> None:
    plain = TensorDict({"input_ids": torch.zeros(2, 3)}, batch_size=2)
    restore_ragged_position_ids(plain)
    assert "position_ids" not in plain.keys()
    dense = TensorDict({"position_ids": torch.arange(24).view(2, 4, 3)}, batch_size=2)
    restore_ragged_position_ids(dense)
    assert torch.equal(dense["position_ids"], torch.arange(24).view(2, 4, 3))
    flat = torch.nested.as_nested_tensor([torch.arange(3), torch.arange(3)], layout=torch.jagged)
    text = TensorDict({"position_ids": flat}, batch_size=2)
    restore_ragged_position_ids(text)
    assert text["position_ids"] is flat or torch.equal(text["position_ids"].values(), flat.values())


def test_verl_asks_for_gloo_twice_on_a_cpu(facts: dict[str, Any]) -> None:
    """Once this fails, CaptionerWorker need not make the process group itself."""
    assert "ValueError" in facts["duplicate backend"]


def test_the_hooks_of_verl_are_where_we_override_them() -> None:
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    for name in ("infer_batch", "train_mini_batch"):
        assert hasattr(TrainingWorker, name) and name in vars(CaptionerTrainingWorker)
        ours, verls = (inspect.signature(getattr(c, name)) for c in (CaptionerTrainingWorker, TrainingWorker))
        assert list(ours.parameters) == list(verls.parameters)
    for name in ("actor_worker_cls", "ref_worker_cls"):
        assert hasattr(ActorRolloutRefWorker, name)
    assert CaptionerWorker.ref_worker_cls is CaptionerTrainingWorker

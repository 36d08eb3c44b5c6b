# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch

from verl_uae.devices import FittingBatch, checked_device, is_out_of_memory
from verl_uae.errors import ConfigError


def test_a_device_that_is_here() -> None:
    assert checked_device("cpu") == torch.device("cpu")
    assert checked_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cpu:x", "meta", "xla", "hpu"])
def test_one_that_is_not_is_named_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--device: {name}.*; give .*cpu") as caught:
        checked_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


class Model:
    """Has memory for so many samples."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def __call__(self, rows: slice) -> list[int]:
        self.tried.append(rows.stop - rows.start)
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return list(range(rows.start, rows.stop))


def test_every_sample_is_answered_once_and_in_order_at_the_size_that_fits() -> None:
    model, batch = Model(room=3), FittingBatch(8, "pictures")
    answers = [row for part in batch.map(10, model) for row in part]
    assert answers == list(range(10)) and model.tried == [8, 4, 2, 2, 2, 2, 2]


def test_the_size_that_fits_is_kept_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = Model(room=2), FittingBatch(8, "pictures", "uae.decoder.vae_batch_size")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            batch.map(4, model)
    assert model.tried == [4, 2, 2, 2, 2, 2, 2] and batch.size == 2
    (line,) = caplog.messages
    assert "up to 4 pictures" in line and "2 fit" in line and "uae.decoder.vae_batch_size=2" in line


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    model, batch = Model(room=0), FittingBatch(4, "pictures")
    with pytest.raises(torch.OutOfMemoryError):
        batch.map(4, model)
    assert model.tried == [4, 2, 1]


def test_a_part_that_is_filled_up_takes_the_memory_of_a_whole_one() -> None:
    batch, tried = FittingBatch(8, "pictures"), []

    def call(rows: slice) -> int:
        tried.append(batch.size)
        if batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows.start

    assert batch.map(1, call, filled=True) == [0] and tried == [8, 4, 2]


def test_a_single_sample_that_does_not_fit_makes_no_batch_smaller() -> None:
    model, batch = Model(room=0), FittingBatch(4, "pictures")
    with pytest.raises(torch.OutOfMemoryError):
        batch.map(1, model)
    assert model.tried == [1] and batch.size == 4


def test_other_errors_change_nothing() -> None:
    batch = FittingBatch(4, "pictures")

    def fail(rows: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        batch.map(4, fail)
    assert batch.size == 4


def test_what_torch_itself_raises_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))


#: What Ray adds to its folder: /session_2026-01-01_00-00-00_000000_PID/sockets/plasma_store.

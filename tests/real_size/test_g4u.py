# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding: captions are redrawn and scored by the frozen chain."""

from __future__ import annotations

import gc

import pytest
from tensordict import NonTensorData, NonTensorStack, TensorDict

from benchmarks.sizes import Size
from tests.real_size import models, workers
from tests.real_size.accelerator import Accelerator
from verl_uae.chain.records import CAPTION_FIELD, OUTCOME_FIELD, Caption, Envelope
from verl_uae.stages.g4u.decoder_worker import INPUT_FIELDS

STEPS = ["uae.decoder.num_steps=2", "uae.decoder.batch_size=4"]

CAPTIONS = 4

#: What the host waits for in one micro-batch of four captions, and why.
BUDGET = {
    # The conditions of captions and of the negative prompt: see test_conditioner. They are kept in host memory.
    "families/text.py:tap_states": 2,
    "families/family.py:to": 2,
    # The five tensors of a trajectory, four of them empty.
    "chain/draw.py:_to_host": 5,
    # Smallest and largest pixel of sources and reconstructions.
    "reward/record.py:unusable": 4,
    # Three terms.
    "reward/record.py:as_rows": 3,
    # A source picture is looked up by its pixels, and its features are kept.
    "reward/encodings.py:picture_digest": 4,
    "reward/encodings.py:_kept": 1,
    # The picture of the panel.
    "data/images.py:to_pil": 1,
}


def captions() -> TensorDict:
    """What the queue hands a rank."""
    message = {"role": "user", "content": [{"type": "image", "image": models.photograph()}]}
    extra = {CAPTION_FIELD: Envelope(Caption("a red circle", "digest", tokens=3))}
    row = [[message], "photographs", {"ground_truth": None}, {}, extra]
    columns = dict(zip(INPUT_FIELDS, row, strict=True))
    rows = [{**columns, "extra_info": {"index": index}} for index in range(CAPTIONS)]
    data = TensorDict({name: NonTensorStack(*(row[name] for row in rows)) for name in columns}, batch_size=CAPTIONS)
    data["global_steps"], data["probes"], data["keep"] = NonTensorData(1), NonTensorData(1), NonTensorData(0)
    return data


def test_captions_are_redrawn_and_scored_on_the_device(
    size: Size, clip: str, accelerator: Accelerator, compose
) -> None:
    config = compose(*STEPS, "uae.decoder.path=decoder", "uae.decoder.offload=false")
    worker = workers.decoder_worker(config, size, clip)
    accelerator.in_threads_of(worker.redrawer.painter.scorer)
    with accelerator:
        answer = worker.decode_and_score(captions())[OUTCOME_FIELD]
    records = [getattr(entry, "data", entry).content.record for entry in answer]
    assert [(str(record.status), record.reason) for record in records] == [("ok", None)] * CAPTIONS
    assert accelerator.syncs == BUDGET
    assert accelerator.frozen_bytes_to_host == 0


@pytest.mark.parametrize("size", [models.size_of("sd35_large", 2048)], ids=["sd35_large"])
def test_an_offloaded_rank_holds_nothing_between_two_batches(
    size: Size, clip: str, accelerator: Accelerator, compose
) -> None:
    config = compose(*STEPS, "uae.decoder.path=decoder", "uae.decoder.offload=true")
    worker = workers.decoder_worker(config, size, clip)
    parts = (worker.redrawer.decoder, worker.redrawer.painter.conditions.conditioner)
    weights = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())
    with accelerator:
        worker._move("cpu")
        moved, accelerator.frozen_bytes_to_host = accelerator.frozen_bytes_to_host, 0
        before = accelerator.live_bytes
        worker.decode_and_score(captions())
        gc.collect()
    # Built on the device, they go to the host once.
    assert moved >= weights and accelerator.frozen_bytes_to_host == 0
    assert accelerator.live_bytes - before < 1e7

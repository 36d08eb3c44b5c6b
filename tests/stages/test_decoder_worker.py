# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker's own logic on the real chain, in this process; Ray and the queue are run by tests/e2e."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensordict import NonTensorData, NonTensorStack, TensorDict

from tests.samples import caption, picture
from verl_uae.chain.records import CAPTION_FIELD, Envelope
from verl_uae.errors import DecoderError
from verl_uae.reward.record import Status
from verl_uae.stages.g4u.decoder_worker import INPUT_FIELDS, DecoderWorker, ProgressLog, build_redrawer

CAPTIONS = ["a red circle", "", "a blue square", "green"]


def written(index: int, **changes: Any) -> dict[str, Any]:
    """What the agent loop leaves in ``extra_fields``."""
    return {CAPTION_FIELD: Envelope(caption(CAPTIONS[index], **{"digest": f"d{index // 2}", **changes}))}


def batch(extras: list[dict[str, Any]], *, step: int = 3, probes: int = 0, keep: int = 0) -> TensorDict:
    images = [picture(index // 2) for index in range(len(extras))]
    columns = {
        "raw_prompt": [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in images],
        "extra_fields": extras,
        "data_source": ["scenes"] * len(extras),
        "reward_model": [{"ground_truth": "g", "style": "rule"}] * len(extras),
        "extra_info": [{"index": index} for index in range(len(extras))],
    }
    assert set(columns) == set(INPUT_FIELDS)
    data = TensorDict({name: NonTensorStack(*values) for name, values in columns.items()}, batch_size=len(extras))
    for name, value in (("global_steps", step), ("probes", probes), ("keep", keep)):
        data[name] = NonTensorData(value)
    return data


@pytest.fixture(scope="module")
def worker(compose, tiny_overrides: list[str]) -> DecoderWorker:
    # verl's Worker wants a process group; only its fields are set here.
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides)
    made.redrawer = build_redrawer(made.config, "cpu", "cpu")
    return made


def test_outcomes_keep_their_place(worker: DecoderWorker) -> None:
    extras = [written(0), written(1), written(2, status=Status.TIMEOUT, reason="no caption in 3 s"), written(3)]
    outcomes = worker._outcomes(worker.redrawer, batch(extras))
    assert [str(outcome.record.status) for outcome in outcomes] == ["ok", "ok", "timeout", "ok"]
    assert outcomes[2].record.reason == "no caption in 3 s" and outcomes[2].record.value is None
    alone = worker._outcomes(worker.redrawer, batch([written(0)]))
    assert outcomes[0].record.value == pytest.approx(alone[0].record.value, abs=1e-5)


def test_the_noise_is_named_by_seed_step_and_picture(worker: DecoderWorker) -> None:
    def value(index: int = 0, step: int = 3, **changes: Any) -> float:
        return worker._outcomes(worker.redrawer, batch([written(index, **changes)], step=step))[0].record.value

    assert value() == value()
    assert value(step=4) != pytest.approx(value(), rel=1e-6)
    assert value(digest="other") != pytest.approx(value(), rel=1e-6)


def test_only_probe_rows_come_with_a_picture(worker: DecoderWorker) -> None:
    outcomes = worker._outcomes(worker.redrawer, batch([written(index) for index in range(4)], probes=2))
    assert [outcome.picture is not None for outcome in outcomes] == [True, True, False, False]


def test_reconstructions_come_along_where_they_are_kept(worker: DecoderWorker) -> None:
    extras = [written(0), written(1, status=Status.ERROR, reason="no caption"), written(2)]
    assert worker.redrawer is not None
    none = worker._outcomes(worker.redrawer, batch(extras))
    kept = worker._outcomes(worker.redrawer, batch(extras, keep=1))
    assert [outcome.reconstruction is not None for outcome in kept] == [True, False, True]
    assert all(outcome.reconstruction is None for outcome in none)
    assert [outcome.record.value for outcome in none] == [outcome.record.value for outcome in kept]
    image = Image.open(io.BytesIO(kept[0].reconstruction))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))


def test_rows_reach_custom_rewards(compose, tiny_overrides, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    assert (data_source, ground_truth) == ('scenes', 'g')\n"
        "    assert extra_info['source_image'].size == extra_info['reconstruction'].size == (32, 32)\n"
        "    return float(extra_info['index'])\n"
    )
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides, f"reward.custom_reward_function.path={tmp_path}/mine.py")
    made.redrawer = build_redrawer(made.config, "cpu", "cpu")
    outcomes = made._outcomes(made.redrawer, batch([written(index) for index in range(3)]))
    assert [outcome.record.terms["custom"] for outcome in outcomes] == [0.0, 1.0, 2.0]


def test_offloading_moves_everything_and_back(compose, tiny_overrides) -> None:
    """With the meta device in the place of a GPU: every model must leave the host."""
    terms = "uae.reward.terms=[{name: efficientnet_lite0, params: {image_size: 64}}]"
    pytest.importorskip("efficientnet_lite_pytorch")
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides, terms)
    made.redrawer = build_redrawer(made.config, "cpu", "cpu")
    made._move("cpu")
    made._move("meta")
    decoder, painter = made.redrawer.decoder, made.redrawer.painter
    models = [decoder, painter.conditions.conditioner, painter.scorer._summed[0].term.model]  # type: ignore[attr-defined]
    assert {parameter.device.type for model in models for parameter in model.parameters()} == {"meta"}
    assert painter.scorer.device.type == "meta"


@pytest.mark.parametrize(
    ("stage", "returned", "ready"), [("g4u", True, True), ("unified", False, True), ("unified", True, False)]
)
def test_a_rank_started_again_waits_for_a_trained_decoder(compose, tiny_overrides, stage, returned, ready) -> None:
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides, f"uae.stage={stage}", "uae.decoder.offload=true")
    made.redrawer, made._returned = None, returned
    made._rank = 0
    if not ready:
        with pytest.raises(DecoderError, match="has not got the decoder policy's weights"):
            made.redraw([])
    assert made.ready() is ready and (made.redrawer is not None) is ready
    made.ensure_model()
    assert made.ready() and made.take_returned() is returned and made.take_returned() is False


def test_rows_without_a_number_are_scored_and_not_shown(worker: DecoderWorker) -> None:
    data = batch([written(0), written(1)], probes=8)
    data["extra_info"] = NonTensorStack({"index": "img_7"}, {"index": None})
    outcomes = worker._outcomes(worker.redrawer, data)
    assert [(str(outcome.record.status), outcome.picture) for outcome in outcomes] == [("ok", None)] * 2


def test_a_pool_of_their_own_needs_no_offload(compose, tiny_overrides) -> None:
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides, "uae.decoder.offload=true")
    assert made._offload is True
    made.config.uae.decoder.pool = "own"
    assert made._offload is False


def test_long_phases_report_and_short_ones_are_silent(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    log = ProgressLog()
    log(1, 8)
    monkeypatch.setattr("verl_uae.stages.g4u.decoder_worker.PROGRESS_S", 0.0)
    with caplog.at_level("INFO"):
        log(4, 8)
    assert [record.getMessage() for record in caplog.records] == ["4 of 8 captions redrawn and scored"]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_uae.chain.records import Caption, Outcome, Sample
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.stages.u4g.step import dump_arguments, generation_rows


def test_a_line_of_verls_file_per_reconstruction(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "tell"}]}]
    ] * 2
    samples = [
        Sample(picture, Caption("a red circle", "aa"), {"ground_truth": "x"}),
        Sample(picture, Caption.failed("bb", "no caption")),
    ]
    records = [
        RewardRecord(0.25, Status.OK, {"pixel": 0.25, "ssim": 0.5}),
        RewardRecord(0.75, Status.OK, {"pixel": 0.75}),
        *[RewardRecord.failed(Status.ERROR, "no caption")] * 2,
    ]
    rows = generation_rows(prompts, samples, [Outcome(record) for record in records])
    arguments = dump_arguments(rows)
    PPOTrainer._write_generations(**arguments, dump_path=str(tmp_path), global_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "3.jsonl").read_text().splitlines()]
    assert [(line["output"], line["score"], line["member"], line["status"]) for line in lines] == [
        ("a red circle", 0.25, 0, "ok"),
        ("a red circle", 0.75, 1, "ok"),
        ("", None, 0, "error"),
        ("", None, 1, "error"),
    ]
    assert [line["term_ssim"] for line in lines] == [0.5, None, None, None]
    assert lines[0]["input"] == "image tell" and lines[0]["gts"] == "x" and lines[2]["reason"] == "no caption"
    assert all(line["step"] == 3 for line in lines)


def test_nothing_drawn_is_an_empty_file(tmp_path: Path) -> None:
    arguments = dump_arguments(generation_rows([], [], []))
    PPOTrainer._write_generations(**arguments, dump_path=str(tmp_path), global_steps=0)
    assert (tmp_path / "0.jsonl").read_text() == ""

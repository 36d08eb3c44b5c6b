# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_u4g.py."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.stages.test_standalone import assert_same_signatures
from verl_uae.chain.records import Outcome, Sample
from verl_uae.data.images import encode_jpeg, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.stages.common.panel import PanelWriter
from verl_uae.stages.u4g.trainer import U4GTrainer


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_u4g") is U4GTrainer and issubclass(U4GTrainer, PPOTrainer)


def test_overrides_keep_verls_signatures() -> None:
    assert_same_signatures(U4GTrainer)


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    """The Hydra callback is not there when a trainer is made from Python."""
    with pytest.raises(ConfigError, match=r"uae\.u4g\.samples_per_caption"):
        U4GTrainer(compose(*tiny_overrides, "uae.u4g.samples_per_caption=1", name="uae_u4g"))


def test_nobody_decides_for_a_trainer_of_python(compose, tiny_overrides) -> None:
    with pytest.raises(ConfigError, match=r"uae\.train\.gradient_checkpointing: null is decided by the training"):
        U4GTrainer(compose(*tiny_overrides, "uae.train.gradient_checkpointing=null", name="uae_u4g"))


def drawn(samples: list[Sample], probes: int, plan: Any = None) -> list[Outcome]:
    """What the workers answer: grey pictures; the third of all cannot be compared by ssim."""
    jpeg = encode_jpeg(to_tensor([Image.new("RGB", (32, 32), "grey")], (32, 32))[0])
    answers = []
    for number, sample in enumerate(samples):
        value = float(sample.row["extra_info"]["index"])
        terms = {"pixel": value} if value == 2 else {"pixel": value, "ssim": value}
        answers.append(Outcome(RewardRecord(value, Status.OK, terms), picture=jpeg if number < probes else None))
    return answers


def validating(compose, tiny_overrides: list[str], folder: Path) -> U4GTrainer:
    """A trainer with three validation batches of two rows and workers that answer at once."""
    trainer = object.__new__(U4GTrainer)
    overrides = [
        "uae.u4g.captions.source=column",
        "uae.panel.probes=3",
        f"+trainer.validation_data_dir={folder}/val",
    ]
    trainer.config = compose(*tiny_overrides, *overrides, name="uae_u4g")
    trainer.global_steps, trainer.logger = 5, None
    trainer.panels = PanelWriter(str(folder / "panels"), str(folder / "index.html"))
    trainer.learner = SimpleNamespace(evaluate=drawn, plan=lambda step: SimpleNamespace(window=()))
    trainer.tables = []
    trainer.config.trainer.log_val_generations = 2
    trainer.validation_generations_logger = SimpleNamespace(
        log=lambda _, rows, step: trainer.tables.append((step, rows))
    )
    trainer._dump_executor, trainer._dump_futures = ThreadPoolExecutor(1), []
    image = {"type": "image", "image": Image.new("RGB", (32, 32), "red")}
    prompt = [{"role": "user", "content": [image, {"type": "text", "text": "describe"}]}]
    trainer.val_dataloader = [
        {
            "raw_prompt": [prompt] * 2,
            "data_source": ["first", "second"],
            "extra_info": [{"index": 2 * batch + place, "caption": f"row {2 * batch + place}"} for place in range(2)],
        }
        for batch in range(3)
    ]
    return trainer


def test_validation_in_batches_shows_the_first_rows_once_and_keeps_terms_at_their_row(
    compose, tiny_overrides: list[str], tmp_path: Path
) -> None:
    trainer = validating(compose, tiny_overrides, tmp_path)
    metrics = trainer._validate()
    trainer._shutdown_dump_executor()
    panel = (tmp_path / "panels" / "step_000005.html").read_text()
    assert [f"row {number}" in panel for number in range(6)] == [True, True, True, False, False, False]
    assert metrics["val-core/first/reward/mean@1"] == pytest.approx((0 + 2 + 4) / 3)
    assert metrics["val-aux/first/term_ssim/mean@1"] == pytest.approx((0 + 4) / 2)
    assert metrics["val-aux/second/term_ssim/mean@1"] == pytest.approx((1 + 3 + 5) / 3)
    ((step, table),) = trainer.tables
    assert step == 5 and len(table) == 2 and all(text == f"row {score:.0f}" for _, text, score in table)
    lines = [json.loads(line) for line in (tmp_path / "val" / "5.jsonl").read_text().splitlines()]
    assert [(line["output"], line["score"]) for line in lines] == [(f"row {n}", float(n)) for n in range(6)]

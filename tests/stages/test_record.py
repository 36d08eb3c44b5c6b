# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf, open_dict

from verl_uae.checkpoints.inference import read_run_settings
from verl_uae.checkpoints.record import RunConfig, RunRecord
from verl_uae.data.frame import Frame, open_rows
from verl_uae.data.schema import SYSTEM_PROMPT, USER_PROMPT, make_prompt

Compose = Callable[..., Any]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunRecord]:
    """A trainer whose rows ask the given prompts."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(config: Any, *users: str) -> RunRecord:
        rows = {"prompt": [make_prompt(user, None) for user in users], "images": [[b"picture"]] * len(users)}
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table(rows), file)
        trainer = RunRecord()
        trainer.config = config
        trainer.train_dataset = SimpleNamespace(dataframe=Frame([open_rows(str(file), frozenset())]))
        trainer.keep_configuration()
        return trainer

    return make


def test_a_step_folder_knows_its_run(
    record: Callable[..., RunRecord], compose: Compose, tiny_overrides: list[str], tmp_path: Path
) -> None:
    config = compose(*tiny_overrides, "uae.decoder.num_steps=7", "data.max_response_length=9")
    before = OmegaConf.to_container(config, resolve=True)
    trainer = record(config, "<image>describe")
    with open_dict(config):
        config.algorithm.uae = {"min_std": 1}
    trainer.save_record(tmp_path)
    run = RunConfig.of(tmp_path)
    assert {key: run.get(key) for key in before} == before and run.get("algorithm.uae") is None
    entries = read_run_settings(tmp_path)
    assert entries is not None and entries["caption_prompt"] == "<image>describe" and entries["caption_system"] == ""
    assert (entries["num_inference_steps"], entries["max_new_tokens"]) == (7, 9)


def test_of_several_prompts_that_of_most_rows_is_kept_and_said(
    record: Callable[..., RunRecord],
    compose: Compose,
    tiny_overrides: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = compose(*tiny_overrides)
    with caplog.at_level(logging.WARNING):
        assert record(config, "<image>a").inference["caption_prompt"] == "<image>a" and not caplog.text
        assert record(config, "<image>a", "<image>b", "<image>b").inference["caption_prompt"] == "<image>b"
        assert "2 of 3 rows: '<image>b'" in caplog.text
        assert "caption_prompt" not in record(config, "<image><image>").inference
        assert "--caption-prompt" in caplog.text


def test_a_stream_of_pairs_asks_the_prompt_of_pairs_without_one(compose: Compose, tiny_overrides: list[str]) -> None:
    from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

    trainer: Any = object.__new__(get_trainer_cls("uae_pretrain"))
    trainer.config = compose(*tiny_overrides)
    entries = trainer.inference
    assert (entries["caption_prompt"], entries["caption_system"]) == (USER_PROMPT, SYSTEM_PROMPT)


@pytest.mark.parametrize("name", ["", "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"])
def test_metrics_lie_in_the_folder_of_the_run_unless_the_user_says_where(
    record: Callable[..., RunRecord],
    compose: Compose,
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    from verl.utils.tracking import FileLogger

    for variable in ("VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"):
        # Set first: what the run sets is gone after the test.
        monkeypatch.setenv(variable, str(tmp_path / "mine"))
        if variable != name:
            monkeypatch.delenv(variable)
    trainer = record(compose(*tiny_overrides, f"trainer.default_local_dir={tmp_path / 'run'}"), "<image>describe")
    trainer.keep_metrics()
    logger = FileLogger("project", "experiment")
    logger.finish()
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name == Path(logger.filepath).name]
    assert len(found) == 1 and found[0].startswith("mine" if name else "run/metrics_")
    assert trainer.summary.metrics == (None if name.endswith("ROOT") else logger.filepath)

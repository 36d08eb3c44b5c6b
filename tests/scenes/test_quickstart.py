# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from verl_uae.checkpoints.inference import read_index, settings_of_run, write_run_settings
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.checkpoints.record import RunConfig, config_text, write_run_config
from verl_uae.checkpoints.step import mark_complete
from verl_uae.cli import main, parse
from verl_uae.config.validate import validate
from verl_uae.data.frame import column_of
from verl_uae.data.schema import PROMPT_COLUMN, most_frequent_prompt
from verl_uae.errors import CheckpointError
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.quickstart import METRICS, MODEL, export_trained, next_commands, run_training
from verl_uae.scenes.tiny_models import INFERENCE


@pytest.fixture
def trained(compose: Any, tiny_models: Path, tmp_path: Path) -> Path:
    """Folder of a quickstart whose run has been trained: models, data, and the last step folder."""
    root = tmp_path / "quickstart"
    for name in ("captioner", "decoder"):
        shutil.copytree(tiny_models / name, root / name)
    write_dataset(root / "data", train=4, val=2, seed=0)
    step = root / "runs" / "g4u" / "global_step_2"
    shutil.copytree(root / "captioner", step / "actor" / "huggingface")
    config = compose("hardware=cpu", "preset=scenes", f"uae_home={root}")
    validate(config)
    write_run_config(step, config_text(config))
    prompt = most_frequent_prompt(column_of(str(root / "data" / "train.parquet"), PROMPT_COLUMN))
    write_run_settings(step, settings_of_run(RunConfig(config).get, prompt))
    mark_complete(step, 2)
    return root


def test_the_trained_model_is_one_folder_with_the_settings_of_its_run(trained: Path) -> None:
    export_trained(trained, trained / "runs" / "g4u", 2)
    verify_folder(trained / MODEL)
    # What the preset and the data set say is what the scenes say of themselves.
    assert read_index(trained / MODEL) == asdict(INFERENCE)
    # A second quickstart in the same folder takes its place; anything else there is not touched.
    export_trained(trained, trained / "runs" / "g4u", 2)
    (trained / MODEL / "mine.txt").write_text("notes")
    with pytest.raises(CheckpointError, match=r"mine\.txt"):
        export_trained(trained, trained / "runs" / "g4u", 2)


def test_the_next_commands_are_ones_that_there_are(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, page, last = (shlex.split(line.rpartition("&& ")[2]) for line in next_commands(str(trained)))
    sample, bench = parse(first[first.index("sample") :]), parse(last[last.index("bench") :])
    assert {sample.model, bench.model, page[2]} == {str(trained / MODEL)}
    assert sample.rows.is_file() and bench.bench == "scenes" and Path(page[1]).is_file()
    # A wheel has no examples.
    monkeypatch.setattr("verl_uae.scenes.quickstart.DEMO", tmp_path / "none")
    assert [shlex.split(line) for line in next_commands(str(trained))] == [first, last]


def test_a_training_command_leaves_its_output_and_its_metrics(tmp_path: Path) -> None:
    code = "import os; print('said'); open(os.environ['VERL_FILE_LOGGER_PATH'], 'a').write('{}'); raise SystemExit(3)"
    run, seen = tmp_path / "run", []
    for _ in range(2):  # A second run does not add to the metrics of the first.
        found = run_training([sys.executable, "-c", code], run, lambda metrics: seen.append(metrics.is_file()))
        assert found == 3 and seen[-1]
        assert (run / "train.log").read_text() == "said\n" and (run / METRICS).read_text() == "{}"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "-3"], "--steps"),
        (["trainer.total_training_steps=5"], "trainer.total_training_steps"),
        (["+uae_home=/elsewhere"], "uae_home"),
    ],
)
def test_what_the_models_would_be_trained_for_in_vain_is_refused_first(
    tmp_path: Path, words: list[str], key: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_uae.scenes.quickstart.train_tiny_models", lambda *_: pytest.fail("begun"))
    assert main(["quickstart", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"verl-uae: {key}: ") and not (tmp_path / "out").exists()

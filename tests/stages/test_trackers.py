# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tests.source import ROOT
from verl_uae.checkpoints.names import TRACKED_RUN
from verl_uae.checkpoints.step import mark_complete, step_folder
from verl_uae.stages.common.trackers import KEY, Shown, keep_run, send

NAMES = ("WANDB_RUN_ID", "WANDB_RESUME", "SWANLAB_RUN_ID", "SWANLAB_RESUME")
SHOWN = [Shown(Image.new("RGB", (64, 32), colour), f"0.5: \ud83d {colour}") for colour in ("red", "blue")]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set, then gone: what the code sets is taken back too.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def config(folder: Path, *backends: str, mode: str = "auto") -> DictConfig:
    trainer = {"logger": ["console", *backends], "default_local_dir": str(folder), "resume_mode": mode}
    return OmegaConf.create({"trainer": trainer})


def started(folder: Path, *backends: str, mode: str = "auto") -> dict[str, str]:
    for name in NAMES:
        os.environ.pop(name, None)
    keep_run(config(folder, *backends, mode=mode))
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_run_that_goes_on_goes_on_in_its_trackers_and_another_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert started(folder) == {} and not folder.exists()
    first = started(folder, "wandb", "swanlab")
    assert (
        first["WANDB_RUN_ID"] == first["SWANLAB_RUN_ID"] and first["WANDB_RESUME"] == first["SWANLAB_RESUME"] == "allow"
    )
    assert len(first["SWANLAB_RUN_ID"]) == 21 and first["SWANLAB_RUN_ID"].isalnum()
    second = started(folder, "wandb")
    assert second["WANDB_RUN_ID"] != first["WANDB_RUN_ID"], "nothing was saved: it begins again"
    step = step_folder(folder, 1)
    step.mkdir()
    (step / "weights").write_text("w")
    mark_complete(step, 1)
    assert started(folder, "wandb") == second
    assert started(folder, "wandb", mode="disable")["WANDB_RUN_ID"] != second["WANDB_RUN_ID"]
    os.environ["WANDB_RUN_ID"] = "mine"
    del os.environ["WANDB_RESUME"]
    keep_run(config(folder, "wandb"))
    assert os.environ["WANDB_RUN_ID"] == "mine" and "WANDB_RESUME" not in os.environ


@pytest.mark.parametrize("content", [b"", b"v0\n", b"\xff", b"v\0" + b"0" * 19, None])
def test_a_name_that_nobody_gave_is_no_name(tmp_path: Path, content: bytes | None) -> None:
    step = step_folder(tmp_path, 1)
    step.mkdir()
    (step / "weights").write_text("w")
    mark_complete(step, 1)
    place = tmp_path / TRACKED_RUN
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    assert re.fullmatch("v[0-9a-f]{20}", started(tmp_path, "wandb")["WANDB_RUN_ID"])


def test_of_one_logger_the_name_is_what_counts(tmp_path: Path) -> None:
    alone = OmegaConf.create({"trainer": {"logger": "vemlp_wandb", "default_local_dir": str(tmp_path)}})
    keep_run(alone)
    assert "WANDB_RUN_ID" not in os.environ


def test_a_tracker_that_fails_costs_its_pictures(caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []
    writer = SimpleNamespace(add_images=lambda *pictures: got.append(pictures))
    broken = SimpleNamespace(writer=SimpleNamespace(add_images=None))
    send(SimpleNamespace(logger={"tensorboard": broken}), SHOWN, 3)
    assert "tensorboard did not take the pictures of step 3" in caplog.text
    send(SimpleNamespace(logger={"console": object(), "tensorboard": SimpleNamespace(writer=writer)}), SHOWN, 3)
    ((key, pictures, step),) = got
    assert key == KEY and step == 3 and pictures.shape == (2, 3, 32, 64)
    send(None, SHOWN, 3)


def test_wandb_gets_pictures_of_the_named_run(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = started(tmp_path, "wandb")["WANDB_RUN_ID"]
    with wandb.init(project="p", mode="offline", dir=str(tmp_path)) as live:
        assert live.id == run
        send(SimpleNamespace(logger={"wandb": wandb}), SHOWN, 3)
        folder = Path(live.dir)
    assert len(list(folder.rglob("media/images/**/*.png"))) == 2


def test_swanlab_gets_pictures_of_the_named_run(tmp_path: Path) -> None:
    swanlab = pytest.importorskip("swanlab")
    run = started(tmp_path, "swanlab")["SWANLAB_RUN_ID"]
    live = swanlab.init(project="p", mode="offline", logdir=str(tmp_path / "swan"))
    send(SimpleNamespace(logger={"swanlab": swanlab}), SHOWN, 3)
    swanlab.finish()
    assert live.id == run and len(list((tmp_path / "swan").rglob("*.png"))) == 2


def test_mlflow_gets_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with mlflow.start_run():
        send(SimpleNamespace(logger={"mlflow": object()}), SHOWN, 3)
    assert len({path.name.split("%")[0] for path in tmp_path.rglob("*.png")}) >= 2


_TRACKIO = """
from verl.utils.tracking import Tracking
from tests.stages.test_trackers import SHOWN
from verl_uae.stages.common.trackers import send
tracking = Tracking("p", "e", ["trackio"], {})
send(tracking, SHOWN, 3)
tracking.finish()
"""


def test_trackio_gets_pictures(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    # It reads where to write when it is imported.
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", _TRACKIO], env=environment, cwd=ROOT, check=True, timeout=300)
    assert len(list(tmp_path.rglob("*.png"))) == 2

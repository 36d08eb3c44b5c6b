# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What verl's loggers do not do for trackers of experiments: pictures, and one run for all parts of a resumed one."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from verl_uae.checkpoints.names import TRACKED_RUN
from verl_uae.checkpoints.step import complete_steps
from verl_uae.data.images import to_tensor
from verl_uae.errors import describe
from verl_uae.files import write_text
from verl_uae.text import encodable

logger = logging.getLogger(__name__)

#: Of the pictures, for a tracker.
KEY = "panel/source_and_reconstruction"

#: Variables that say which run of a tracker a process goes on with, and that it may.
_SAME_RUN = {
    "wandb": {"WANDB_RUN_ID": "{run}", "WANDB_RESUME": "allow"},
    "swanlab": {"SWANLAB_RUN_ID": "{run}", "SWANLAB_RESUME": "allow"},
}

#: Bytes of the name of a run; SwanLab takes 21 small letters and digits, of which this leaves out one.
_NAME_BYTES = 10
_RUN = re.compile(rf"v[0-9a-f]{{{2 * _NAME_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture with its text."""

    picture: Image.Image
    text: str


def keep_run(config: DictConfig) -> None:
    """Name the run of this folder for W&B and SwanLab, before verl starts them: a run that goes on from a step of the
    folder goes on there too, and any other is a new one. What the user has set in the environment holds."""
    names = config.trainer.logger
    backends = _SAME_RUN.keys() & ({names} if isinstance(names, str) else set(names))
    if not backends:
        return
    root = Path(config.trainer.default_local_dir)
    path, resumes = root / TRACKED_RUN, config.trainer.resume_mode != "disable" and root.is_dir()
    run = _tracked_run(path) if resumes and complete_steps(root) else None
    if run is None:
        run = "v" + secrets.token_hex(_NAME_BYTES)
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_text(path, run)
        except OSError as error:
            logger.warning("a resumed run will be another one for trackers: %s", error)
    for backend in backends:
        variables = _SAME_RUN[backend]
        if not variables.keys() & os.environ.keys():
            os.environ.update({name: value.format(run=run) for name, value in variables.items()})


def _tracked_run(path: Path) -> str | None:
    """The name in a file; None where there is none that :func:`keep_run` has written."""
    try:
        run = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return run if _RUN.fullmatch(run) else None


def send(tracking: Any, shown: Sequence[Shown], step: int) -> None:
    """Send pictures to every tracker that takes some.

    Args:
        tracking: verl's, or None.
        shown: the same number at every step.
        step: of the run.
    """
    for name, backend in getattr(tracking, "logger", {}).items():
        if name not in _SENDERS:
            continue
        try:
            _SENDERS[name](backend, shown, step)
        except Exception as error:
            # Fault boundary: a tracker is another machine's, and the panel is written.
            logger.warning("%s did not take the pictures of step %d: %s", name, step, describe(error))


def _tensorboard(backend: Any, shown: Sequence[Shown], step: int) -> None:
    import torch

    writer = getattr(backend, "writer", None)
    if writer is not None:
        pictures = [to_tensor([one.picture], (one.picture.height, one.picture.width)) for one in shown]
        writer.add_images(KEY, torch.cat(pictures), step)


def _wandb(backend: Any, shown: Sequence[Shown], step: int) -> None:
    import wandb

    backend.log({KEY: [wandb.Image(one.picture, caption=encodable(one.text)) for one in shown]}, step=step)


def _swanlab(backend: Any, shown: Sequence[Shown], step: int) -> None:
    import swanlab

    backend.log({KEY: [swanlab.Image(one.picture, caption=encodable(one.text)) for one in shown]}, step=step)


def _trackio(backend: Any, shown: Sequence[Shown], step: int) -> None:
    import trackio

    pictures = {f"{KEY}/{number}": trackio.Image(one.picture, encodable(one.text)) for number, one in enumerate(shown)}
    backend.log(data=pictures, step=step)


def _mlflow(backend: Any, shown: Sequence[Shown], step: int) -> None:
    import mlflow

    for number, one in enumerate(shown):
        mlflow.log_image(one.picture, key=f"{KEY}/{number}", step=step)


_SENDERS: dict[str, Callable[[Any, Sequence[Shown], int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "swanlab": _swanlab,
    "trackio": _trackio,
    "mlflow": _mlflow,
}

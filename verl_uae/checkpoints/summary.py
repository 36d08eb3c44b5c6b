# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a run has reached, and the lines about it that end a training command.

The trainer, which runs in a process of Ray, writes it into the folder of the run whenever something is validated or
saved; the command, which is the user's own process, reads it when the trainer is gone.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from verl_uae.checkpoints.names import RUN_PAGE, SUMMARY, step_name
from verl_uae.errors import CheckpointError
from verl_uae.files import write_text

#: Metrics of validation that the last lines are about; verl's name for what matters most.
_CORE = "val-core/"


@dataclass(slots=True)
class RunSummary:
    """What a run has reached."""

    stage: str
    total_steps: int
    step: int = 0
    """Steps that are done; at least so many where the trainer did not end by itself."""
    ended: bool = False
    """Whether the trainer came to the end of its loop or to an error; it may also have been killed."""
    saved: int | None = None
    """Newest step that was saved and is complete."""
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Metric of validation -> best value and its step."""
    last: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Metric of validation -> last value and its step."""
    panel: str | None = None
    """The newest panel."""
    metrics: str | None = None
    """The file of the metrics of all steps."""
    rows: str | None = None
    """A data file with pictures to try the model on."""

    def note_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a validation."""
        for name, value in metrics.items():
            if not name.startswith(_CORE):
                continue
            self.last[name] = (float(value), step)
            known, sign = self.best.get(name), -1 if "loss" in name else 1
            if known is None or sign * value > sign * known[0]:
                self.best[name] = self.last[name]

    def write(self, folder: Path) -> None:
        """Write it into the folder of the run, where it appears whole."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not write_json: a metric may be no number.
        write_text(folder / SUMMARY, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunSummary | None:
        """The summary of a run; None where it wrote none. Raises `CheckpointError`: the file is damaged."""
        path = folder / SUMMARY
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name in ("best", "last"):
                content[name] = {key: (float(value), int(step)) for key, (value, step) in content[name].items()}
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(path, f"cannot be read: {error!r}") from error


def last_lines(summary: RunSummary, folder: str, seconds: float, *, done: bool, save_freq: int) -> list[str]:
    """The lines that end a training command of so many seconds, in the folder ``trainer.default_local_dir`` as the user
    wrote it; ``done`` where the run came to its end."""
    end = f"{'' if summary.ended else 'at least '}{summary.step} of {summary.total_steps} steps"
    rows: list[tuple[str, str]] = []
    for name, (value, step) in summary.last.items():
        best, at = summary.best[name]
        rows.append(("validation", f"{name}: best {best:.4g} at step {at}, last {value:.4g} at step {step}"))
    if not rows:
        rows.append(("validation", "none was finished; see trainer.test_freq and trainer.val_before_train"))
    rows.append(("panel", summary.panel or "none: there was no validation with probes"))
    if (page := Path(folder) / RUN_PAGE).is_file():
        rows.append(("page", str(page)))
    if summary.metrics is not None:
        rows.append(("metrics", summary.metrics))
    if summary.saved is not None:
        checkpoint = Path(folder) / step_name(summary.saved)
        export, sample = _commands(summary, checkpoint)
        rows += [("checkpoint", str(checkpoint)), ("use it", export), ("", sample)]
    else:
        reason = f"trainer.save_freq={save_freq} saves nothing; trainer.save_freq=N saves every N steps and at the end"
        if save_freq > 0:
            reason = "there was no step to save" if done else f"trainer.save_freq={save_freq}, and it ended before"
        rows.append(("checkpoint", f"none: {reason}"))
    head = f"verl_uae: stage {summary.stage} {'done' if done else 'FAILED'}: {end} in {duration(seconds)}"
    return [head, *(f"  {name:<12}{text}" for name, text in rows)]


def duration(seconds: float) -> str:
    """Seconds for people."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def executable() -> list[str]:
    """How the command ``verl-uae`` of this environment is called from here."""
    own = Path(sys.executable).with_name("verl-uae")
    found = shutil.which("verl-uae")
    if found is not None and (not own.is_file() or Path(found).resolve() == own.resolve()):
        return ["verl-uae"]
    if own.is_file():
        return [os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)]
    return [sys.executable, "-m", "verl_uae.cli"]


def shown(words: Sequence[str | Path]) -> str:
    """A command of ``verl-uae`` as it can be pasted into a shell."""
    return shlex.join([*executable(), *map(str, words)])


def _commands(summary: RunSummary, checkpoint: Path) -> list[str]:
    number, model = 1, checkpoint.parent / f"model_{summary.saved}"
    # An export overwrites nothing.
    while os.path.lexists(model):
        number, model = number + 1, checkpoint.parent / f"model_{summary.saved}_{number + 1}"
    export: list[str | Path] = ["export", checkpoint, "--out", model]
    what = ["--prompt", "a red circle"] if summary.rows is None else ["--rows", summary.rows]
    return [shown(export), shown(["sample", model, *what, "--out", f"{model}_samples"])]

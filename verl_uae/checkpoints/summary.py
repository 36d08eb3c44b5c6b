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

from verl_uae.checkpoints.names import ACTOR, HUGGINGFACE, SUMMARY, step_name
from verl_uae.errors import CheckpointError
from verl_uae.files import write_text

#: Metrics of validation that the last lines are about; verl's name for what matters most.
_CORE = "val-core/"

_WIDTH = 12


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
            entry = (float(value), step)
            self.last[name] = entry
            known = self.best.get(name)
            better = known is None or (value < known[0] if lower_is_better(name) else value > known[0])
            if better:
                self.best[name] = entry

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


def lower_is_better(metric: str) -> bool:
    """Whether a metric of validation is a loss."""
    return "loss" in metric


def last_lines(summary: RunSummary, folder: str, seconds: float, *, done: bool, save_freq: int) -> list[str]:
    """The lines that end a training command of so many seconds, in the folder ``trainer.default_local_dir`` as the user
    wrote it; ``done`` where the run came to its end."""
    least = "" if summary.ended else "at least "
    end = f"{least}{summary.step} of {summary.total_steps} steps"
    lines = [f"verl_uae: stage {summary.stage} {'done' if done else 'FAILED'}: {end} in {duration(seconds)}"]
    lines += [_line("validation", text) for text in _validations(summary)]
    lines.append(_line("panel", summary.panel or "none: there was no validation with probes"))
    if summary.metrics is not None:
        lines.append(_line("metrics", summary.metrics))
    if summary.saved is None:
        lines.append(_line("checkpoint", f"none: {_unsaved(save_freq, done)}"))
        return lines
    checkpoint = Path(folder) / step_name(summary.saved)
    lines.append(_line("checkpoint", str(checkpoint)))
    lines += [
        _line("use it" if number == 0 else "", text) for number, text in enumerate(_commands(summary, checkpoint))
    ]
    return lines


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


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}"


def _validations(summary: RunSummary) -> list[str]:
    if not summary.last:
        return ["none: trainer.test_freq and trainer.val_before_train ask for none"]
    lines = []
    for name, (value, step) in summary.last.items():
        best, at = summary.best[name]
        lines.append(f"{name}: best {best:.4g} at step {at}, last {value:.4g} at step {step}")
    return lines


def _unsaved(save_freq: int, done: bool) -> str:
    if save_freq > 0:
        return "there was no step to save" if done else f"trainer.save_freq={save_freq}, and it failed before"
    return f"trainer.save_freq={save_freq} saves nothing; trainer.save_freq=N saves every N steps and at the end"


def _commands(summary: RunSummary, checkpoint: Path) -> list[str]:
    model = _free(checkpoint.parent / f"model_{summary.saved}")
    export: list[str | Path] = ["export", checkpoint, "--out", model]
    captioner = checkpoint / ACTOR
    if captioner.is_dir() and not any((captioner / HUGGINGFACE).glob("*.safetensors")):
        export.append("--merge-captioner")
    if summary.rows is not None:
        what: list[str | Path] = ["--rows", summary.rows]
    else:
        what = ["--prompt", "a red circle"]
    return [shown(export), shown(["sample", model, *what, "--out", f"{model}_samples"])]


def _free(path: Path) -> Path:
    """The path, or the first with a number behind it that does not exist yet: an export overwrites nothing."""
    number, found = 1, path
    while os.path.lexists(found):
        number, found = number + 1, path.with_name(f"{path.name}_{number + 1}")
    return found

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint of a run can be trusted.

verl rewrites its tracker file in place and writes a step folder file by file, so a process killed meanwhile leaves
an empty tracker or half a folder. A marker (:mod:`verl_uae.checkpoints.step`) says that a folder is complete; on resume
the tracker is made to name the newest complete one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.names import ENCODER_FOLDER, EXPORT_FOLDER, MARKER, POLICY_FOLDER, TRACKER, step_name, step_of
from verl_uae.checkpoints.record import RunRecord
from verl_uae.checkpoints.step import check_step, is_complete, mark_complete
from verl_uae.files import write_text

logger = logging.getLogger(__name__)

#: Keys of ``trainer`` that make verl remove steps.
_KEEP = ("max_actor_ckpt_to_keep", "remove_previous_ckpt_in_save")


class StepFolders(RunRecord):
    """Mixin of trainers: where step folders are, and what finishes one."""

    config: Any
    global_steps: int
    train_dataloader: Any

    @property
    def _checkpoint_root(self) -> Path:
        return Path(self.config.trainer.default_local_dir).absolute()

    def _step_folder(self) -> Path:
        return step_folder(self._checkpoint_root, self.global_steps)

    def _resume_folder(self) -> Path | None:
        """The step folder this run goes on from, checked; None at the beginning.

        Raises:
            CheckpointError: the folder is not what its marker says.
        """
        trainer, root = self.config.trainer, self._checkpoint_root
        folder = None
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path).absolute()
        elif trainer.resume_mode == "auto" and root.is_dir():
            step = repair_tracker(root)
            folder = None if step is None else step_folder(root, step)
        if folder is not None:
            check_resumed(folder, digests=self.config.uae.checkpoint.digests)
        return folder

    def _finish_step(self) -> None:
        """Write what the step folder says of the run, mark it complete, its files being all there; then remove what is
        older than wanted."""
        self.save_record(self._step_folder())
        digests = self.config.uae.checkpoint.digests
        mark_complete(self._step_folder(), self.global_steps, digests=digests)
        self.note_saved()
        prune_steps(self._checkpoint_root, self.global_steps, self.config.trainer)


class DecoderCheckpoints(RunRecord):
    """Mixin of trainers: the trained decoder's part of a step folder."""

    config: Any
    global_steps: int
    total_training_steps: int
    policy: Any
    """The decoder's workers, a :class:`~verl_uae.stages.u4g.group.DecoderTrainingGroup`."""

    def save_policy(self, folder: Path) -> None:
        """Checkpoint of the decoder into a step folder, and the decoder folder that others load."""
        clear_exports(folder)
        self.policy.save(str(folder / POLICY_FOLDER), self.global_steps)
        uae = self.config.uae
        wanted = uae.checkpoint.export == "every" or self.global_steps >= self.total_training_steps
        if wanted and "diffusers" in uae.policy.save_contents:
            self.policy.export(str(folder / EXPORT_FOLDER), self.inference)

    def load_policy(self, folder: Path) -> None:
        """Inverse of :meth:`save_policy`."""
        self.policy.load(str(folder / POLICY_FOLDER))


def unmark(folder: Path) -> None:
    """Say that a step folder is not complete, before its files are written again.

    The sizes that an old marker names would fit a mixture of old and new files.
    """
    _clear(folder / MARKER)


def clear_exports(folder: Path) -> None:
    """Remove the folders for use elsewhere from a step folder that is written again.

    A run that was killed while saving leaves them, or an earlier run in the same place; they appear by rename, onto
    nothing.
    """
    unmark(folder)
    for name in (EXPORT_FOLDER, ENCODER_FOLDER):
        for old in (*folder.glob(name), *folder.glob(f"{name}.part-*")):
            shutil.rmtree(old)


@contextlib.contextmanager
def verl_keeps_all(config: Any) -> Iterator[None]:
    """Around verl's own saving: it removes the step before as soon as the captioner's part of the new one is written,
    and a kill before the rest is there would leave no complete step. :func:`prune_steps` removes it later.
    """
    before = {key: config.trainer[key] for key in _KEEP if key in config.trainer}
    config.trainer.update(dict.fromkeys(before))
    try:
        yield
    finally:
        config.trainer.update(before)


def prune_steps(root: Path, step: int, trainer: Any) -> None:
    """Remove old step folders, once the folder of ``step`` is complete.

    Steps above ``step`` stay: they are of another run in this place, or this one went back to an earlier step.

    Args:
        root: folder of the step folders.
        step: the one that was just marked complete; it always stays.
        trainer: section ``trainer``: the newest ``max_actor_ckpt_to_keep`` complete steps stay, all where that is null;
            one with the older key ``remove_previous_ckpt_in_save``.
    """
    keep = 1 if trainer.get("remove_previous_ckpt_in_save") else trainer.get("max_actor_ckpt_to_keep")
    if not keep or not is_complete(step_folder(root, step)):
        return
    kept = {number for number in complete_steps(root) if number <= step}
    kept = set(sorted(kept)[-int(keep) :])
    for number, folder in step_folders(root):
        if number < step and number not in kept and not folder.is_symlink():
            # Without its marker first: a folder that is half removed is not taken for a complete one.
            unmark(folder)
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                logger.warning("%s is older than wanted and could not be removed", folder)


@dataclass(frozen=True)
class SavedState:
    """A data loader as it was; all that saving a checkpoint asks of one."""

    state: dict

    def state_dict(self) -> dict:
        return self.state


def check_resumed(folder: Path, *, digests: bool) -> None:
    """Before a run goes on from a step folder: say that it has no marker, refuse one that is not what its marker says.

    Args:
        folder: of the step.
        digests: compare the SHA-256 of every file too.

    Raises:
        CheckpointError: naming the marker or the first file that is missing, has another size or was altered.
    """
    if not os.path.lexists(folder / MARKER):
        logger.warning("%s is not marked complete: it may lack a part, or come from a run that was killed", folder)
        return
    check_step(folder, digests=digests)


def step_folder(root: Path, step: int) -> Path:
    """Folder of a step, as verl names it."""
    return root / step_name(step)


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """Steps and their folders, complete or not, in ascending order; other names are left out."""
    found = [(step, path) for path in root.iterdir() if (step := step_of(path)) is not None and path.is_dir()]
    return sorted(found)


def complete_steps(root: Path) -> list[int]:
    """Steps with a complete folder, in ascending order."""
    return [step for step, folder in step_folders(root) if is_complete(folder)]


def repair_tracker(root: Path) -> int | None:
    """Make verl's tracker name the newest complete checkpoint, whatever lies in its place.

    Returns:
        That step, or None if there is none; then the tracker is removed, and training starts from the beginning.
    """
    steps = complete_steps(root)
    tracker = root / TRACKER
    there, named = os.path.lexists(tracker), _read_tracker(tracker)
    if not steps:
        if there:
            logger.warning("no complete checkpoint in %s (tracker: %r): starting from the beginning", root, named)
            _clear(tracker)
        return None
    if named != str(steps[-1]):
        logger.warning("checkpoint tracker in %s says %r; the newest complete step is %d", root, named, steps[-1])
        _clear(tracker)
        write_text(tracker, str(steps[-1]), sync=True)
    return steps[-1]


def _read_tracker(tracker: Path) -> str:
    """The beginning of the tracker's text; empty where it is not a file that can be read."""
    try:
        if not tracker.is_file():
            return ""
        with open(tracker, "rb") as file:
            return file.read(80).decode("utf-8", errors="backslashreplace").strip()
    except OSError:
        return ""


def _clear(path: Path) -> None:
    """Make room for a file; a folder in its place is kept under another name."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.folder-{time.time_ns()}"))
    else:
        path.unlink(missing_ok=True)

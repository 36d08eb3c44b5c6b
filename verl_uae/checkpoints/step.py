# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which step folders of a run are complete, and which one it goes on from.

verl rewrites its tracker file in place and writes a step folder file by file, so a process killed meanwhile leaves an
empty tracker or half a folder. A marker says which files make a folder complete. It is written last and published by
rename: a folder without it, or with files of other sizes, comes from a run that was killed. With digests it also tells
files that were altered since, or are of another run. It tells damage, not forgery: whoever can write the folder can
write its marker. On resume the tracker is made to name the newest complete folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from verl_uae.checkpoints.manifest import digests as digests_of
from verl_uae.checkpoints.names import CAPTIONER, EXPORT_FOLDER, MARKER, TRACKER, step_name, step_of
from verl_uae.checkpoints.source import refuse_renamed
from verl_uae.errors import CheckpointError
from verl_uae.files import PARTIAL, to_disk, write_json, write_text
from verl_uae.text import parse_json
from verl_uae.versions import __version__

logger = logging.getLogger(__name__)

#: Longest marker that is read, bytes; one of 100,000 files has 15 million.
_MAX_MARKER = 64 << 20
_LONGEST_REASON = 200
"""Characters."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What a marker says."""

    step: int
    files: Mapping[str, tuple[int, str | None]]
    """Name in the folder -> size in bytes and SHA-256; None where the run wrote no digests."""


def mark_complete(folder: Path, step: int, *, digests: bool = True) -> None:
    """Say that the folder of a step is complete: its files with their sizes are on disk; with ``digests`` every file is
    read once more for its SHA-256."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != PARTIAL and path != folder / MARKER
    )
    for name in names:
        to_disk(folder / name)
    files: dict[str, Any] = {name: (folder / name).stat().st_size for name in names}
    if digests:
        found = digests_of(folder, names)
        files = {name: {"size": size, "sha256": found[name]} for name, size in files.items()}
    write_json(folder / MARKER, {"verl_uae": __version__, "step": step, "files": files}, sync=True)


def read_marker(folder: Path) -> Marker:
    """The marker of a step folder. Raises `CheckpointError`: there is none, or it is not one that :func:`mark_complete`
    writes."""
    path = folder / MARKER
    if not os.path.isdir(folder):
        raise CheckpointError(folder, "there is no such folder")
    if not os.path.isfile(path):
        reason = f"not a complete checkpoint: a save that came to its end writes {MARKER} into it"
        within = sorted((step_of(found.parent) or 0, found.parent.name) for found in folder.glob(f"*/{MARKER}"))
        if (folder.parent / MARKER).is_file():
            reason += f"; the step folder is {folder.parent}"
        elif within:
            reason += f"; a step folder within it is {within[-1][1]}"
        raise CheckpointError(folder, reason)
    try:
        with open(path, "rb") as file:
            content = parse_json(file.read(_MAX_MARKER).decode("utf-8"))
        files = {str(name): _facts(entry) for name, entry in content["files"].items()}
        marker = Marker(_whole(content["step"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Not its repr, which may quote all of the marker.
        reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        raise CheckpointError(path, f"not a complete checkpoint: its marker cannot be read ({reason})") from error
    outside = [name for name in files if not _is_inside(name)]
    if outside or not files:
        raise CheckpointError(path, f"names files outside its folder: {outside[:4]}" if files else "names no file")
    return marker


def is_complete(folder: Path) -> bool:
    """Whether every file the marker names is there with its size."""
    try:
        check_step(folder, digests=False)
    except CheckpointError:
        return False
    return True


def check_step(folder: Path, *, digests: bool = True) -> Marker:
    """Check the folder of a step against its marker. With ``digests`` the SHA-256 of every file is compared too, which
    reads all of them, and shards that are not named are refused. Raises `CheckpointError`: naming the marker, or the
    first file that is missing, has another size, was altered or is not of this step."""
    marker = read_marker(folder)
    for name, (size, _) in marker.files.items():
        if _size(folder / name) != size:
            raise CheckpointError(folder / name, f"missing or not of the {size} bytes that {MARKER} names")
    if not digests:
        return marker
    number = step_of(folder)
    if number is not None and number != marker.step:
        raise CheckpointError(folder / MARKER, f"is of step {marker.step}, the folder is called {folder.name}")
    for path in sorted(folder.rglob("*.pt")):
        # verl would load the shards that another run, with other ranks, left here, and they are pickles.
        if path.relative_to(folder).as_posix() not in marker.files:
            raise CheckpointError(path, f"{MARKER} does not name it, so it is of another run: move it away")
    wanted = {name: digest for name, (_, digest) in marker.files.items() if digest is not None}
    try:
        found = digests_of(folder, list(wanted))
    except OSError as error:
        raise CheckpointError(folder, f"cannot be read: {error}") from error
    for name, digest in wanted.items():
        if found[name] != digest:
            reason = f"altered, or of another run: its SHA-256 is not the one in {MARKER}; use another step"
            raise CheckpointError(folder / name, reason)
    return marker


def unmark(folder: Path) -> None:
    """Say that a step folder is not complete, before its files are written again: the sizes that an old marker names
    would fit a mixture of old and new files."""
    _clear(folder / MARKER)


def clear_exports(folder: Path) -> None:
    """Remove the folders for use elsewhere from a step folder that is written again; they appear by rename, onto
    nothing. A run that was killed while saving leaves them, or an earlier run in the same place."""
    unmark(folder)
    for name in (EXPORT_FOLDER, CAPTIONER):
        for old in (*folder.glob(name), *folder.glob(f"{name}.part-*")):
            shutil.rmtree(old)


def prune_steps(root: Path, step: int, trainer: Any) -> None:
    """Remove old step folders of a run, once the folder of ``step``, which always stays, is complete.

    Steps above it stay: they are of another run in this place, or this one went back to an earlier step. Of those up to
    it the newest ``trainer.max_actor_ckpt_to_keep`` complete ones stay, all where that is null; one with the older key
    ``remove_previous_ckpt_in_save``.
    """
    keep = 1 if trainer.get("remove_previous_ckpt_in_save") else trainer.get("max_actor_ckpt_to_keep")
    if not keep or not is_complete(step_folder(root, step)):
        return
    kept = [number for number in complete_steps(root) if number <= step][-int(keep) :]
    for number, folder in step_folders(root):
        if number < step and number not in kept and not folder.is_symlink():
            # Without its marker first: a folder that is half removed is not taken for a complete one.
            unmark(folder)
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                logger.warning("%s is older than wanted and could not be removed", folder)


def check_resumed(folder: Path, *, digests: bool) -> None:
    """Before a run goes on from a step folder: say that it has no marker, refuse one that is not what its marker says;
    see `check_step`."""
    refuse_renamed(folder)
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
    """Make verl's tracker name the newest complete checkpoint, whatever lies in its place, and return its step; None if
    there is none: then the tracker is removed, and training starts from the beginning."""
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


def _size(path: Path) -> int | None:
    """Size of a file; None where there is none, or no file can have that name."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def _facts(entry: Any) -> tuple[int, str | None]:
    return (_whole(entry["size"]), str(entry["sha256"])) if isinstance(entry, dict) else (_whole(entry), None)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of steps or bytes")
    return value


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


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

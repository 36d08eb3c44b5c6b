# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a process is scoring, written down so that it can be read when the process is dead.

A reward that crashes its process (a segmentation fault, ``os._exit``, the out-of-memory killer) raises nothing: only
what was written before can name it. The note is a small file of the machine, kept by the system when a process goes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a note.
SIZE = 1000

_lock = threading.Lock()
_entries: dict[int, str] = {}
_file: int | None = None


def note_of(pid: int) -> Path:
    """File of a process of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"verl_uae_doing_{os.getuid()}_{pid}"


def write_notes() -> None:
    """Keep a note of this process from now on."""
    global _file
    with _lock:
        if _file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            _file = os.open(note_of(os.getpid()), flags, 0o600)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Around what may take the process with it; several at a time, from several threads."""
    if _file is None:
        yield
        return
    entry = object()
    try:
        _note(id(entry), what)
        yield
    finally:
        _note(id(entry), None)


def _note(key: int, what: str | None) -> None:
    with _lock:
        if what is None:
            _entries.pop(key, None)
        else:
            _entries[key] = what
        if _file is not None:
            text = "; ".join(_entries.values()).encode("utf-8", "replace")[:SIZE]
            os.pwrite(_file, text.ljust(SIZE), 0)


def last_words(pid: int) -> str:
    """What a dead process was doing, and empty if that is not known; its note is removed."""
    path = note_of(pid)
    try:
        text = path.read_bytes().decode("utf-8", "replace").strip()
        path.unlink()
    except OSError:
        return ""
    return text

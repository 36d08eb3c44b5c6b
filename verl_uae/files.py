# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Files as they are written and read: whole or not at all, and never one that would be waited for.

What is written appears under another name beside its place and is renamed once it is complete. Whoever reads, and
whatever is killed, finds the old content or the new one, never half of it. After an error nothing is left; after a kill
there may be a temporary file whose name ends with :data:`PARTIAL`, which nothing reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from verl_uae.errors import CheckpointError

#: Ending of temporary files.
PARTIAL = ".part"

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

LFS_POINTER = "is a pointer of Git LFS and not the file itself: install git-lfs and run `git lfs pull` in its clone"
"""What is wrong with a file of which :func:`is_lfs_pointer` holds."""


@contextlib.contextmanager
def published(*paths: Path, sync: bool = True, beside: Path | None = None) -> Iterator[list[Path]]:
    """Yield a temporary path for each given one; rename all of them, in order, once the block has succeeded.

    Processes and threads may publish the same file at once: each has temporary files of its own. Those that the block
    did not create are skipped.

    Args:
        paths: what appears; the folders must exist.
        sync: bring each file to the disk before the first is renamed, so that a crash of the machine leaves no half.
        beside: a path of the same file system whose folder takes the temporary files; None: each goes beside its own.

    Raises:
        OSError: the file system refused something.
    """
    temporary = [(beside or path).with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}") for path in paths]
    try:
        yield temporary
        written = [(source, path) for source, path in zip(temporary, paths, strict=True) if source.exists()]
        for source, _ in written:
            if sync:
                to_disk(source)
        for source, path in written:
            os.replace(source, path)
    finally:
        for source in temporary:
            source.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, sync: bool = False, beside: Path | None = None) -> None:
    """Publish a file of these bytes; the arguments are those of :func:`published`."""
    with published(path, sync=sync, beside=beside) as (temporary,):
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Publish a text in UTF-8; what UTF-8 cannot hold, such as a byte of a file name, is written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)


def write_json(path: Path, content: Any, *, sync: bool = False) -> None:
    """Publish a JSON document for programs and people.

    Raises:
        ValueError: it holds a number that is not finite, which JSON has no word for.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", sync=sync)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, which is begun if it is missing. A kill may leave half of the last line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def publish_folder(build: Callable[[Path], None], out: str | Path) -> None:
    """Build a folder beside its place and rename it there once it is on disk.

    Killed at any point, ``out`` is either absent or complete; what is left over is called ``<out>.part-<pid>``.

    Args:
        build: fills the empty folder it is given.
        out: must not exist.

    Raises:
        CheckpointError: ``out`` exists, or the file system refused something, or ``build`` did: files that it wrote are
            named by the place that they would have had.
    """
    target = Path(out).absolute()
    partial = target.with_name(f"{target.name}.part-{os.getpid()}")
    if os.path.lexists(target):
        raise CheckpointError(target, "exists already; name another folder, or remove it first")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        for path in (*partial.rglob("*"), partial):
            if path.is_file() or path.is_dir():
                to_disk(path)
        os.replace(partial, target)
        to_disk(target.parent)
    except OSError as error:
        raise CheckpointError(target, f"cannot be written: {error}") from error
    except CheckpointError as error:
        where, why = (text.replace(str(partial), str(target)) for text in (str(error.path), error.message))
        raise CheckpointError(where, why) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to be read. A pipe, a device or a socket is refused: the first would be waited for, the next read
    for ever.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    # Non-blocking: opening a pipe would wait for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins like this stands for another: what a clone without git-lfs has in its place."""
    return start.startswith(_LFS_POINTER)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

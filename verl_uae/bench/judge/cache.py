# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Raw answers on disk, so that an interrupted run goes on and nothing is paid for twice.

One JSON line per answer, appended and never changed, under the digest of the whole request: address, model, parameters,
prompt, pictures and order. Answers that cannot be parsed are kept too: asking again until a judge says something else
would bias the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from verl_uae.bench.judge.contest import Picture
from verl_uae.bench.judge.judges import Judge
from verl_uae.errors import ConfigError


def request_key(judge: Judge, parts: Sequence[str | Picture], side: int) -> str:
    """SHA-256 of everything that an answer depends on; pictures enter by the digest of their pixels.

    Args:
        judge: its name does not count.
        parts: of the question, in the order shown.
        side: longest side that pictures are sent with, pixels.
    """
    content = [part if isinstance(part, str) else {"picture": part.digest, "side": side} for part in parts]
    request = {"url": judge.url, "settings": judge.settings(), "content": content}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by `request_key`; a context manager that holds the file against other processes.

    Args:
        path: JSON lines; made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.damaged = 0
        """Lines that are no entry, such as one that a kill cut short."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> AnswerCache:
        """Open and read.

        Raises:
            ConfigError: the file cannot be opened, or another process writes to it.
        """
        try:
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise ConfigError("answers", f"cannot open {self.path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError("answers", f"{self.path} is in use by another process") from error
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        line = b"\n"
        for line in self._file:
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                self.damaged += 1
                continue
            if isinstance(key, str) and isinstance(answer, dict):
                self.answers.setdefault(key, answer)
            else:
                self.damaged += 1
        if not line.endswith(b"\n"):
            # Cut short by a kill: the next entry starts a line of its own.
            self._file.write(b"\n")

    def add(self, key: str, answer: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Append an answer and see it onto the disk.

        Args:
            key: of the request.
            answer: body of the response.
            about: for the reader of the file: judge, picture, order.
        """
        assert self._file is not None, "the cache is not open"
        line = json.dumps({"key": key, **about, "answer": answer}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers.setdefault(key, answer)

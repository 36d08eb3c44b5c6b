# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every error the package raises on purpose.

A failed *sample* is not an error: it is data (see :mod:`verl_uae.reward.record`). These are for what should stop
the run or the command, and each names the key, file, row or term to look at. All survive pickling, so that they
cross process borders unchanged.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: How a URL begins. One that was taken for a path has lost a slash of ``https://``.
_URL = r"\b(?:\w[\w+.-]*://|https?:/)"
#: After the beginning: user and password, and the query up to the punctuation of the sentence that names the URL.
_USER = re.compile(rf"({_URL})[^/\s@]+@")
_QUERY = re.compile(rf"({_URL}[^\s?]+\?)\S+?(?=[:,;'\")\]]*(?:\s|$))")


def without_credentials(text: str) -> str:
    """The text without user, password and query of the URLs in it, which may be signed."""
    return _QUERY.sub(r"\1...", _USER.sub(r"\1...@", text))


class UAEError(Exception):
    """Base class: ``except UAEError`` catches everything this package raises on purpose."""


class ConfigError(UAEError, ValueError):
    """A setting is impossible or unknown.

    Args:
        key: the full configuration key, such as ``uae.reward.terms[0].weight``.
        message: what is wrong and what would be right.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    def __str__(self) -> str:
        return without_credentials(f"{self.key}: {self.message}")


class DataError(UAEError):
    """A data file or one of its rows cannot be used.

    Args:
        path: the file.
        row: zero-based row index, or None where the whole file is meant.
        message: what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], row: int | None, message: str) -> None:
        super().__init__(path, row, message)
        self.path = Path(path)
        self.row = row
        self.message = message

    def __str__(self) -> str:
        where = str(self.path) if self.row is None else f"{self.path}, row {self.row}"
        return without_credentials(f"{where}: {self.message}")


class DecodeError(DataError):
    """The bytes of an image do not decode, or decode to something refused (size, format, mode)."""


class RewardError(UAEError):
    """A reward term cannot go on: not one sample of it failed, the term itself did.

    Args:
        term: label of the reward term.
        message: what is wrong.
    """

    def __init__(self, term: str, message: str) -> None:
        super().__init__(term, message)
        self.term = term
        self.message = message

    def __str__(self) -> str:
        return f"reward term {self.term!r}: {self.message}"


class DecoderError(UAEError):
    """A decoder rank is gone for good.

    Args:
        rank: number of the rank.
        message: what is wrong.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(rank, message)
        self.rank = rank
        self.message = message

    def __str__(self) -> str:
        return f"decoder rank {self.rank}: {self.message}"


class WorkerError(UAEError):
    """A process that the run cannot go on without has died, or does not answer.

    Args:
        who: the process, or what it was to do.
        message: what happened.
    """

    def __init__(self, who: str, message: str) -> None:
        super().__init__(who, message)
        self.who = who
        self.message = message

    def __str__(self) -> str:
        return f"{self.who}: {self.message}"


class StoppedError(UAEError):
    """The run was asked to stop, and has.

    Args:
        message: by whom.
    """


class TrainingError(UAEError):
    """Training goes on without learning anything.

    Args:
        message: what is wrong.
    """


class CheckpointError(UAEError):
    """A checkpoint folder is incomplete, altered or of another kind.

    Args:
        path: the folder or file.
        message: what is wrong with it.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(path, message)
        self.path = Path(path)
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def describe(error: BaseException) -> str:
    """What went wrong, in one line and without the traceback of a Ray actor: the first line of the message, with the
    second where the first is a heading."""
    cause, seen = error, {id(error)}
    while isinstance(inner := getattr(cause, "cause", None), BaseException) and id(inner) not in seen:
        cause = inner
        seen.add(id(inner))
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(cause).__name__}: {text}"

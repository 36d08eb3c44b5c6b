# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions of the pictures of a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from verl_uae.errors import DataError


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a JSON-lines file of ``{"file": path in the folder, "caption": text}``.

    Raises:
        DataError: naming the line, for anything else or a file named twice.
    """
    path = Path(path)
    captions: dict[str, str] = {}
    try:
        # A file's own lines: ``str.splitlines`` also cuts at separators that JSON allows within text.
        with path.open(encoding="utf-8") as stream:
            lines = list(stream)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, None, f"cannot read captions: {error}") from error
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(path, number, f"not JSON: {error}") from error
        file, caption = (entry.get("file"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not isinstance(caption, str):
            raise DataError(path, number, 'expected {"file": text, "caption": text}')
        if file in captions:
            raise DataError(path, number, f"file {file!r} has a caption already")
        captions[file] = caption
    return captions

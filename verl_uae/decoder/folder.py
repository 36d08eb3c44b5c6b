# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where the files of a model are."""

from __future__ import annotations

from pathlib import Path


def local_folder(path: str, subfolder: str = "") -> Path:
    """Folder with a model's files: the given one, or the hub's snapshot in the local cache.

    Args:
        path: folder or hub id.
        subfolder: part of it.

    Raises:
        OSError: a hub id that is not in the cache and cannot be fetched.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root / subfolder
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/*"] if subfolder else None
    return Path(snapshot_download(path, allow_patterns=patterns)) / subfolder

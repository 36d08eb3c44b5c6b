# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: a local folder or a hub repository at a revision, without code of its own.

A repository can bring Python files that transformers or diffusers would run (``auto_map``, custom pipelines). That is
refused unless it is asked for and the repository's revision is pinned to a full commit, so that what was read is what
runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.names import MODEL_INDEX
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.files import open_regular
from verl_uae.paths import hub_errors, is_hub_id, model_source, reason_of
from verl_uae.text import parse_json
from verl_uae.waiting import saying

#: Libraries whose classes a ``model_index.json`` may name.
_LIBRARIES = ("diffusers", "transformers", "verl_uae")

#: Every configuration in which transformers looks for ``auto_map``.
_CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def local_folder(
    source: str | Path, *, revision: str | None = None, parts: Sequence[str] = (), remote_code: bool = False
) -> Path:
    """The folder of a model, fetched from the hub if it is not a local one.

    Args:
        source: local folder, or hub id ``owner/name``.
        revision: commit, tag or branch of the hub repository.
        parts: subfolders that are needed; all files if empty. Pickles are never fetched.
        remote_code: accept Python code that the repository brings.

    Returns:
        A local folder, with a check that it needs no code of its own or that this was asked for.

    Raises:
        CheckpointError: there is no such model, or it brings code.
        ConfigError: code is accepted without a pinned revision, or a local folder is given one.
    """
    check_pin(remote_code, revision)
    source = model_source(source)
    folder = Path(source)
    if not is_hub_id(source):
        if revision is not None:
            raise ConfigError("--revision", f"{source} is a local folder and has no revision")
    else:
        folder = _fetched(source, revision, parts)
    if not remote_code:
        refuse_code(folder)
    return folder


def refuse_code(folder: Path) -> None:
    """Refuse a folder that would have a library run Python code of its own.

    Raises:
        CheckpointError: naming the configuration file that asks for it.
    """
    if code := brought_code(folder):
        raise CheckpointError(folder / code[0], "needs Python code of its own (trust_remote_code), which is refused")


def check_pin(remote_code: bool, revision: str | None) -> None:
    """Refuse remote code of a revision that can move.

    Raises:
        ConfigError: ``revision`` is not a full commit of 40 hexadecimal digits.
    """
    if remote_code and not (revision and _COMMIT.fullmatch(revision)):
        raise ConfigError(
            "--trust-remote-code", f"needs --revision with a commit of 40 hexadecimal digits, got {revision}"
        )


def brought_code(folder: Path) -> list[str]:
    """Configuration files of a folder and its components that make loaders run Python code of the repository."""
    files = [path for name in _CONFIGS for path in (folder / name, *folder.glob(f"*/{name}"))]
    found = [path for path in files if path.is_file() and _asks_for_code(read_object(path))]
    index = folder / MODEL_INDEX
    if index.is_file() and _names_code(read_object(index)):
        found.append(index)
    return [path.relative_to(folder).as_posix() for path in found]


def _asks_for_code(config: Any) -> bool:
    """Whether a configuration of transformers, or a part of one, names classes or attention kernels of a repository."""
    if isinstance(config, list):
        return any(map(_asks_for_code, config))
    if not isinstance(config, dict):
        return False
    kernels = [value for name, value in config.items() if name.endswith("attn_implementation")]
    return (
        "auto_map" in config or any("/" in str(value) for value in kernels) or any(map(_asks_for_code, config.values()))
    )


def _names_code(index: dict[str, Any]) -> bool:
    """Whether a diffusers index names a class of no known library, for the pipeline or one of its components."""
    classes = [value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    foreign = [library for library, *_ in filter(None, classes) if library is not None]
    return isinstance(index.get("_class_name"), list) or any(
        str(library).split(".")[0] not in _LIBRARIES for library in foreign
    )


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file of a model holds.

    Raises:
        CheckpointError: it is not JSON, or holds something else.
    """
    try:
        with open_regular(path) as file:
            content = parse_json(file.read().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, "is not a JSON object")
    return content


def _fetched(source: str, revision: str | None, parts: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    from verl_uae.checkpoints.weights import PICKLES

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [*(f"{part}/*" for part in parts), "*.json"] if parts else None,
        "ignore_patterns": [f"*{ending}" for ending in PICKLES],
    }
    errors = hub_errors()
    try:
        with saying(f"{source} from the hub"):
            return Path(snapshot_download(source, **options))
    except errors as error:
        # Without a network, what has been fetched before will do.
        try:
            return Path(snapshot_download(source, local_files_only=True, **options))
        except (OSError, ValueError):
            raise CheckpointError(source, reason_of(error, source, revision=revision)) from error

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How a path that a user wrote is read: one rule for configuration keys, command line options and the Python API.

``~``, ``file://`` and a trailing slash are understood everywhere. A model is a folder or a hub id ``owner/name``:

* what is an existing folder is that folder;
* what starts with ``/``, ``.`` or ``~``, ends with a slash, holds two slashes or a character that no hub id has, must
  be a folder, and is refused where there is none;
* a bare word that is no folder is refused: hub ids have an owner;
* everything else, one slash between two names, is a hub id. Whether the hub has it is asked before the work that needs
  it, by one small request and no download.

A run also writes to folders that nobody named: Ray's, the home and the caches of Hugging Face. Each check of them
returns the folder, or raises with the variable that moves it.

Imports the standard library alone, and huggingface_hub where it is asked: every layer imports this.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from verl_uae.compat import ray_temp_folder
from verl_uae.errors import CheckpointError, ConfigError, DataError, UAEError

_HUB_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)

#: What Hydra reads unquoted, and as text: of characters that mean nothing to its grammar, and no number or constant.
_PLAIN = re.compile(r"(?=[^/]*/|(?!(?:null|true|false|nan|inf)$)[a-z_])[\w./@%+-]+", re.ASCII | re.IGNORECASE)
_FILE_URL = re.compile(r"file://(?:localhost)?(?=/)")

#: Seconds the hub gets to answer.
TIMEOUT_S = 10.0

_INSTEAD = "give the path of a folder that holds its files"

#: Why a repository that is not in the cache cannot be had where no network may be used.
OFFLINE = f"is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub; {_INSTEAD}"

#: Longest path of a Unix socket on Linux, bytes (``sun_path`` of sockaddr_un less its end).
SOCKET_PATH_MAX = 107

#: Key of verl's config for Ray's folder.
RAY_FOLDER_KEY = "ray_kwargs.ray_init._temp_dir"

#: What a local path may start with and a hub id may not.
_LOCAL_STARTS = ("/", ".", "~")


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with ``~``, ``file://`` and a trailing slash resolved; relative ones stay relative."""
    text = os.fspath(path)
    if url := _FILE_URL.match(text):
        text = unquote(text[url.end() :])
    return Path(os.path.expanduser(text))


def argument_path(text: str) -> Path:
    """A path of the command line, as argparse's ``type``: :func:`expand`, but no empty one and no URL.

    An unset variable of a shell is an empty path, which would be the current folder.

    Raises:
        argparse.ArgumentTypeError: it is empty, or lies elsewhere.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is no path of this machine or of a shared file system")
    return expand(text)


def override(key: str, path: str | os.PathLike[str]) -> str:
    """``key=path`` as a word for Hydra, quoted where its grammar would read a path as something else.

    Hydra takes unquoted text of few characters, reads a comma as a sweep and ``7`` as a number.
    """
    text = os.fspath(path)
    if _PLAIN.fullmatch(text):
        return f"{key}={text}"
    # Of backslashes its grammar reads those alone that stand before a quote or at the end.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"{key}='{quoted}'"


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies elsewhere: ``s3://``, ``hdfs://``, ``https://``, but not ``file://``."""
    text = os.fspath(path)
    return "://" in text and not _FILE_URL.match(text)


def has_form_of_hub_id(text: str) -> bool:
    """Whether a hub could have a repository of this id, ``owner/name``; a folder may be called the same."""
    return _HUB_ID.fullmatch(text) is not None


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether the rule above takes a model for a hub repository; looks whether there is such a folder."""
    # A link that leads nowhere is a folder that is gone, not a repository.
    return isinstance(source, str) and has_form_of_hub_id(source) and not os.path.lexists(source)


def model_source(source: str | os.PathLike[str], key: str | None = None) -> str:
    """The folder or hub id of a model, by the rule above.

    Args:
        source: as the user wrote it.
        key: configuration key or option to name in errors.

    Returns:
        An existing folder with ``~``, ``file://`` and a trailing slash resolved, or the hub id as it is.

    Raises:
        ConfigError: with ``key``; CheckpointError without it: there is no such folder, or it can be neither.
    """
    text = os.fspath(source)
    if is_hub_id(source):
        return text
    if is_url(text):
        raise _refusal(text, key, "models are read from folders and from the hub; copy it to a folder first")
    bare = text.strip() and "/" not in text and not text.startswith(_LOCAL_STARTS) and isinstance(source, str)
    if bare and not os.path.exists(text):
        raise _refusal(text, key, f"is no folder in {os.getcwd()}, and a hub id is owner/name; give one of the two")
    return str(existing_folder(source, key))


def named_path(text: str) -> tuple[str, Path]:
    """``NAME=PATH`` or ``PATH``: the name, empty without one, and the path; a file that is there is no name."""
    name, equals, path = text.partition("=")
    if equals and name and not expand(text).exists():
        return name, expand(path)
    return "", expand(text)


def existing_place(path: str | os.PathLike[str], key: str | None = None) -> Path:
    """A file or folder that is there.

    Raises:
        ConfigError: with ``key``; DataError without it: it is not there or cannot be read.
    """
    return _existing(path, "file or folder", key, DataError)


def existing_folder(path: str | os.PathLike[str], key: str | None = None) -> Path:
    """A folder that is there.

    Raises:
        ConfigError: with ``key``; CheckpointError without it: it is not there, cannot be read, or is no folder.
    """
    folder = _existing(path, "folder", key, CheckpointError)
    if not folder.is_dir():
        raise _refusal(path, key, "is a file, and must be a folder")
    return folder


def existing_file(path: str | os.PathLike[str], key: str | None = None) -> Path:
    """A file that is there.

    Raises:
        ConfigError: with ``key``; DataError without it: it is not there, cannot be read, or is a folder.
    """
    file = _existing(path, "file", key, DataError)
    if file.is_dir():
        raise _refusal(path, key, "is a folder, and must be a file", DataError)
    if not file.is_file():
        raise _refusal(path, key, "is a pipe or a device, and must be a file", DataError)
    return file


def output_folder(path: str | os.PathLike[str], key: str | None = None) -> Path:
    """A folder that files will be written to; it need not be there yet, and is not made.

    Raises:
        ConfigError: with ``key``; CheckpointError without it: it lies elsewhere, or could not be made or written.
    """
    if not os.fspath(path).strip():
        raise _refusal(path, key, "is empty; give a folder")
    if is_url(path):
        raise _refusal(path, key, "is no folder of this machine or of a shared file system")
    folder = expand(path).absolute()
    # The nearest ancestor that is there decides whether the rest can be made.
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not os.path.isdir(nearest):
        raise _refusal(path, key, f"{nearest} is in the way: it is no folder")
    try:
        # Permissions alone would not tell a read-only file system, a full quota, or what root may not do either.
        tempfile.TemporaryDirectory(prefix=".verl_uae_", dir=nearest).cleanup()
    except OSError as error:
        raise _refusal(path, key, f"{nearest} cannot be written ({error.strerror}); give a folder that can") from error
    return expand(path)


def hub_problem(source: str, file: str = "config.json", revision: str | None = None) -> str | None:
    """Why a repository cannot be read, None where it can: a file of it is in the cache, or the hub would give it.

    Args:
        source: hub id.
        file: one that the repository must have.
        revision: commit, tag or branch.

    Returns:
        The end of a sentence that begins with the hub id.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    errors = hub_errors()
    try:
        if isinstance(try_to_load_from_cache(source, file, revision=revision), str):
            return None
        if not constants.HF_HUB_OFFLINE:
            get_hf_file_metadata(hf_hub_url(source, file, revision=revision), timeout=TIMEOUT_S)
            return None
    except errors as error:
        return reason_of(error, source, file=file, revision=revision)
    return OFFLINE


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a repository cannot be had."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError, httpx.HTTPError, OSError, ValueError


def reason_of(error: Exception, source: str, *, file: str = "", revision: str | None = None) -> str:
    """Why a repository cannot be read, by the error of huggingface_hub; the end of a sentence that begins with the id.

    Args:
        error: one of :func:`hub_errors`.
        source: hub id.
        file: the file that was asked for.
        revision: commit, tag or branch.
    """
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{source}"
    if isinstance(error, HFValidationError):
        return f"is no hub id: {' '.join(str(error).split())}"
    if isinstance(error, GatedRepoError):
        return f"is gated: accept its terms at {page}, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"is not at {page}; a private one needs `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision}"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return reason_of(error.__cause__, source, file=file, revision=revision)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return OFFLINE
    if isinstance(error, EntryNotFoundError):
        return f"has no {file}"
    if isinstance(error, httpx.HTTPError | ConnectionError | TimeoutError):
        return f"is not in the cache, and {constants.ENDPOINT} cannot be reached ({type(error).__name__}); {_INSTEAD}"
    return f"cannot be fetched: {' '.join(str(error).split())}"


def ray_folder(temp_dir: str | None = None) -> str:
    """Where a Ray that this process starts keeps its session; its sockets there must have names of a legal length.

    Args:
        temp_dir: value of `RAY_FOLDER_KEY`; None: Ray's rule, which reads ``RAY_TMPDIR`` and ``TMPDIR``.

    Raises:
        ConfigError: naming what sets the folder: it is too long, or cannot be written.
    """
    set_by = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    key = RAY_FOLDER_KEY if temp_dir else set_by
    folder = temp_dir or ray_temp_folder()
    # Names as in ray/_private/node.py; plasma_store is the longer of the two sockets of a session.
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    socket = len(os.fsencode(os.path.join(os.path.abspath(folder), session, "sockets", "plasma_store")))
    if socket > SOCKET_PATH_MAX:
        # Ray appends its own name to what the variables say.
        base = folder if temp_dir else os.path.dirname(folder)
        length = len(os.fsencode(base))
        raise ConfigError(
            key,
            f"{base} has {length} bytes, so that the sockets of Ray in it would have paths of {socket}, where Unix "
            f"allows {SOCKET_PATH_MAX}; set {key} to a folder of at most {length - (socket - SOCKET_PATH_MAX)} bytes",
        )
    output_folder(folder, key)
    return folder


def home_folder() -> str:
    """The home, where torch, Triton, vLLM and Hugging Face keep caches.

    Raises:
        ConfigError: it is not there, or cannot be written.
    """
    home = os.path.expanduser("~")
    if not os.path.isdir(home):
        raise ConfigError("HOME", f"{home} is not there; set HOME to a folder that can be written")
    output_folder(home, "HOME")
    return home


def hub_cache() -> str:
    """Cache of models of the hub.

    Raises:
        ConfigError: it cannot be written; where ``HF_HUB_OFFLINE`` is set, only if it is not there.
    """
    from huggingface_hub import constants

    folder = str(constants.HF_HUB_CACHE)
    if constants.HF_HUB_OFFLINE and os.path.isdir(folder):
        return f"{folder} (offline)"
    output_folder(folder, "HF_HUB_CACHE or HF_HOME")
    return folder


def data_cache() -> Path:
    """Cache of data files, below the one of `datasets`. One that is there may be read-only, since it may be complete.

    Raises:
        ConfigError: it is not there, and cannot be made.
    """
    folder = data_cache_path()
    if not folder.is_dir():
        output_folder(folder, "HF_DATASETS_CACHE or HF_HOME")
    return folder


def data_cache_path() -> Path:
    """Where that cache is, or would be."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")).expanduser() / "verl_uae"


def _existing(path: str | os.PathLike[str], kind: str, key: str | None, error: type[UAEError]) -> Path:
    text = os.fspath(path)
    if not text.strip():
        raise _refusal(text, key, f"is empty; give a {kind}", error)
    if is_url(text):
        raise _refusal(text, key, f"is no {kind} of this machine", error)
    place = expand(text)
    try:
        place.stat()
    except FileNotFoundError:
        where = "" if place.is_absolute() else f" in {os.getcwd()}"
        raise _refusal(text, key, f"there is no such {kind}{where}", error) from None
    except (OSError, ValueError) as reason:
        raise _refusal(text, key, f"cannot be read: {getattr(reason, 'strerror', None) or reason}", error) from reason
    return place


def _refusal(
    path: str | os.PathLike[str], key: str | None, message: str, error: type[UAEError] = CheckpointError
) -> UAEError:
    name = os.fspath(path) or "''"
    if key is not None:
        return ConfigError(key, f"{name}: {message}")
    return DataError(name, None, message) if error is DataError else CheckpointError(name, message)

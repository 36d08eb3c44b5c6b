# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a model of the hub can be had, asked before the work that needs it; one small request, no download."""

from __future__ import annotations

#: Seconds the hub gets to answer.
TIMEOUT_S = 10.0

_INSTEAD = "give the path of a folder that holds its files"

#: Why a repository that is not in the cache cannot be had where no network may be used.
OFFLINE = f"is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub; {_INSTEAD}"


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

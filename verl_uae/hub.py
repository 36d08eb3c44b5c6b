# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a model of the hub can be had, asked before the work that needs it; one small request, no download."""

from __future__ import annotations

#: Seconds the hub gets to answer.
TIMEOUT_S = 10.0


def hub_problem(source: str, file: str = "config.json", revision: str | None = None) -> str | None:
    """Why a repository cannot be read, None where it can: a file of it is in the cache, or the hub would give it.

    Args:
        source: hub id.
        file: one that the repository must have.
        revision: commit, tag or branch.

    Returns:
        The end of a sentence that begins with the hub id.
    """
    import httpx
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if isinstance(try_to_load_from_cache(source, file, revision=revision), str):
            return None
    except HFValidationError as error:
        return f"is no hub id: {' '.join(str(error).split())}"
    if constants.HF_HUB_OFFLINE:
        return "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    page = f"{constants.ENDPOINT}/{source}"
    try:
        get_hf_file_metadata(hf_hub_url(source, file, revision=revision), timeout=TIMEOUT_S)
    except GatedRepoError:
        return f"is gated: accept its terms at {page}, then run `hf auth login`"
    except RepositoryNotFoundError:
        return f"is not at {page}; a private one needs `hf auth login`"
    except RevisionNotFoundError:
        return f"has no revision {revision}"
    except EntryNotFoundError:
        return f"has no {file}"
    except (HfHubHTTPError, OSError, httpx.HTTPError) as error:
        return f"is not in the cache, and {constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return None

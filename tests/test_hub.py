# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from verl_uae.hub import hub_problem, reason_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_what_is_not_cached_cannot_be_had_offline(cache: Path) -> None:
    assert hub_problem("owner/name") == (
        "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub; give the path of a folder that holds its files"
    )
    assert "is no hub id" in str(hub_problem("a/b/c"))


def _answered(kind: type[Exception], code: int) -> Exception:
    return kind("...", response=httpx.Response(code, request=httpx.Request("GET", constants.ENDPOINT)))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (_answered(RepositoryNotFoundError, 401), "is not at https://.*/owner/name; a private one needs"),
        (_answered(GatedRepoError, 403), "is gated: accept its terms at"),
        (_answered(RevisionNotFoundError, 404), "has no revision v9"),
        (EntryNotFoundError("..."), "has no config.json"),
        (
            httpx.ConnectError("Name or service not known"),
            r"cannot be reached \(ConnectError\); give the path of a folder",
        ),
        (httpx.ReadTimeout("..."), r"cannot be reached \(ReadTimeout\)"),
        (OSError(28, "No space left on device"), "cannot be fetched: .*No space left on device"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_each_error_of_the_hub_has_its_own_reason(error: Exception, why: str, wrapped: bool) -> None:
    if wrapped:  # As huggingface_hub hands on what kept it from looking, when the cache has nothing either.
        outer = LocalEntryNotFoundError("cannot find the snapshot folder")
        outer.__cause__ = error
        error = outer
    assert re.search(why, reason_of(error, "owner/name", file="config.json", revision="v9"))

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from verl_uae.hub import hub_problem


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_what_is_not_cached_cannot_be_had_offline(cache: Path) -> None:
    assert hub_problem("owner/name") == "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    assert "is no hub id" in str(hub_problem("a/b/c"))

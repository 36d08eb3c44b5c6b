# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.decoder.folder import local_folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path and local_folder(str(tmp_path), "vae") == tmp_path / "vae"


def test_a_hub_id_that_is_not_in_the_cache_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="no-such-model"):
        local_folder("verl-uae-tests/no-such-model")

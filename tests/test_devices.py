# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from verl_uae.devices import checked_device
from verl_uae.errors import ConfigError


def test_a_device_that_is_here() -> None:
    assert checked_device("cpu") == torch.device("cpu")
    assert checked_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cpu:x", "meta", "xla", "hpu"])
def test_one_that_is_not_is_named_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--device: {name}.*; give .*cpu") as caught:
        checked_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300

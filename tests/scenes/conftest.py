# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.scenes.tokenizer import build_processor


@pytest.fixture(scope="session")
def processor():
    return build_processor()


@pytest.fixture(scope="session")
def tokenizer(processor):
    return processor.tokenizer

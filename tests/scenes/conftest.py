# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.scenes.codec import build_codec
from verl_uae.scenes.joint_training import save_encoder
from verl_uae.scenes.tiny_models import build_decoder, build_encoder
from verl_uae.scenes.tokenizer import build_processor


@pytest.fixture(scope="session")
def processor():
    return build_processor()


@pytest.fixture(scope="session")
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, processor) -> Path:
    """Folders encoder/ and decoder/ of untrained tiny models."""
    out = tmp_path_factory.mktemp("untrained")
    save_encoder(build_encoder(0, processor.tokenizer), processor, out / "encoder")
    build_decoder(0, build_codec(0, fit_scenes=200)).save_pretrained(str(out / "decoder"))
    return out

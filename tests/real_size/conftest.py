# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.sizes import Size
from tests.devices import tell
from tests.real_size import models
from tests.real_size.accelerator import Accelerator

#: Every width of captioner and decoder; what comes after the projector does not see the captioner.
LARGE, MEDIUM = ("sd35_large", 2048), ("sd35_medium", 3584)


@pytest.fixture(params=[LARGE, MEDIUM], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def size(request: pytest.FixtureRequest) -> Size:
    """A decoder with its captioner."""
    return models.size_of(*request.param)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a picture tower."""
    return models.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """The device ``meta``, which the package takes for its accelerator; not entered yet."""
    tell(monkeypatch, "meta")
    return Accelerator()


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real_size")

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the whole test suite shares: tiny models on disk and composed configurations."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

# Before any test file imports transformers or diffusers, which import torchvision: see compat.ensure_torchvision.
import verl_uae  # noqa: F401
from tests import forks

if TYPE_CHECKING:
    from verl_uae.runstate import RunState

# Ray's workers are nice to everybody else by default, so that the other processes of the suite would leave them a few
# percent of a core. Read when Ray starts, here and in every training command.
os.environ.setdefault("RAY_worker_niceness", "0")

# By default a tenth of the suite's time goes into looking for cycles among the millions of objects of what is imported.
gc.freeze()
gc.set_threshold(20_000, 50, 100)

# Folders whose tests one process takes, one after the other, and takes first: whole training commands, which are
# several processes each, and what several files share comes from runs of a minute and more.
_LONGEST_FIRST = ("tests/e2e", "tests/engines", "tests/checkpoints")
_ORDER = (*_LONGEST_FIRST, "Ray", "")


def pytest_configure(config: pytest.Config) -> None:
    if forks.VARIABLE in os.environ:
        return
    exits = contextlib.ExitStack()
    # Not pytest's folder, whose path is longer than an address may be.
    folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="uae_"))
    os.environ[forks.VARIABLE] = exits.enter_context(forks.nursery(Path(folder)))
    exits.callback(os.environ.pop, forks.VARIABLE)
    config.add_cleanup(exits.close)


def _scope(nodeid: str, otherwise: str) -> str:
    found = next((folder for folder in _LONGEST_FIRST if nodeid.startswith(f"{folder}/")), "")
    return found or ("Ray" if _needs_ray(nodeid.partition("::")[0]) else otherwise)


@functools.cache
def _needs_ray(file: str) -> bool:
    """Each process starts a Ray of its own, which is eight processes, so one process takes all that need it."""
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    return "ray_cluster" in text or "run_state" in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return _ORDER.index(_scope(item.nodeid, ""))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the suite, each takes whole files, in the order of collection."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid, str(super()._split_scope(nodeid)))

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons hold for one intra-op thread, and more only wait for each other here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ray_cluster() -> None:
    """A real Ray of four logical cores: one for all files, unless one of them needed another in between. Ray ends it
    with the process."""
    import ray

    with mock.patch.object(sys, "executable", forks.python()):
        if not ray.is_initialized():
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)


@pytest.fixture
def run_state(ray_cluster: None) -> Iterator[RunState]:
    """What driver and trainer tell each other, taken back at the end: all tests of this process are one job of Ray, and
    the next that reads it would take it for its own."""
    from verl_uae.runstate import RunState

    state = RunState()
    yield state
    state.request_stop("")
    state.tell("")
    state.tell_useful("")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders captioner/ and decoder/ of untrained models whose pictures nevertheless depend on the caption, and data/
    with empty files, for what only asks whether they are there."""
    from verl_uae.scenes.codec import build_codec
    from verl_uae.scenes.tiny_models import build_captioner, build_decoder
    from verl_uae.scenes.tokenizer import build_processor

    root = tmp_path_factory.mktemp("tiny")
    processor = build_processor()
    build_captioner(0, processor.tokenizer).save_pretrained(root / "captioner")
    processor.save_pretrained(root / "captioner")
    decoder = build_decoder(0, build_codec(0, fit_scenes=50), shift=3.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = decoder.transformer.proj_out.weight
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        pooled = decoder.projector.pooled
        pooled.copy_(torch.randn(pooled.shape, generator=generator))
    decoder.save_pretrained(str(root / "decoder"))
    (root / "data").mkdir()
    for name in ("train", "val"):
        (root / "data" / f"{name}.parquet").touch()
    return root


@pytest.fixture(scope="session")
def captioner_folder(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny captioner; the number of its image tokens follows the size of the picture, as Qwen's does."""
    from transformers import AutoProcessor

    path = tmp_path_factory.mktemp("captioner") / "captioner"
    shutil.copytree(tiny_models / "captioner", path)
    processor = AutoProcessor.from_pretrained(path)
    processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
    processor.save_pretrained(path)
    return path


@pytest.fixture
def own_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives that a test registers are gone after it."""
    from verl_uae.flow.objective import registry

    monkeypatch.setattr(registry.OBJECTIVES, "_claims", dict(registry.OBJECTIVES._claims))


@pytest.fixture(scope="session")
def compose() -> Callable[..., Any]:
    """``compose("key=value", ..., name="uae_g4u")``: see :func:`tests.composing.composed`."""
    from tests.composing import composed

    return composed


@pytest.fixture(scope="session")
def tiny_overrides(tiny_models: Path) -> list[str]:
    """Overrides that make a config run on the tiny models."""
    return ["hardware=cpu", "preset=scenes", f"uae_home={tiny_models}"]

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reward servers in threads, and pictures of 8-bit levels."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
import uvicorn

from verl_uae.data.limits import ImageLimits
from verl_uae.reward import RewardBatch
from verl_uae.reward.remote.server import RewardServer, ServerSettings
from verl_uae.reward.remote.service import ScoringService, parse_terms


@pytest.fixture
def make_levels() -> Callable[..., RewardBatch]:
    """``make_levels(count, size=16, seed=0)``: pictures whose pixels are 8-bit levels, with captions and rows."""

    def make(count: int, size: int = 16, seed: int = 0) -> RewardBatch:
        generator = torch.Generator().manual_seed(seed)
        source, drawn = (
            torch.randint(0, 256, (count, 3, size, size), generator=generator).float() / 255.0 for _ in range(2)
        )
        captions = [f"caption {index} \U0001f300" for index in range(count)]
        rows = [{"data_source": "test", "ground_truth": i, "extra_info": {"index": i}} for i in range(count)]
        return RewardBatch(source, drawn, captions=captions, rows=rows)

    return make


@pytest.fixture
def make_service() -> Callable[..., ScoringService]:
    """``make_service(entries)``: the scorer behind a server."""

    def make(
        entries: object, timeout_s: float = 30.0, max_pixels: int = 2**16, max_request_pixels: int = 2**22
    ) -> ScoringService:
        limits = ImageLimits(max_bytes=2**20, max_pixels=max_pixels, min_side=1)
        terms = parse_terms(entries, "terms")
        return ScoringService(
            terms,
            device="cpu",
            timeout_s=timeout_s,
            source_cache_bytes=0,
            limits=limits,
            max_request_pixels=max_request_pixels,
        )

    return make


@pytest.fixture
def start_server(make_service: Callable[..., ScoringService]) -> Iterator[Callable[..., tuple[str, RewardServer]]]:
    """``start_server(entries, **settings)``: address and server, listening on a free port in a thread."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        entries: object, load: Callable[[], ScoringService] | None = None, **settings: object
    ) -> tuple[str, RewardServer]:
        service = None if load else make_service(entries)
        reward = RewardServer(load or (lambda: service), ServerSettings(port=0, **settings))
        server = uvicorn.Server(uvicorn.Config(reward.app, port=0, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        wait_until(lambda: server.started and (load is not None or reward._service is not None))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", reward

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends in time."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds

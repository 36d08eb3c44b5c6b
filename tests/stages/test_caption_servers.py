# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""U4G's caption servers, with servers that answer in this process; real ones are in e2e/test_captioners.py."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import RayActorError, RayTaskError

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.types import CaptionRequest
from verl_uae.chain.captioner import caption_messages
from verl_uae.checkpoints.load import load_processor
from verl_uae.stages.common.captions import CaptionSettings, CaptionWriter, FrozenCaptioner
from verl_uae.stages.u4g.servers import CaptionServers

SETTINGS = CaptionSettings(seed=3, prompt_length=64, response_length=10, do_sample=True, temperature=1.2)
PROMPTS = [
    caption_messages(
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)),
        "<image>describe",
        "",
    )
    for seed in range(5)
]


class Replica:
    """One server: asleep at first, and it says what is asked of it while it is."""

    def __init__(self, engine: CaptionEngine, fails: dict[int, Exception]) -> None:
        self.engine, self.fails, self.log = engine, fails, list[str]()
        self.asked, self.log_probs = list[dict[str, Any]](), list[float]()
        self.server_handle = SimpleNamespace(generate=SimpleNamespace(remote=self.generate))

    async def wake_up(self) -> None:
        self.log.append("wake")

    async def sleep(self) -> None:
        self.log.append("sleep")

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: Any, image_data: Any, **_: Any):
        assert self.log[-1] != "sleep"
        number = int(request_id.rpartition("-")[2])
        self.log.append(str(number))
        if number in self.fails:
            raise self.fails[number]
        seed, temperature = sampling_params["seed"], sampling_params["temperature"]
        request = CaptionRequest(prompt_ids, seed, image_data, temperature=temperature)
        (result,) = self.engine.generate([request])
        self.asked.append(sampling_params)
        return SimpleNamespace(
            token_ids=result.token_ids, log_probs=self.log_probs or result.log_probs, stop_reason=result.stop_reason
        )


@pytest.fixture(scope="module")
def frozen(captioner_folder: Path) -> FrozenCaptioner:
    return FrozenCaptioner(str(captioner_folder), SETTINGS)


def servers_of(frozen: FrozenCaptioner, folder: Path, fails: dict[int, Exception] | None = None) -> CaptionServers:
    servers = object.__new__(CaptionServers)
    engine = frozen.engine
    servers.writer = CaptionWriter(load_processor(folder), "qwen2_5_vl", engine.eos_token_ids, SETTINGS)
    servers.prompt_ids = list
    servers.sampling, servers.dtype = {"logit_bias": {7: -math.inf}}, "float32"
    servers.replicas = [Replica(engine, fails or {}) for _ in range(2)]
    return servers


def test_captions_are_those_of_the_captioner_in_this_process(frozen: FrozenCaptioner, captioner_folder: Path) -> None:
    servers, infos = servers_of(frozen, captioner_folder), [{}] * len(PROMPTS)
    assert servers.write_captions(PROMPTS, infos) == frozen.write(PROMPTS, infos)
    assert [replica.log for replica in servers.replicas] == [
        ["wake", "0", "2", "4", "sleep"],
        ["wake", "1", "3", "sleep"],
    ]
    for request in (request for replica in servers.replicas for request in replica.asked):
        assert request["logit_bias"] == {7: -math.inf} and request["logprobs"] is True
    assert servers.write_captions([], []) == []
    assert all(replica.log.count("wake") == 1 for replica in servers.replicas)


def test_a_caption_that_fails_costs_itself(frozen: FrozenCaptioner, captioner_folder: Path) -> None:
    servers, infos = (
        servers_of(
            frozen, captioner_folder, {3: RayTaskError("generate", "", ValueError("too long")).as_instanceof_cause()}
        ),
        [{}] * len(PROMPTS),
    )
    written, expected = servers.write_captions(PROMPTS, infos), frozen.write(PROMPTS, infos)
    assert [caption.ok for caption in written] == [True, True, True, False, True]
    assert written[3].reason == "caption: too long" and written[:3] == expected[:3]


def test_a_server_that_died_ends_the_run_and_the_others_sleep(frozen: FrozenCaptioner, captioner_folder: Path) -> None:
    servers = servers_of(frozen, captioner_folder, {1: RayActorError()})
    with pytest.raises(RayActorError):
        servers.write_captions(PROMPTS, [{}] * len(PROMPTS))
    assert all(replica.log[-1] == "sleep" for replica in servers.replicas)


def test_logits_that_are_no_numbers_end_the_run(frozen: FrozenCaptioner, captioner_folder: Path) -> None:
    servers = servers_of(frozen, captioner_folder)
    servers.replicas[0].log_probs = [-0.5, math.nan]
    with pytest.raises(FloatingPointError, match="not finite in float32"):
        servers.write_captions(PROMPTS, [{}] * len(PROMPTS))
    assert all(replica.log[-1] == "sleep" for replica in servers.replicas)

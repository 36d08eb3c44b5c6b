# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The server as verl sees it: real Ray actors, a real replica, real adapters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from verl.workers.config import CheckpointEngineConfig, RolloutConfig
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry, get_rollout_replica_class

from verl_uae.caption_server import register
from verl_uae.caption_server.server import server_name

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
HF = {"max_batch_size": 8, "batch_wait_ms": 20.0, "device": "cpu"}


def rollout_config(**fields: Any) -> RolloutConfig:
    values = {"prompt_length": 21, "response_length": 11, "dtype": "float32", "tensor_model_parallel_size": 1}
    return RolloutConfig(**{"name": "hf", **values, "engine_kwargs": {"hf": HF}, **fields})


def build_replica(model_dir: Path, rank: int = 0, model: Any = None, **fields: Any) -> Any:
    register()
    model = model or SimpleNamespace(path=str(model_dir))
    return get_rollout_replica_class("hf")(rank, rollout_config(**fields), model, gpus_per_node=2)


@dataclass
class Cluster:
    replicas: list[Any]
    trainer: Any

    def generate(self, request: Any, rank: int = 0, **params: Any) -> Any:
        """An object ref of the server's answer to a CaptionRequest."""
        return self.replicas[rank].server_handle.generate.remote(
            request.request_id,
            prompt_ids=list(request.prompt_ids),
            sampling_params={**SAMPLING, "seed": request.seed, **params},
            image_data=list(request.images),
            video_data=None,
        )

    def call(self, method: str, *args: Any, rank: int = 0, **kwargs: Any) -> Any:
        return ray.get(getattr(self.replicas[rank].server_handle, method).remote(*args, **kwargs))

    def send_all(self, scale: float, **kwargs: Any) -> None:
        """Every rank updates, as in verl."""
        ray.get([self.trainer.send.remote(rank, scale, **kwargs) for rank in range(4)])


@pytest.fixture(scope="module")
def cluster(model_dir: Path) -> Iterator[Cluster]:
    # Another file's, which starts it again where it needs it.
    ray.shutdown()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)

    # Defined here so that Ray ships it by value: workers cannot import test modules.
    class Trainer:
        """The training ranks, in one process to save start-up time: an adapter each, and the model they train."""

        def __init__(self, path: str, config: RolloutConfig) -> None:
            import os

            from transformers import Qwen2_5_VLForConditionalGeneration
            from verl.workers.config import HFModelConfig

            from verl_uae.caption_server import register

            register()
            self.adapters = []
            model_config = HFModelConfig(path=path)
            for rank in range(4):
                os.environ["RANK"] = str(rank)
                adapter_class = get_rollout_class("hf", "async")
                self.adapters.append(adapter_class(config=config, model_config=model_config, device_mesh=None))
            self.state = Qwen2_5_VLForConditionalGeneration.from_pretrained(path).state_dict()
            self.walked = [0] * 4

        def describe(self) -> list[tuple[int, bool]]:
            return [(adapter.replica_rank, adapter.is_leader_rank) for adapter in self.adapters]

        async def send(self, rank: int, scale: float, rename: dict[str, str] | None = None, **kwargs: Any) -> None:
            self.walked[rank] = 0

            def weights() -> Iterator[tuple[str, torch.Tensor]]:
                for name, tensor in self.state.items():
                    self.walked[rank] += 1
                    if (rename or {}).get(name) != "":
                        yield (rename or {}).get(name, name), tensor * scale

            await self.adapters[rank].update_weights(weights(), **kwargs)

        def count(self) -> list[int]:
            return self.walked

        async def cycle(self) -> None:
            for adapter in self.adapters:
                await adapter.release()
                await adapter.resume(tags=["weights"])
                await adapter.resume(tags=["kv_cache"])

    # Two ranks share each replica. One megabyte makes the model, 1.8 MB, travel in two buckets.
    size = {"tensor_model_parallel_size": 2}
    config = rollout_config(**size, checkpoint_engine=CheckpointEngineConfig(update_weights_bucket_megabytes=1))
    trainer = ray.remote(Trainer).options(num_cpus=0).remote(str(model_dir), config)
    replicas = [build_replica(model_dir, rank, **size) for rank in range(2)]

    async def launch() -> None:
        workers = SimpleNamespace(workers=[trainer] * 4)
        await asyncio.gather(*[replica.init_hybrid(workers) for replica in replicas])

    asyncio.run(launch())
    yield Cluster(replicas, trainer)
    ray.shutdown()


def test_registration() -> None:
    register()
    register()
    assert RolloutReplicaRegistry.get("hf").__name__ == "HFReplica"
    assert get_rollout_class("hf", "async").__name__ == "HFServerAdapter"


def test_bad_configurations_are_refused(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"engine_kwargs\.hf\.batch"):
        build_replica(model_dir, engine_kwargs={"hf": {"batch": 1}})
    with pytest.raises(ValueError, match=r"rollout\.dtype.*fp8"):
        build_replica(model_dir, dtype="fp8")
    register()
    with pytest.raises(NotImplementedError, match="reward"):
        get_rollout_replica_class("hf")(0, rollout_config(), SimpleNamespace(path=""), is_reward_model=True)


def test_replicas_have_servers_of_their_own(cluster: Cluster) -> None:
    assert [built.server_address for built in cluster.replicas] == [f"ray://{server_name(rank)}" for rank in range(2)]
    pids = [cluster.call("ready", rank=rank)["pid"] for rank in range(2)]
    assert len(set(pids)) == 2
    assert ray.get(cluster.trainer.describe.remote()) == [(0, True), (0, False), (1, True), (1, False)]
    assert ray.get_runtime_context().get_job_id() in server_name(0)


def test_answers_equal_the_engines(cluster: Cluster, make_engine, make_request) -> None:
    requests = [make_request(seed, image=seed // 2) for seed in range(20)]
    outputs = ray.get([cluster.generate(request, rank=seed % 2) for seed, request in enumerate(requests)])
    expected = make_engine(max_batch_size=8).generate(requests)
    assert [(output.token_ids, output.log_probs) for output in outputs] == [
        (result.token_ids, result.log_probs) for result in expected
    ]
    assert {output.stop_reason for output in outputs} == {"completed"}
    assert {type(output.extra_fields["global_steps"]) for output in outputs} == {int}
    assert ray.get(cluster.generate(requests[0], logprobs=False)).log_probs is None


def test_a_request_without_seed_is_named_by_its_id(cluster: Cluster, make_request) -> None:
    def caption(name: str) -> list[int]:
        request = make_request(0, request_id=name, ignore_eos=True)
        return ray.get(cluster.generate(request, seed=None, ignore_eos=True)).token_ids

    assert caption("det-1") == caption("det-1") != caption("det-2")


def test_bad_requests_cost_only_themselves(cluster: Cluster, make_request) -> None:
    good, long, broken = make_request(1), make_request(2, prompt_ids=[8] * 30), make_request(3, images=[])
    refs = [cluster.generate(good), cluster.generate(long), cluster.generate(broken), cluster.generate(good, min_p=1)]
    assert ray.get(refs[0]).token_ids
    for ref, message in zip(refs[1:], ("r2.*30 tokens", "r3.*image tokens", "r1.*min_p"), strict=True):
        with pytest.raises(ray.exceptions.RayTaskError, match=f"(?s)CaptionRequestError.*{message}"):
            ray.get(ref)
    server = cluster.replicas[0].server_handle
    with pytest.raises(ray.exceptions.RayTaskError, match="video_data"):
        ray.get(server.generate.remote("v", prompt_ids=[8], sampling_params={}, video_data=[1]))


def test_the_event_loop_answers_while_a_batch_runs(cluster: Cluster, make_request) -> None:
    refs = [cluster.generate(make_request(seed, image=seed), ignore_eos=True) for seed in range(80)]
    time.sleep(0.1)
    start = time.monotonic()
    cluster.call("ready")
    answered = time.monotonic() - start
    start = time.monotonic()
    ray.get(refs)
    assert answered < max(0.2, time.monotonic() - start)


def test_weights_travel_through_the_adapter(cluster: Cluster, make_engine, make_request) -> None:
    requests = [make_request(seed, temperature=0.0, image=seed) for seed in range(6)]
    before = [ray.get(cluster.generate(request, temperature=0.0)).log_probs for request in requests]
    # Every rank calls, as verl's workers do; every rank walks through all tensors.
    count = len(make_engine().model.state_dict())
    cluster.send_all(1.5, global_steps=7)
    assert ray.get(cluster.trainer.count.remote()) == [count] * 4
    engine = make_engine(max_batch_size=8)
    with torch.no_grad():
        for tensor in engine.model.state_dict().values():
            tensor.mul_(1.5)
    for rank in range(2):
        outputs = ray.get([cluster.generate(request, rank=rank, temperature=0.0) for request in requests])
        assert [output.log_probs for output in outputs] == [result.log_probs for result in engine.generate(requests)]
        assert [output.log_probs for output in outputs] != before
        assert outputs[0].extra_fields["global_steps"] == 7
    # verl's validation updates weights without naming a step.
    cluster.send_all(1.0)
    outputs = ray.get([cluster.generate(request, temperature=0.0) for request in requests])
    assert [output.log_probs for output in outputs] == before
    assert outputs[0].extra_fields["global_steps"] == 7


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"lm_head.weight": "head.weight"}, "no tensor 'head.weight'"),
        ({"lm_head.weight": ""}, "not sent: lm_head.weight"),
        ({"lm_head.weight": "model.language_model.norm.weight"}, "norm.weight"),
    ],
)
def test_a_bad_update_is_loud_and_stops_captions(cluster: Cluster, make_request, rename, message: str) -> None:
    trainer = cluster.trainer
    with pytest.raises(ray.exceptions.RayTaskError, match=f"(?s)WeightTransferError.*{message}"):
        ray.get(trainer.send.remote(0, 1.0, rename))
    # The iterator was walked to its end, else the other ranks would hang in a collective.
    assert ray.get(trainer.count.remote())[0] > 40
    with pytest.raises(ray.exceptions.RayTaskError, match="captions are refused"):
        ray.get(cluster.generate(make_request(1)))
    ray.get(trainer.send.remote(0, 1.0))
    assert ray.get(cluster.generate(make_request(1))).token_ids


def test_lora_adapters_and_other_wire_formats_are_refused(cluster: Cluster) -> None:
    for kwargs, message in (
        ({"peft_config": object}, "lora.merge=True"),
        ({"wire_format": "delta_flush"}, "delta_flush"),
    ):
        with pytest.raises(ray.exceptions.RayTaskError, match=message):
            ray.get(cluster.trainer.send.remote(0, 1.0, **kwargs))


def test_abort_hold_and_resume(cluster: Cluster, make_request) -> None:
    server = cluster.replicas[0]
    refs = [cluster.generate(make_request(seed, image=seed), ignore_eos=True) for seed in range(60)]
    time.sleep(0.05)
    asyncio.run(server.abort_all_requests())
    outputs = ray.get(refs)
    assert {output.stop_reason for output in outputs} <= {"aborted", "completed"}
    assert any(output.stop_reason == "aborted" for output in outputs)
    held = cluster.generate(make_request(1))
    assert ray.wait([held], timeout=0.3)[0] == []
    asyncio.run(server.abort_all_requests(reject_request=True))
    assert ray.get(held).stop_reason == "aborted"
    assert ray.get(cluster.generate(make_request(1))).token_ids == []
    asyncio.run(server.resume_generation())
    assert ray.get(cluster.generate(make_request(1))).stop_reason == "completed"


def test_the_rest_of_the_contract(cluster: Cluster, make_request) -> None:
    server = cluster.replicas[0]

    async def calls() -> None:
        await server.sleep()
        await server.wake_up()
        await server.clear_kv_cache()
        await server.release_kv_cache()
        await server.resume_kv_cache()
        await server.start_profile(global_step=1)
        await server.stop_profile()

    asyncio.run(calls())
    ray.get(cluster.trainer.cycle.remote())
    assert ray.get(cluster.generate(make_request(1))).token_ids

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's own set-up with groups that only say when they did what; real ones are run by tests/e2e."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from verl.trainer.ppo.v1 import trainer_base

from verl_uae.stages.g4u import placement
from verl_uae.stages.g4u.trainer import G4UTrainer
from verl_uae.stages.u4g import step as policy
from verl_uae.stages.unified.trainer import Alternation, UnifiedTrainer


class Order(list[str]):
    """What happened, in order."""

    def group(self, name: str) -> Any:
        """A class of groups whose models come when they are waited for."""

        def make(*args: Any, **kwargs: Any) -> Any:
            self.append(f"{name} started")
            return SimpleNamespace(wait_until_loaded=lambda: self.append(f"{name} loaded"))

        return make

    def noted(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.append(name)
            return answer

        return call


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Order:
    order = Order()
    actor = SimpleNamespace(init_model=order.noted("actor loaded"))
    workers = SimpleNamespace(spawn=lambda prefix_set: dict.fromkeys(prefix_set, actor))
    servers = SimpleNamespace(get_replicas=list)
    manager = SimpleNamespace(sleep_replicas=order.noted("servers asleep"))
    for name, stub in {
        "RayWorkerGroup": lambda **_: workers,
        "create_colocated_worker_cls": lambda class_dict: None,
        "RayClassWithInitArgs": lambda **_: None,
        "RewardLoopManager": lambda **_: None,
        "LLMServerManager": SimpleNamespace(create=order.noted("servers created", servers)),
        "CheckpointEngineManager": lambda **_: manager,
    }.items():
        assert hasattr(trainer_base, name), f"verl's set-up has no {name} any more"
        monkeypatch.setattr(trainer_base, name, stub)
    monkeypatch.setattr(placement, "DecoderGroup", order.group("decoders"))
    monkeypatch.setattr(placement, "check_nodes", lambda _, pools: {ranks.name: ["node"] for ranks in pools})
    monkeypatch.setattr(policy, "PolicyGroup", order.group("policy"))
    monkeypatch.setattr(placement.ExistingPools, "create_resource_pool", _create_pools)
    return order


def _create_pools(self: Any) -> None:
    self.resource_pool_dict = {name: object() for name in self.resource_pool_spec}


def trainer_of(kind: type, config: Any, order: Order) -> Any:
    trainer = object.__new__(kind)
    trainer.config = config
    trainer.use_critic = trainer.use_teacher_policy = False
    trainer.use_reference_policy = True
    trainer.total_training_steps, trainer.schedule = 4, Alternation(1, 1)
    for name in ("_init_tokenizer", "_init_dataloader", "_init_dump_executor"):
        setattr(trainer, name, lambda: None)
    trainer._load_checkpoint = order.noted("checkpoint loaded")
    return trainer


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    ("kind", "name", "groups"),
    [(G4UTrainer, "uae_g4u", {"decoders"}), (UnifiedTrainer, "uae_unified", {"decoders", "policy"})],
)
def test_models_are_where_they_stay_before_caption_servers_measure_memory(
    kind: type, name: str, groups: set[str], offload: bool, order: Order, compose, tiny_overrides: list[str]
) -> None:
    config = compose(*tiny_overrides, f"uae.decoder.offload={offload}", name=name)
    trainer_of(kind, config, order)._setup()
    assert order[-3:] == ["servers created", "servers asleep", "checkpoint loaded"]
    before = order[: order.index("servers created")]
    assert {f"{group} loaded" for group in groups} | {"actor loaded"} <= set(before)
    starts = [before.index(f"{group} started") for group in groups]
    assert max(starts) < min(before.index(f"{group} loaded") for group in groups), "they load one after another"

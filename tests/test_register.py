# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib


def test_registers_engine_agent_loop_and_rollout() -> None:
    importlib.import_module("verl_uae.plugin.register")
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    assert "uae_caption" in _agent_loop_registry
    assert RolloutReplicaRegistry.get("hf").__module__ == "verl_uae.caption_server.replica"
    assert "uae_captioner" in EngineRegistry._engines


def test_can_be_imported_again() -> None:
    module = importlib.import_module("verl_uae.plugin.register")
    module._hf.register()

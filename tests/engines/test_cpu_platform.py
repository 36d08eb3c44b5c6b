# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from typing import Any

import torch

from tests import forks

CODE = """
import os
import verl
from verl.plugin.platform import PlatformRegistry
from verl.utils.device import get_device_name
import verl_uae.plugin.cpu_platform as ours
print(get_device_name(), ours.CpuPlatform().is_platform_available(), os.environ.get("VERL_PLATFORM"))
"""


def run(**environment: str) -> list[str]:
    import os

    env = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    result = subprocess.run(
        [forks.python(), "-c", CODE],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


def test_is_never_picked_by_detection() -> None:
    """A GPU cluster also has processes that see no GPU; they must keep verl's choice."""
    name, available, _ = run()
    assert name != "cpu" or available == "False"
    assert available == "False"


def test_is_picked_when_asked_for(facts: dict[str, Any]) -> None:
    assert facts["device"] == "cpu" and facts["device_module"] == "_CpuDeviceModule"


def test_the_device_module_answers_what_verl_asks() -> None:
    from verl_uae.plugin.cpu_platform import CpuPlatform

    platform = CpuPlatform()
    module = platform.device_module
    assert module.is_available() is False and module.device_count() == 1 and module.current_device() == "cpu"
    free, total = module.mem_get_info()
    assert 0 < free < total
    assert module.memory_allocated() == module.max_memory_reserved() == 0
    assert isinstance(module.Stream, type), "looked up in torch.cpu"
    state = module.get_rng_state()
    try:
        module.manual_seed(1)
        first = torch.rand(3)
        module.manual_seed(1)
        assert torch.equal(first, torch.rand(3))
    finally:
        module.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state)
    assert platform.communication_backend_name() == "gloo" and platform.ray_resource_name() == "GPU"
    with platform.nvtx_range("x"):
        pass


def test_is_complete() -> None:
    from verl.plugin.platform import PlatformBase

    from verl_uae.plugin.cpu_platform import CpuPlatform

    assert not getattr(CpuPlatform, "__abstractmethods__", None)
    assert issubclass(CpuPlatform, PlatformBase)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the package is told when it asks verl for the device."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest


def tell(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Tell all modules of the package, those of the stages' workers included, that they compute on a device."""
    for stage in ("cold_start.worker", "g4u.decoder_worker", "pretrain.worker", "u4g.worker"):
        importlib.import_module(f"verl_uae.stages.{stage}")
    for name, module in list(sys.modules.items()):
        if name.startswith("verl_uae."):
            for asked in ("get_device_id", "get_device_name"):
                if hasattr(module, asked):
                    monkeypatch.setattr(module, asked, lambda: device)
            if hasattr(module, "get_torch_device"):
                monkeypatch.setattr(module, "get_torch_device", lambda: SimpleNamespace(empty_cache=lambda: None))

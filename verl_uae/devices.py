# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the option ``--device`` of our commands names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_uae.errors import ConfigError

if TYPE_CHECKING:
    import torch


def checked_device(name: str | None) -> torch.device:
    """A device that computes here; without a name the accelerator, or the host where there is none.

    Raises:
        ConfigError: this machine has none of that name.
    """
    # Heavy: the command line imports this module for every command.
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # torch goes on with every backend that it knows.
        first = str(error).splitlines()[0].split(". ")[0]
        reason = f"{name}: {first}; give a device that this machine has, such as cpu"
        raise ConfigError("--device", reason) from error
    if device.type == "meta":
        raise ConfigError("--device", "meta holds no numbers; give cpu or an accelerator")
    return device

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled blocks, and which kernel computes attention: how a process computes what its models say."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection
from typing import TYPE_CHECKING

from verl_uae.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Kernels of ``torch.nn.functional.scaled_dot_product_attention``, by the name of a setting.
ATTENTION = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}
#: Programs that one function may be compiled to. A block has one for each of: gradient or none, adapters on or off,
#: first or last block or one between, every length of the condition until lengths are variables; torch's own limit is
#: 8, and beyond it goes on uncompiled.
PROGRAMS = 64
#: Compilers that torch looks for where the environment names none.
_COMPILERS = ("g++", "clang++")

_kept = contextlib.ExitStack()


def check_compiler(key: str) -> None:
    """Make sure that blocks can be compiled here; torch would only say so at the first call.

    Raises:
        ConfigError: for ``key``: there is no C++ compiler.
    """
    named = os.environ.get("CXX")
    if not any(map(shutil.which, (named,) if named else _COMPILERS)):
        wanted = f"CXX={named}, which does not exist" if named else f"{' or '.join(_COMPILERS)}, and finds neither"
        raise ConfigError(key, f"torch compiles with {wanted}; install one, or set the key to false")


def compile_blocks(module: nn.Module, names: Collection[str]) -> int:
    """Compile the repeated blocks of a module one by one, in place; names of modules and weights stay.

    Only what is between a block's hooks is compiled, so FSDP gathers and frees its weights as before, before or after
    it is told of the block. Equal blocks share a program, so a model of forty takes as long as one of four.

    Args:
        module: has the blocks.
        names: of their classes.

    Returns:
        How many blocks there are.

    Raises:
        ValueError: there is none.
    """
    import torch

    blocks = [each for each in module.modules() if type(each).__name__ in names]
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no block of {', '.join(sorted(names))}")
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, PROGRAMS)
    for block in blocks:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    logger.info("%d blocks of %s are compiled at their first call", len(blocks), type(module).__name__)
    return len(blocks)


def prefer_attention(name: str | None) -> None:
    """Have this process try one kernel of attention before the others, which stay for what it cannot do; None leaves
    torch's order.

    Raises:
        KeyError: it is none of :data:`ATTENTION`.
    """
    if name is None:
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [ATTENTION[name], *(each for each in ATTENTION.values() if each != ATTENTION[name])]
    # For as long as the process lives: recomputation in a backward pass has to choose as the forward pass did.
    _kept.enter_context(sdpa_kernel([getattr(SDPBackend, each) for each in order], set_priority=True))

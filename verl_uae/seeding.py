# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Named random numbers: every draw states what it is for, so no draw depends on another one.

A seed is a hash of its name, e.g. ``derive_seed(run_seed, "noise", step, image_digest, k)``. Resuming a
run, re-batching it or changing the number of workers therefore repeats the very same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SEED_BITS = 63


def derive_seed(*parts: int | str) -> int:
    """Hash a name to a seed.

    Args:
        parts: the name; integers and strings, order matters, ``1`` and ``"1"`` differ.

    Returns:
        An integer in ``[0, 2**63)``.

    Raises:
        TypeError: for a part that is neither int nor str (a float has no stable name).

    Example:
        >>> derive_seed(0, "noise", 12, "a picture's digest", 3)
        624150528719662468
    """
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"a seed part must be int or str, got {type(part).__name__}: {part!r}")
    digest = hashlib.sha256("\x1f".join(repr(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded with :func:`derive_seed` of its name.

    Example:
        >>> import torch
        >>> one, same = generator(0, "noise", 7), generator(0, "noise", 7)
        >>> bool((torch.randn(4, generator=one) == torch.randn(4, generator=same)).all())
        True
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def normal(shape: tuple[int, ...], *parts: int | str) -> torch.Tensor:
    """Standard normal numbers of a given name.

    Drawn on the CPU in fp32 whatever device uses them, so the numbers do not depend on the hardware.

    Returns:
        Tensor of ``shape``, fp32, on the CPU.
    """
    import torch

    return torch.randn(shape, generator=generator(*parts), dtype=torch.float32)

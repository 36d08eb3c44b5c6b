# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import pytest
import torch

from verl_uae.seeding import derive_seed, generator, normal


def test_golden_values() -> None:
    """A changed value would silently change every run."""
    assert derive_seed(42, "noise", 3, "abc", 0) == 1128057843521421217
    assert [round(x, 4) for x in normal((3,), 42, "x").tolist()] == [-0.5467, -2.7412, -0.2271]


def test_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"42\x1f'noise'").digest()
    assert derive_seed(42, "noise") == int.from_bytes(digest, "big") >> (256 - 63)


def test_different_names_differ() -> None:
    names = [(1,), ("1",), (1, 2), (2, 1), ("1", 2), ("a", "b"), ("ab",), ("a\x1fb",), ("a'\x1f'b",), (), (-1,), (12,)]
    assert len({derive_seed(*name) for name in names}) == len(names)
    seeds = {derive_seed("n", i) for i in range(20_000)}
    assert len(seeds) == 20_000 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("part", [1.0, None, True, b"x", ("a",), torch.tensor(1)])
def test_other_types_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="a seed part must be int or str"):
        derive_seed("name", part)  # type: ignore[arg-type]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = normal((4, 2), "a", 1)
    torch.rand(3, generator=generator("b"))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float32 and first.shape == (4, 2)
    assert torch.equal(first, normal((4, 2), "a", 1)) and not torch.equal(first, normal((4, 2), "a", 2))


def test_normal_numbers_are_standard_normal() -> None:
    x = normal((200_000,), "moments").double()
    assert abs(x.mean().item()) < 0.01 and abs(x.std().item() - 1) < 0.01
    assert (x.abs() > 1.959964).double().mean().item() == pytest.approx(0.05, abs=0.003)

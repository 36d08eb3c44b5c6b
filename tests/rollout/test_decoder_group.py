# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding and error texts; placement, deaths and restarts are run for real by tests/e2e."""

from __future__ import annotations

import pytest
import ray

from verl_uae.rollout.decoder_group import describe, split_evenly


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (7, 3), (8, 4), (2, 5), (64, 6), (1, 8)])
def test_split_evenly_covers_everything_once_and_evenly(count: int, parts: int) -> None:
    shards = split_evenly(count, parts)
    assert len(shards) == parts and [index for shard in shards for index in shard] == list(range(count))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_describe_is_the_first_line_of_the_cause(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0.1)
    def fail() -> None:
        raise ArithmeticError("first line\nsecond line")

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(fail.remote())
    assert describe(caught.value) == "ArithmeticError: first line"
    assert describe(ValueError()) == "ValueError: "

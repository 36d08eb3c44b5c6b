# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader

from verl_uae.data.buckets import Buckets, BucketSampler, fit
from verl_uae.errors import ConfigError

BUCKETS = Buckets.around(512, step=64)


def sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """(W, H) of pictures, from tall to wide."""
    rng = random.Random(seed)
    return [(rng.randint(64, 2000), rng.randint(64, 2000)) for _ in range(count)]


def numbers(count: int = 1000) -> list[tuple[int, int]]:
    return [BUCKETS.bucket_of(*size) for size in sizes(count)]


def by_brute_force(base: int, step: int, max_aspect: float) -> set[tuple[int, int]]:
    """All sizes on the grid that fit, less those that another one covers."""
    grid = range(step, base * base // step + 1, step)
    fitting = [(h, w) for h, w in product(grid, grid) if h * w <= base * base and max(h, w) <= max_aspect * min(h, w)]
    return {(h, w) for h, w in fitting if not any(a >= h and b >= w and (a, b) != (h, w) for a, b in fitting)}


@pytest.mark.parametrize(("base", "step", "max_aspect"), [(512, 64, 2.0), (256, 16, 3.0), (96, 16, 1.0), (64, 64, 9.0)])
def test_sizes_are_the_largest_ones_on_the_grid(base: int, step: int, max_aspect: float) -> None:
    buckets = Buckets.around(base, step=step, max_aspect=max_aspect)
    assert set(buckets.sizes) == by_brute_force(base, step, max_aspect)
    ratios = [height / width for height, width in buckets.sizes]
    assert ratios == sorted(ratios)
    assert {(width, height) for height, width in buckets.sizes} == set(buckets.sizes)


def test_sizes_of_sdxl() -> None:
    """Entries of the table in SDXL's appendix I that keep within the area of the square."""
    found = Buckets.around(1024, step=64, max_aspect=4.0).sizes
    assert {(512, 2048), (832, 1216), (896, 1152), (1024, 1024), (1152, 896), (1344, 768), (1600, 640)} <= set(found)


def test_a_picture_goes_to_the_closest_aspect_ratio() -> None:
    for width, height in sizes(1000, seed=1):
        chosen = BUCKETS.bucket_of(width, height)
        errors = {size: abs(np.log(size[1] / size[0]) - np.log(width / height)) for size in BUCKETS.sizes}
        assert errors[chosen] == pytest.approx(min(errors.values()), abs=1e-12)
        assert BUCKETS.bucket_of(height, width) == chosen[::-1]
    assert BUCKETS.bucket_of(10_000, 16) == BUCKETS.sizes[0] and BUCKETS.bucket_of(512, 512) == (512, 512)
    assert Buckets.single(96).sizes == ((96, 96),) and Buckets.single(96, 64).bucket_of(5, 900) == (96, 64)


def test_fit_keeps_shapes_and_cuts_the_centre() -> None:
    ramp = np.zeros((60, 200, 3), np.uint8)
    ramp[..., 0] = np.arange(200)
    ramp[:, 70:130, 1] = 255
    cut = fit(Image.fromarray(ramp), (30, 30))
    assert cut.shape == (3, 30, 30) and cut.dtype is torch.float32 and cut.min() >= 0 and cut.max() <= 1
    # A 60 x 60 box of the middle, halved: columns 70 to 129, all of them green; the filter looks a pixel farther.
    assert cut[1, :, 1:-1].min() == 1.0 and cut[1].min() > 0.9
    expected = (70.5 + 2 * torch.arange(30)) / 255
    assert (cut[0, :, 2:-2] - expected[2:-2]).abs().max() < 1.5 / 255
    same = torch.from_numpy(ramp[:, :60].copy())
    assert fit(Image.fromarray(same.numpy()), (60, 60)).equal(same.permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    "options", [{"base": 500, "step": 64}, {"base": 0, "step": 64}, {"base": 64, "step": 0}, {"max_aspect": 0.5}]
)
def test_impossible_buckets_are_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"base|max_aspect"):
        Buckets.around(**{"base": 512, "step": 64, **options})


def test_impossible_sizes_are_named() -> None:
    for wrong in ((), ((64, 64), (64, 64)), ((0, 64),), ((64, 32), (32, 64)), ((64, 32), (128, 64))):
        with pytest.raises(ValueError):
            Buckets(wrong)
    with pytest.raises(ValueError, match="0 x 5"):
        BUCKETS.bucket_of(0, 5)


@pytest.mark.parametrize(("batch_size", "shuffle"), [(1, True), (7, True), (16, True), (16, False)])
def test_batches_are_of_one_bucket_and_only_tails_are_lost(batch_size: int, shuffle: bool) -> None:
    items = numbers()
    sampler = BucketSampler(items, batch_size, seed=3, shuffle=shuffle)
    held = Counter(items)
    assert sampler.dropped == sum(count % batch_size for count in held.values())
    for _ in range(3):
        order = list(sampler)
        assert len(order) == len(sampler) == 1000 - sampler.dropped and len(set(order)) == len(order)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        assert all(len({items[item] for item in batch}) == 1 for batch in batches)
        assert Counter(items[item] for item in order) == Counter(
            {bucket: count // batch_size * batch_size for bucket, count in held.items() if count >= batch_size}
        )


def test_order_is_named_by_seed_and_epoch() -> None:
    first, same, other = (BucketSampler(numbers(), 8, seed=seed) for seed in (1, 1, 2))
    epochs = [list(first) for _ in range(3)]
    assert epochs == [list(same) for _ in range(3)] == [same.order(epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(other)
    # What is dropped differs from epoch to epoch.
    assert set(epochs[0]) != set(epochs[1])
    plain = BucketSampler(numbers(), 8, shuffle=False)
    assert list(plain) == list(plain)
    ends = [plain.order(0)[start + 7] for start in range(0, len(plain), 8)]
    assert ends == sorted(ends)


def test_iterators_that_give_nothing_cost_no_epoch() -> None:
    sampler = BucketSampler(numbers(), 8)
    iter(sampler), iter(sampler)
    assert list(sampler) == sampler.order(0)
    assert list(sampler) == sampler.order(1)


def test_resume_at_every_place() -> None:
    items = numbers()
    sampler = BucketSampler(items, 8, seed=5)
    list(sampler)
    whole, running = sampler.order(1) + sampler.order(2), iter(sampler)
    for place in range(len(sampler) + 1):
        state = running.state_dict()
        fresh = BucketSampler(items, 8, seed=5)
        resumed = iter(fresh)
        resumed.load_state_dict(state)
        assert list(resumed) == whole[place : len(sampler)]
        if place % 50 == 0:
            assert list(fresh) == whole[len(sampler) :]
        assert next(running, None) == (whole[place] if place < len(sampler) else None)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_of_a_loader_bit_for_bit(workers: int, tmp_path) -> None:
    """Through ``state_dict`` of the loader on disk, as verl saves it: inside an epoch, at its end, and before it."""
    items = numbers(120)

    def loader() -> StatefulDataLoader:
        sampler = BucketSampler(items, 4, seed=9)
        return StatefulDataLoader(
            range(120), batch_size=4, sampler=sampler, num_workers=workers, drop_last=True, collate_fn=list
        )

    def batches(source: StatefulDataLoader, count: int) -> list[list[int]]:
        """As a trainer takes them: a new iterator when one is over."""
        found, running = [], iter(source)
        while len(found) < count:
            batch = next(running, None)
            if batch is None:
                running = iter(source)
            else:
                found.append(batch)
        return found

    per_epoch = len(BucketSampler(items, 4)) // 4
    whole = batches(loader(), 3 * per_epoch)
    order = [item for epoch in range(3) for item in BucketSampler(items, 4, seed=9).order(epoch)]
    assert [item for batch in whole for item in batch] == order
    for place in (0, 1, 5, per_epoch - 1, per_epoch, per_epoch + 3):
        interrupted = loader()
        assert batches(interrupted, place) == whole[:place]
        torch.save(interrupted.state_dict(), tmp_path / "data.pt")
        resumed = loader()
        resumed.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=False))
        rest = min(3 * per_epoch - place, per_epoch + 2)
        assert batches(resumed, rest) == whole[place : place + rest]


def test_state_of_another_order_is_refused() -> None:
    state = iter(BucketSampler(numbers(), 8, seed=1)).state_dict()
    for other in (
        BucketSampler(numbers(), 8, seed=2),
        BucketSampler(numbers(), 4, seed=1),
        BucketSampler(numbers(999), 8, seed=1),
        BucketSampler(numbers(), 8, seed=1, shuffle=False),
    ):
        with pytest.raises(ConfigError, match="saved place"):
            iter(other).load_state_dict(state)


def test_a_sampler_without_a_batch_is_refused() -> None:
    """One line, with the key of the configuration, what there is and what would work."""
    with pytest.raises(ConfigError) as refused:
        BucketSampler([(64, 64)] * 9 + [(96, 32)] * 6, 16)
    assert str(refused.value) == (
        "data.train_batch_size: 16 is more than any bucket (height x width) can fill with the 15 usable pairs, "
        "9 of 64 x 64, 6 of 96 x 32; lower it to 9 or give more data"
    )
    assert len(BucketSampler([(64, 64)] * 9 + [(96, 32)] * 6, 9)) == 9
    many = [(64, 16 * side) for side in range(1, 9)]
    with pytest.raises(ConfigError, match="and fewer in 3 others; lower it to 1 or"):
        BucketSampler(many, 16)
    for items, size in (([(64, 64)], 0), ([], 1)):
        with pytest.raises(ConfigError, match=r"^data\.train_batch_size: "):
            BucketSampler(items, size)

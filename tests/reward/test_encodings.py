# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verl_uae.reward import RewardScorer, TermSpec
from verl_uae.reward.encodings import picture_digest
from verl_uae.reward.record import Origin, Scoring
from verl_uae.reward.terms.features import feature_similarity

MIB = 1024 * 1024


@pytest.fixture
def specs(tiny_clip: Path) -> list[TermSpec]:
    params = {"model": str(tiny_clip)}
    return [
        TermSpec(name="clip", params=params),
        TermSpec(name="clip", params={**params, "mode": "maps"}, label="maps"),
    ]


def _terms(records) -> list[dict[str, float]]:
    return [dict(record.terms) for record in records]


def test_one_forward_pass_for_both_terms_and_the_same_bits(make_batch, specs) -> None:
    batch = make_batch(20)
    alone = [RewardScorer([spec]) for spec in specs]
    expected = [{**a.terms, **b.terms} for a, b in zip(*(scorer.score(batch) for scorer in alone), strict=True)]
    shared = RewardScorer(specs)
    passes = []
    model = shared._summed[0].term.model
    assert shared._summed[1].term.model is model
    model.register_forward_hook(lambda *_: passes.append(1))
    assert _terms(shared.score(batch)) == expected
    # Two chunks of 16, two sides each.
    assert len(passes) == shared.counters.forward_passes == shared.counters.shared_passes == 4
    assert [scorer.counters.forward_passes for scorer in alone] == [4, 4]
    shared.score(make_batch(20, seed=1))
    assert len(passes) == 8, "another batch is another batch"
    assert not any(type(found) is Scoring and found.shared for found in gc.get_objects()), "nothing outlives the batch"


def test_other_settings_are_not_shared(tiny_clip: Path, make_batch) -> None:
    params = {"model": str(tiny_clip)}
    half = TermSpec(name="clip", params={**params, "dtype": "bfloat16"}, label="half")
    scorer = RewardScorer([("clip", 1.0, params), half])
    scorer.score(make_batch(2))
    assert (scorer.counters.forward_passes, scorer.counters.shared_passes) == (4, 0)


@pytest.mark.parametrize("cache_bytes", [0, MIB])
def test_networks_that_look_alike_keep_their_features_apart(make_batch, specs, cache_bytes: int) -> None:
    """Two networks with the same outputs see the same pictures: each term gets those of its own, cached or shared."""
    params = [{**spec.params, "dtype": "bfloat16"} for spec in specs]
    half = [replace(spec, params=params[i], label=f"half{i}") for i, spec in enumerate(specs)]
    batch = make_batch(20)
    together = RewardScorer([*specs, *half], source_cache_bytes=cache_bytes).score(batch)
    for spec in (*specs, *half):
        alone = RewardScorer([replace(spec, label="x")], source_cache_bytes=cache_bytes).score(batch)
        label = spec.label
        assert [record.terms[label] for record in together] == [record.terms["x"] for record in alone], label


def test_the_cache_serves_every_chunk_its_own_pictures(make_batch, specs) -> None:
    batch = make_batch(40)
    cached, plain = (RewardScorer(specs[1:], source_cache_bytes=size).score(batch) for size in (MIB, 0))
    assert [record.value for record in cached] == pytest.approx([record.value for record in plain], abs=1e-6)


def test_a_late_term_leaves_nothing_behind(make_batch, specs) -> None:
    """A term that is still at an old batch may not keep anything, nor take the new batch's features away."""
    scorer = RewardScorer(specs, source_cache_bytes=MIB)
    encodings, term = scorer._encodings, scorer._summed[0].term
    old, new = (replace(make_batch(2), origin=Origin(Scoring(), (0, 1))) for _ in range(2))
    with torch.no_grad():
        encodings.reconstruction(term, old)
        old.origin.batch.finish()
        encodings.reconstruction(term, old), encodings.source(term, old)
        assert not old.origin.batch.shared
        encodings.reconstruction(term, new), encodings.source(term, new)
        kept = dict(new.origin.batch.shared)
        assert len(kept) == 1 + 2, "one pass, two digests"
        encodings.reconstruction(term, old), encodings.source(term, old)
    assert new.origin.batch.shared == kept and not old.origin.batch.shared


def test_a_failed_sample_of_one_term_changes_no_bits_of_the_other(make_batch, specs, monkeypatch) -> None:
    """The second term then sees other samples than the first, and may not take its features."""
    batch = make_batch(6)
    expected = _terms(RewardScorer(specs).score(batch))
    scorer = RewardScorer(specs)
    first = scorer._summed[0].term
    score = first.score
    bad = picture_digest(batch.reconstruction_B3HW[2])

    def failing(chunk):
        values = score(chunk)
        for row, image in enumerate(chunk.reconstruction_B3HW):
            if picture_digest(image) == bad:
                values[row] = float("nan")
        return values

    monkeypatch.setattr(first, "score", failing)
    records = scorer.score(batch)
    assert [record.ok for record in records] == [True, True, False, True, True, True]
    assert [_terms(records)[i] for i in (0, 1, 3, 4, 5)] == [expected[i] for i in (0, 1, 3, 4, 5)]


def test_sources_are_encoded_once_and_whatever_was_cached_the_bits_are_the_same(make_batch, specs) -> None:
    batch = make_batch(5)
    batch.source_B3HW[3] = batch.source_B3HW[0]
    other = make_batch(3, seed=1)
    cold, warm = (RewardScorer(specs, source_cache_bytes=MIB) for _ in range(2))
    expected = _terms(cold.score(batch))
    # Four pictures, the places of the chunk beyond the batch, and the second term: all but four are hits.
    assert cold.counters.source_misses == 4 and cold.counters.source_hits == 2 * 16 - 4
    warm.score(other), warm.score(replace(batch, source_B3HW=batch.source_B3HW.flip(0)))
    misses = warm.counters.source_misses
    assert _terms(warm.score(batch)) == expected and warm.counters.source_misses == misses == 7
    uncached = _terms(RewardScorer(specs).score(batch))
    for a, b in zip(expected, uncached, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_cached_features_are_those_of_the_term(make_batch, specs) -> None:
    batch = make_batch(2)
    scorer = RewardScorer(specs[1:], source_cache_bytes=MIB)
    term = scorer._summed[0].term
    with torch.no_grad():
        scorer.score(batch)
        expected = feature_similarity(term.embed(batch.source_B3HW), term.embed(batch.reconstruction_B3HW))
        assert torch.allclose(term.score(batch), expected, atol=1e-6)
    # Training through the reward takes no cached features, which have no graph.
    misses = scorer.counters.source_misses + scorer.counters.source_hits
    images = batch.reconstruction_B3HW.clone().requires_grad_()
    term.score(replace(batch, reconstruction_B3HW=images)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0.0
    assert scorer.counters.source_misses + scorer.counters.source_hits == misses


def test_cache_is_bounded_and_gives_up_the_least_recently_used(make_batch, specs) -> None:
    pictures = make_batch(3).take([0, 1, 0, 2, 0, 1])
    one = RewardScorer(specs[:1], chunk_size=1, source_cache_bytes=MIB)
    one.score(pictures.take([0]))
    size = one._encodings._cache.currsize
    scorer = RewardScorer(specs[:1], chunk_size=1, source_cache_bytes=int(2.5 * size))
    expected = _terms(one.score(pictures))
    assert size > 0 and _terms(scorer.score(pictures)) == expected
    assert (scorer.counters.source_misses, scorer.counters.source_hits) == (4, 2), "the second made place for the third"
    assert scorer._encodings._cache.currsize == 2 * size
    small = RewardScorer(specs[:1], chunk_size=1, source_cache_bytes=size - 1)
    assert _terms(small.score(pictures)) == expected
    assert small.counters.source_misses == 6 and small._encodings._cache.currsize == 0, "larger than the whole cache"


def test_digest_tells_pictures_and_shapes_apart() -> None:
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[2, 3, 5] += 1e-6
    found = {picture_digest(x) for x in (image, image.clone(), other, image.reshape(3, 6, 4))}
    assert len(found) == 3

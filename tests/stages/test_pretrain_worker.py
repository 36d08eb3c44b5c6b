# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The workers are run as a whole by tests/e2e/test_pretrain.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.data.cache import TensorCache
from verl_uae.data.pairs import Pair
from verl_uae.engines.decoder_batch import stored
from verl_uae.families import family_of
from verl_uae.families.family import Condition
from verl_uae.flow.matching import NoiseDensity
from verl_uae.scenes.dataset import png_bytes
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.seeding import normal
from verl_uae.stages.common.worker import DecoderTrainingWorker
from verl_uae.stages.pretrain.worker import FlowMatching, PairEncoder, PretrainWorker


class KnownEngine:
    """An engine whose velocity is known: constant 2."""

    def field(self, condition: Condition) -> Any:
        return lambda x_BCHW, sigma_B: torch.full_like(x_BCHW, 2.0)


def test_the_loss_is_the_weighted_square_error_at_the_drawn_levels() -> None:
    x0, noise = normal((2, 1, 2, 2), "x0"), normal((2, 1, 2, 2), "noise")
    fields = {"x0_BCHW": x0, "noise_BCHW": noise, "sigma_B": torch.tensor([0.5, 0.25])}
    micro = TensorDict({**fields, **stored(Condition.whole(torch.zeros(2, 1, 1)))}, batch_size=2)
    output = FlowMatching(NoiseDensity("sigma_sqrt"))(KnownEngine(), micro)  # type: ignore[arg-type]
    expected = (2.0 - (noise - x0)).square().flatten(1).mean(1) / fields["sigma_B"].square()
    torch.testing.assert_close(output.loss_B, expected)
    assert output.metrics["velocity_rms"].tolist() == [2.0, 2.0]


def test_is_verls_worker() -> None:
    assert issubclass(PretrainWorker, DecoderTrainingWorker) and issubclass(PretrainWorker, TrainingWorker)


SIZE = (32, 32)
SCENES = held_out_scenes(12, 5)
UNREADABLE = "a \ud800 circle"


def batch(step: int) -> list[Pair]:
    """Six pairs, of which one has no picture, one no usable caption, and one is of the batch before."""
    found = []
    for number in range(6):
        image = png_bytes(SCENES[(5 * step + number) % 12])
        found.append(Pair(image, f"circle {number}", None, 32, 32, "pairs.parquet", 6 * step + number))
    found[1] = Pair(b"nothing", "a circle", None, 32, 32, "pairs.parquet", 6 * step + 1)
    found[2] = Pair(found[2].image, UNREADABLE, None, 32, 32, "pairs.parquet", 6 * step + 2)
    return found


class Learner(PretrainWorker):
    """Rank 1 of 2, which keeps what it would learn."""

    rank, world_size, _averaged = 1, 2, None

    def __init__(self, config: Any, decoder: Decoder, conditioner: Conditioner, cache: Path | None = None) -> None:
        self.run, self.family, self.learnt = config, conditioner.family, []
        self.density = NoiseDensity()
        caches = {} if cache is None else {"latent_cache": TensorCache(cache, "vae")}
        self.encoder = PairEncoder(decoder.vae, ConditionCache(conditioner, 64), batch_size=2, **caches)

    def train_batch(self, data: TensorDict) -> TensorDict:
        self.learnt.append({name: tensor.clone() for name, tensor in data.items() if torch.is_tensor(tensor)})
        return tu.get_tensordict({}, {"metrics": {"loss": float(data["x0_BCHW"].sum())}})

    @staticmethod
    def total_weight(weight_B: torch.Tensor) -> float:
        return float(weight_B.sum())

    def _average(self, *_: Any) -> None:
        pass


@pytest.fixture
def make_learner(compose, tiny_overrides: list[str], tiny_models: Path) -> Iterator[Any]:
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder")).requires_grad_(False)
    family = family_of(str(tiny_models / "decoder"), length=20)
    conditioner = Conditioner.from_pretrained(str(tiny_models / "captioner"), family)
    config = compose(*tiny_overrides, name="uae_pretrain")
    yield lambda cache=None: Learner(config, decoder, conditioner, cache)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("verl_uae pairs")]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_that_are_encoded_ahead_are_learnt_as_if_they_were_not(
    make_learner, tmp_path: Path, ahead: int, cached: bool
) -> None:
    plain, other = (make_learner(tmp_path / name if cached else None) for name in ("plain", "other"))
    expected = [plain.learn(batch(step), SIZE, step) for step in range(1, 6)]
    found, sent = [], 0
    for step in range(1, 6):
        while sent < min(step + ahead, 5):
            sent += 1
            other.prefetch(batch(sent), SIZE, sent)
        found.append(other.learn(None, SIZE, step))
    assert found == expected and len(expected[0][1]) == 1
    for ours, theirs in zip(other.learnt, plain.learnt, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    if cached:
        assert expected[-1][0]["latent_cache_hit_frac"] > 0


def test_encoding_goes_on_while_a_batch_is_learnt_and_validation_waits_for_it(
    make_learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, learning, events = make_learner(), threading.Event(), []
    latents = worker.encoder.latents

    def slow(pairs: Any, size: Any) -> Any:
        if pairs[0].row >= 12:
            assert learning.wait(60.0)
            time.sleep(0.1)
        found = latents(pairs, size)
        events.append(pairs[0].row // 6)
        return found

    def train(data: TensorDict) -> TensorDict:
        events.append("learn")
        learning.set()
        return tu.get_tensordict({}, {"metrics": {}})

    monkeypatch.setattr(worker.encoder, "latents", slow)
    monkeypatch.setattr(worker, "train_batch", train)
    worker.prefetch(batch(1), SIZE, 1)
    worker.prefetch(batch(2), SIZE, 2)
    worker.prefetch(batch(3), SIZE, 3)
    worker.learn(None, SIZE, 1)
    worker.prepare_evaluation()
    assert events == [1, "learn", 2, 3]
    assert worker.encoder.encode([batch(0)[0]], ["red"], SIZE).problems == [""]
    assert [len(worker.learn(None, SIZE, step)[1]) for step in (2, 3)] == [1, 1]


def test_what_goes_wrong_ahead_is_raised_by_its_step(make_learner, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_learner()
    states = worker.encoder.states

    def broken(captions: Any) -> Any:
        if "circle 5" not in captions:
            raise ArithmeticError("bad kernel")
        return states(captions)

    monkeypatch.setattr(worker.encoder, "states", broken)
    worker.prefetch(batch(1), SIZE, 1)
    worker.prefetch(batch(2)[:4], SIZE, 2)
    worker.learn(None, SIZE, 1)
    with pytest.raises(ArithmeticError, match="bad kernel"):
        worker.learn(None, SIZE, 2)

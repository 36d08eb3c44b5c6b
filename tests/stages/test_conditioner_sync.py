# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The conditioner that follows the captioner: what a rank takes, what is sent, and when. Runs are in tests/e2e."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from tests.actors import ConditionedRank
from tests.captioners import tiny
from verl_uae.caption_server.weights import WeightTransferError
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.checkpoints.export import _auto_class
from verl_uae.checkpoints.load import load_model
from verl_uae.errors import DecoderError, WorkerError
from verl_uae.families.sd3 import SD3
from verl_uae.families.text import language_stack
from verl_uae.stages.common import conditioner_sync
from verl_uae.stages.common.conditioner_sync import (
    PROBES,
    ConditionerSync,
    SyncedConditioner,
    own_name,
    send_language_model,
)
from verl_uae.stages.g4u import decoder_worker
from verl_uae.stages.g4u.decoder_worker import DecoderWorker

CAPTIONS = ["a red circle", "", "a large blue square"]
FAMILY = SD3({}, {}, length=20)


@pytest.fixture(scope="module")
def trained(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioner after training: every tensor has moved."""
    folder = tmp_path_factory.mktemp("trained") / "captioner"
    model = load_model(_auto_class(), tiny_models / "captioner")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    Conditioner.from_pretrained(str(tiny_models / "captioner"), FAMILY).tokenizer.save_pretrained(folder)
    return folder


def conditioner_of(folder: Path, dtype: torch.dtype = torch.float32) -> Conditioner:
    return Conditioner.from_pretrained(str(folder), FAMILY, dtype=dtype)


def sent(folder: Path, names: list[str]) -> list[tuple[str, Tensor]]:
    """What the captioner's ranks make of the weights of a folder."""
    state = load_model(_auto_class(), folder).state_dict()
    return [(own, tensor) for name, tensor in state.items() if (own := own_name(name, names)) is not None]


def take(synced: SyncedConditioner, folder: Path) -> dict[str, float] | None:
    """A whole update, in two buckets."""
    tensors = sent(folder, synced.begin())
    for bucket in (tensors[:3], tensors[3:]):
        synced.load(bucket)
    return synced.finish()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_language_model_is_all_that_is_taken_of_a_captioner(name: str) -> None:
    model, _ = tiny.build(name)
    stack = language_stack(model).state_dict()
    state = model.state_dict()
    found = {own_name(key, stack): tensor for key, tensor in state.items()}
    found.pop(None)
    assert found.keys() == stack.keys() and len(found) < len(state)
    assert all(tensor.data_ptr() == stack[own].data_ptr() for own, tensor in found.items())


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.", "model.language_model.", "language_model.model."])
def test_names_of_files_and_of_other_releases_are_known(prefix: str) -> None:
    known = {"layers.0.mlp.weight", "norm.weight"}
    assert [own_name(f"{prefix}{name}", known) for name in sorted(known)] == sorted(known)
    others = ("lm_head.weight", f"{prefix}visual.norm.weight", f"{prefix}lm_head.weight", "model", "norm")
    assert [own_name(name, known) for name in others] == [None] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_sync_states_are_those_of_the_captioners_checkpoint(
    tiny_models: Path, trained: Path, dtype: torch.dtype
) -> None:
    conditions = ConditionCache(conditioner_of(tiny_models / "captioner", dtype), 16)
    before = conditions.get(CAPTIONS).conditions
    negative = conditions.negative("blurred")
    synced = SyncedConditioner(conditions, "cpu", measures=False)
    assert not synced.complete and take(synced, trained) == {} and synced.complete
    fresh = ConditionCache(conditioner_of(trained, dtype), 16)
    after, wanted = conditions.get(CAPTIONS).conditions, fresh.get(CAPTIONS).conditions
    assert all(torch.equal(a.states, b.states) and a.states.dtype == dtype for a, b in zip(after, wanted, strict=True))
    assert not any(torch.equal(a.states, b.states) for a, b in zip(after, before, strict=True))
    # That of the unconditional branch is kept too.
    assert torch.equal(conditions.negative("blurred").states, fresh.negative("blurred").states)
    assert not torch.equal(conditions.negative("blurred").states, negative.states)


def test_the_drift_is_the_distance_from_the_states_before_training(tiny_models: Path, trained: Path) -> None:
    synced = SyncedConditioner(ConditionCache(conditioner_of(tiny_models / "captioner"), 16), "cpu", measures=True)
    assert take(synced, tiny_models / "captioner") == {"conditioner/state_drift": 0.0}
    before, after = (
        conditioner_of(folder).encode(PROBES).states.double() for folder in (tiny_models / "captioner", trained)
    )
    expected = float((after - before).square().sum().sqrt() / before.square().sum().sqrt())
    # From the beginning, and not from the sync before.
    for _ in range(2):
        assert take(synced, trained) == {"conditioner/state_drift": pytest.approx(expected, rel=1e-5)}
    assert expected > 0.05


def test_an_offloaded_conditioner_is_measured_where_it_computes_and_goes_back(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioner = conditioner_of(tiny_models / "captioner")
    synced = SyncedConditioner(ConditionCache(conditioner, 16), "meta", measures=True)
    moves: list[str] = []
    states = conditioner.encode(CAPTIONS)
    monkeypatch.setattr(conditioner_sync, "visit", lambda module, device: moves.append(str(device)))
    monkeypatch.setattr(conditioner, "encode", lambda captions, device: moves.append(f"encode on {device}") or states)
    take(synced, tiny_models / "captioner")
    assert moves == ["meta", "encode on meta", "cpu"] * 2


def test_half_a_language_model_is_not_drawn_with(tiny_models: Path, trained: Path) -> None:
    synced = SyncedConditioner(ConditionCache(conditioner_of(tiny_models / "captioner"), 16), "cpu", measures=False)
    take(synced, trained)
    synced.load(sent(trained, synced.begin())[1:])
    assert not synced.complete
    with pytest.raises(WeightTransferError, match=r"1 tensors of the conditioner were not sent: embed_tokens\.weight"):
        synced.finish()
    assert not synced.complete


def test_a_rank_that_was_started_in_the_middle_has_not_taken_it(tiny_models: Path, trained: Path) -> None:
    conditions = ConditionCache(conditioner_of(tiny_models / "captioner"), 16)
    synced = SyncedConditioner(conditions, "cpu", measures=True)
    before = conditions.conditioner.encode(CAPTIONS).states
    synced.load(sent(trained, list(conditions.conditioner.language_model.state_dict())))
    assert synced.finish() is None and not synced.complete
    assert torch.equal(conditions.conditioner.encode(CAPTIONS).states, before)


@pytest.mark.parametrize(
    ("overrides", "returned", "lacking"),
    [
        ([], True, ""),
        (["uae.conditioner.weights=synced"], False, ""),
        (["uae.conditioner.weights=synced"], True, "captioner"),
        (["uae.stage=unified"], True, "decoder policy"),
    ],
)
def test_a_decoder_draws_with_the_captioner_it_was_sent_and_no_other(
    compose,
    tiny_overrides: list[str],
    tiny_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    returned: bool,
    lacking: str,
) -> None:
    monkeypatch.setattr(decoder_worker, "get_device_name", lambda: "cpu")
    made = object.__new__(DecoderWorker)
    made.config = compose(*tiny_overrides, *overrides)
    made.redrawer, made._returned, made._rank = None, returned, 0
    assert made._lacking == lacking and made.begin_conditioner() is made.finish_conditioner() is None
    assert made.ready() is not lacking
    made.ensure_model()
    follows = "synced" in "".join(overrides)
    assert made._lacking == ("captioner" if follows else "")
    if not follows:
        return
    with pytest.raises(DecoderError, match="has not got the captioner's weights yet"):
        made.redraw([])
    tensors = sent(tiny_models / "captioner", made.begin_conditioner() or [])
    made.load_conditioner(tensors)
    assert made._lacking == "captioner" and not made.ready()
    assert made.finish_conditioner() == {"conditioner/state_drift": 0.0}
    assert made._lacking == "" and made.ready() and made.redraw([]) == []


# ------------------------------------------------------------ sending


def weights() -> Iterator[tuple[str, Tensor]]:
    yield "model.visual.norm.weight", torch.zeros(2)
    for number in range(4):
        yield f"model.language_model.layers.{number}.weight", torch.full((256,), number + 1 / 3)
    yield "lm_head.weight", torch.zeros(2)


NAMES = [f"layers.{number}.weight" for number in range(4)]


def rank_actor(**options: Any) -> Any:
    return ray.remote(num_cpus=0.1, **options)(ConditionedRank).remote(NAMES)


def test_tensors_go_in_buckets_in_the_conditioners_dtype_and_only_its_own(ray_cluster: None) -> None:
    ranks = [rank_actor() for _ in range(2)]
    ray.get([rank.begin_conditioner.remote() for rank in ranks])
    # Two tensors of bf16 fit into a bucket, the fp32 that is sent from would not.
    asyncio.run(send_language_model(weights(), ranks, NAMES, 1024, torch.bfloat16))
    for buckets in ray.get([rank.buckets.remote() for rank in ranks]):
        assert [[name for name, _ in bucket] for bucket in buckets] == [NAMES[:2], NAMES[2:]]
        found = [tensor for bucket in buckets for _, tensor in bucket]
        assert {tensor.dtype for tensor in found} == {torch.bfloat16}
        assert [float(tensor[0]) for tensor in found] == [float(torch.tensor(n + 1 / 3).bfloat16()) for n in range(4)]


def test_a_rank_that_does_not_send_walks_to_the_end() -> None:
    walked: list[str] = []

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights():
            walked.append(name)
            yield name, tensor

    asyncio.run(send_language_model(noted(), (), NAMES, 1024, torch.float32))
    assert len(walked) == 6


def test_a_dead_receiver_costs_the_others_nothing_and_one_that_refuses_ends_the_walk_late(ray_cluster: None) -> None:
    good, dead, odd = rank_actor(), rank_actor(), rank_actor()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(dead.die.remote())
    asyncio.run(send_language_model(weights(), [dead, good], NAMES, 1024, torch.float32))
    assert sum(map(len, ray.get(good.buckets.remote()))) == 4
    ray.get(odd.refuse.remote())
    walk = weights()
    with pytest.raises(ray.exceptions.RayTaskError, match="tensors of another model"):
        asyncio.run(send_language_model(walk, [odd], NAMES, 1024, torch.float32))
    assert next(walk, None) is None, "the other ranks would wait for this one in a collective"


# ------------------------------------------------------------ the controller


class Loop:
    """verl's trainer, as far as the mixin goes: notes what happens in which order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_init_end(self) -> None:
        self.events.append("captions")

    def on_step_end(self) -> None:
        self.events.append("captions")

    def step(self, metrics: dict, timing_raw: dict) -> str:
        self.events.append("step")
        return "batch"


class Trainer(ConditionerSync, Loop):
    """Trains the captioner in odd steps."""

    def __init__(self, decoders: list[Any], others: dict[str, Any], choice: str = "synced") -> None:
        super().__init__()
        self.config = SimpleNamespace(  # type: ignore[assignment]
            uae=SimpleNamespace(
                conditioner=SimpleNamespace(weights=choice, dtype="float32"), decoder=SimpleNamespace(timeout_s=60.0)
            )
        )
        self.others, self.global_steps, self.timing_raw = others, 0, {}
        self.supervisor = SimpleNamespace(phase=lambda *_: contextlib.nullcontext())
        self.decoders = SimpleNamespace(
            workers=decoders, revive_returned=lambda: self.events.append("look"), revive=self.revived
        )
        self.actor_rollout_wg = SimpleNamespace(send_language_model=self.send)

    def other_conditioned(self) -> Iterator[tuple[str, Any]]:
        yield from self.others.items()

    def captioner_steps(self, step: int) -> int:
        return (step + 1) // 2

    def send(self, receivers: tuple[Any, ...], names: tuple[str, ...], dtype: str) -> None:
        self.events.append(f"sent to {len(receivers)}")
        asyncio.run(send_language_model(weights(), receivers, names, 1 << 20, getattr(torch, dtype)))

    def revived(self, rank: int) -> None:
        self.events.append(f"revived {rank}")
        # As Ray and DecoderGroup.revive do.
        self.decoders.workers[rank] = rank_actor()
        assert self.decoders.send_captioner(f"decoder rank {rank}", self.decoders.workers[rank])


def whole(rank: Any) -> bool:
    return [name for bucket in ray.get(rank.buckets.remote()) for name, _ in bucket] == NAMES


def test_the_conditioner_has_the_captioner_before_anything_is_captioned(
    ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    learner = rank_actor()
    trainer = Trainer([rank_actor(), rank_actor()], {"learner rank 0": learner})
    trainer.on_init_end()
    assert trainer.events == ["look", "sent to 3", "captions"] and "the reward moves with it" in caplog.text
    assert all(map(whole, [*trainer.decoders.workers, learner]))
    metrics: dict[str, float] = {}
    assert trainer.step(metrics, {}) == "batch"
    assert metrics == {"conditioner/state_drift": 1.0, "conditioner/syncs": 0.0}
    trainer.events.clear()
    trainer.global_steps = 1
    trainer.on_step_end()
    assert trainer.events == ["look", "sent to 3", "captions"] and trainer.timing_raw["sync_conditioner"] > 0
    trainer.events.clear()
    # A step that leaves the captioner as it is.
    trainer.global_steps = 2
    trainer.on_step_end()
    assert trainer.events == ["captions"]
    trainer.step(metrics, {})
    assert metrics["conditioner/syncs"] == 1.0


def test_a_frozen_conditioner_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer([], {}, "frozen")
    metrics: dict[str, float] = {}
    trainer.on_init_end()
    trainer.global_steps = 1
    trainer.step(metrics, {})
    trainer.on_step_end()
    assert trainer.events == ["captions", "step", "captions"] and not metrics and not caplog.text


def test_a_decoder_that_dies_on_the_way_gets_it_when_it_is_back_and_a_learner_ends_the_run(ray_cluster: None) -> None:
    workers = [rank_actor(), rank_actor()]
    ray.get(workers[0].die_in.remote("load_conditioner"))
    trainer = Trainer(workers, {})
    trainer.on_init_end()
    assert trainer.events == ["look", "sent to 2", "revived 0", "sent to 1", "captions"]
    assert all(map(whole, trainer.decoders.workers))
    learner = rank_actor()
    ray.get(learner.die_in.remote("finish_conditioner"))
    with pytest.raises(WorkerError, match=r"learner rank 0: died while it took the captioner's language model"):
        Trainer([rank_actor()], {"learner rank 0": learner}).on_init_end()
    odd = rank_actor()
    ray.get(odd.die_in.remote("raise"))
    with pytest.raises(WorkerError, match=r"decoder rank 1: could not take .*ValueError: half a model"):
        Trainer([rank_actor(), odd], {}).on_init_end()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The workers are run as a whole by tests/e2e."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import torch
from torch import nn

from tests.devices import tell
from verl_uae.masters import is_shared
from verl_uae.stages.cold_start.worker import ColdStartWorker
from verl_uae.stages.common import worker as training_worker
from verl_uae.stages.common.config import EmaConfig
from verl_uae.stages.common.worker import DecoderTrainingWorker


def test_averaged_weights_are_named_only_where_they_are_kept() -> None:
    for shadows, name in (({"ema": 1}, "ema"), ({}, None), ({"old": 1}, None)):
        worker = SimpleNamespace(engine=SimpleNamespace(shadows=shadows))
        assert DecoderTrainingWorker._averaged.fget(worker) == name  # type: ignore[attr-defined]


def test_what_is_handed_on_is_asked_for_in_the_dtype_it_is_used_in(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(uae=SimpleNamespace(decoder=SimpleNamespace(dtype="bfloat16")))
    worker = SimpleNamespace(run=run, engine=None, _averaged="ema")
    monkeypatch.setattr(training_worker, "trained_state", lambda engine, *asked: asked)
    (reference,) = DecoderTrainingWorker.decoder_state(worker)  # type: ignore[arg-type]
    assert ray.get(reference) == ("ema", torch.bfloat16)
    monkeypatch.setattr(training_worker, "trained_state", lambda engine, *asked: None)
    assert DecoderTrainingWorker.decoder_state(worker) == []  # type: ignore[arg-type]


def averaged_by(updates: range, **settings: object) -> list[tuple[int, float]]:
    """Updates of the weights after which the average moves, and with which decay."""
    moved: list[tuple[int, float]] = []
    for update in updates:
        shadow = SimpleNamespace(update=lambda decay, update=update: moved.append((update, decay)))
        worker = SimpleNamespace(
            run=SimpleNamespace(uae=SimpleNamespace(train=SimpleNamespace(ema=EmaConfig(**settings)))),  # type: ignore[arg-type]
            engine=SimpleNamespace(shadow=lambda name, shadow=shadow: shadow),
            _averaged="ema",
        )
        DecoderTrainingWorker._average(worker, update, {})  # type: ignore[arg-type]
    return moved


def test_the_average_warms_up_by_the_number_of_updates_in_the_run() -> None:
    published = [(update, min(update / (9 + update), 0.9)) for update in range(8, 161, 8)]
    assert averaged_by(range(1, 161)) == published
    assert averaged_by(range(1, 41)) + averaged_by(range(41, 161)) == published, "a run that was resumed after 40"
    assert averaged_by(range(1, 9), every=4, warmup=False) == [(4, 0.9), (8, 0.9)]


@pytest.mark.parametrize(
    ("wanted", "weights", "shared"),
    [(True, "frozen", [True, True, True]), (True, "synced", [False, True, True]), (False, "frozen", [False] * 3)],
)
def test_frozen_models_that_never_change_are_shared(
    wanted: bool, weights: str, shared: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, "cpu")
    conditioner, vae, network = (nn.Linear(8, size).requires_grad_(False) for size in (5, 6, 7))
    before = [part.weight.clone() for part in (conditioner, vae, network)]
    scorer = SimpleNamespace(networks=lambda: [network])
    worker = SimpleNamespace(
        run=SimpleNamespace(
            uae=SimpleNamespace(
                decoder=SimpleNamespace(shared_master=wanted), conditioner=SimpleNamespace(weights=weights)
            )
        ),
        painter=SimpleNamespace(vae=vae, scorer=scorer, conditions=SimpleNamespace(conditioner=conditioner)),
        _offload=False,
    )
    worker._frozen_modules = lambda: DecoderTrainingWorker._frozen_modules(worker)  # type: ignore[arg-type]
    DecoderTrainingWorker._put_away(worker)  # type: ignore[arg-type]
    assert [is_shared(part.weight) for part in (conditioner, vae, network)] == shared
    assert all(torch.equal(part.weight, kept) for part, kept in zip((conditioner, vae, network), before, strict=True))


@pytest.mark.parametrize("trains", [True, False])
def test_a_conditioner_that_follows_the_captioner_of_the_cold_start_is_not_shared(trains: bool) -> None:
    """Every validation writes the trained weights into it, which other processes would read."""
    conditioner, vae, network = (nn.Linear(8, size).requires_grad_(False) for size in (5, 6, 7))
    worker = object.__new__(ColdStartWorker)
    captioner = SimpleNamespace(train=trains)
    uae = SimpleNamespace(
        conditioner=SimpleNamespace(weights="frozen"), cold_start=SimpleNamespace(captioner=captioner)
    )
    worker.run = SimpleNamespace(uae=uae)  # type: ignore[assignment]
    worker.painter = SimpleNamespace(  # type: ignore[assignment]
        vae=vae,
        scorer=SimpleNamespace(networks=lambda: [network]),
        conditions=SimpleNamespace(conditioner=conditioner),
    )
    assert worker._frozen_modules() == ([] if trains else [conditioner]) + [vae, network]

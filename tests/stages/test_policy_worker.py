# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker is run as a whole by tests/e2e/test_u4g.py."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from tests.devices import tell
from tests.real_size.conftest import one_rank  # noqa: F401
from tests.samples import sample
from verl_uae.chain.records import Draw
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import Trajectory
from verl_uae.stages.u4g.config import chosen_objective
from verl_uae.stages.u4g.worker import _KEPT, DecoderPolicyWorker, Layout, sampling_plan


def test_pictures_are_numbered_sample_by_sample(compose: Any, tiny_overrides: list[str]) -> None:
    asked: list[Draw] = []

    class Worker(DecoderPolicyWorker):
        rank, _forward, _offload, _averaged = 1, False, False, None

        def __init__(self) -> None:
            self.run, self.replica = compose(*tiny_overrides, "uae.seed=9", name="uae_u4g"), None
            self.engine = SimpleNamespace(eval_mode=contextlib.nullcontext, field=None)
            self.painter = SimpleNamespace(draw=self.draw)

        def draw(self, field: Any, plan: SamplingPlan, draws: list[Draw], **how: bool) -> Any:
            assert how == {"collective": True, "shared_prefix": False}, "each velocity call gathers weights"
            asked.extend(draws)
            return SimpleNamespace(outcomes=[], seconds={}, conditions=[], trajectory=None)

    samples = [sample(seed=number) for number in range(4)]
    layout = Layout(sources=4, members=4, updates=2, ranks=2)
    Worker().explore(samples, layout, SamplingPlan.ode(sigma_schedule(2)).to_dict(), 7)
    numbers = layout.of_rank(1)
    assert [draw.sample for draw in asked] == [samples[number // 4] for number in numbers]
    assert [draw.noise for draw in asked] == [(9, "u4g noise", 7, f"d{n // 4}", n % 4) for n in numbers]
    assert not any(draw.want_reconstruction for draw in asked), "no groupwise reward compares them"


@pytest.mark.parametrize("preset", ["nft", "crd", "dgpo"])
def test_a_group_shares_noise_levels_or_noise_too_or_nothing(
    compose: Any, tiny_overrides: list[str], preset: str
) -> None:
    """Two updates on two ranks: whatever the rank and the update, members of a picture have what they share."""
    config = compose(*tiny_overrides, f"decoder/objective={preset}", "uae.u4g.num_steps=10", name="uae_u4g")
    worker = object.__new__(DecoderPolicyWorker)
    worker.run, worker.painter = config, SimpleNamespace(settings=SimpleNamespace(latent_shape=(2, 3, 3)))
    names = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    plan = SamplingPlan.ode(sigma_schedule(10))
    drawn = worker._forward_draws(names, plan, 3)
    again = worker._forward_draws(names[1:2], plan, 3)
    assert all(torch.equal(again[name][0], drawn[name][1]) for name in drawn)
    shared = {name: [torch.equal(one[0], one[1]), torch.equal(one[2], one[3])] for name, one in drawn.items()}
    assert shared["sigma_BT"] == [preset != "nft"] * 2 and shared["noise_BTCHW"] == [preset == "dgpo"] * 2
    for values in drawn.values():
        assert not torch.equal(values[0], values[2]), "pictures share nothing"
        assert not torch.equal(values[0, 0], values[0, 1])


@pytest.mark.parametrize(
    ("preset", "draws"), [("dppo", None), ("nft", "old"), ("awm", "old"), ("crd", None), ("dgpo", None)]
)
def test_which_weights_draw(compose: Any, tiny_overrides: list[str], preset: str, draws: str | None) -> None:
    worker = object.__new__(DecoderPolicyWorker)
    worker.run = compose(*tiny_overrides, f"decoder/objective={preset}", name="uae_u4g")
    worker.objective = chosen_objective(worker.run)
    assert worker._drawing == draws


def test_trains_on_what_sampling_keeps() -> None:
    assert set(_KEPT.values()) < set(Trajectory.__dataclass_fields__)
    assert issubclass(DecoderPolicyWorker, TrainingWorker)


class Improving(DecoderPolicyWorker):
    """Two updates of two samples each, whose engine notes what it is given; the trained module says 0.5 more than the
    sampler did."""

    rank, _offload, _averaged, synced = 0, False, None, None

    def __init__(self, config: Any, *, forward: bool = False, replica: bool = False) -> None:
        self.run, self.replica = config, replica or None
        self.objective = SimpleNamespace(objective=SimpleNamespace(kind="forward" if forward else "transition"))
        self.engine = SimpleNamespace(
            eval_mode=contextlib.nullcontext, recompute_old=self.recompute, shadow=self.shadow
        )
        self.recomputed: list[int] = []
        self.swapped: list[str] = []

    def shadow(self, name: str) -> Any:
        self.swapped.append(name)
        return SimpleNamespace(swapped=contextlib.nullcontext)

    def recompute(self, data: TensorDict) -> None:
        self.recomputed.append(tu.get_non_tensor_data(data, "number", None))
        if "old_log_prob_BK" in data.keys():
            data["old_log_prob_BK"] = data["old_log_prob_BK"] + 0.5

    def batches(self) -> list[TensorDict]:
        plan = sampling_plan(self.run, SD3, 0)
        made = []
        for number in range(2):
            data = TensorDict(
                {"weight_B": torch.tensor([1.0, 0.0]), "old_log_prob_BK": torch.zeros(2, 3)}, batch_size=2
            )
            data["old_log_prob_BK"][1] = -9.0
            tu.assign_non_tensor(data, number=number, replay_steps=self._replayed(plan))
            made.append(data)
        return made


SD3: Any = SimpleNamespace(sigmas=lambda steps, height, width, table: sigma_schedule(steps))


NFT = ["uae.u4g.objective.num_sigmas=3", "uae.u4g.replay_steps=null"]
PREFIX = ["uae.u4g.share_noise=true", "uae.u4g.shared_prefix=true", "uae.u4g.replay_steps=null"]


@pytest.mark.parametrize(
    ("words", "options", "together", "recomputed", "on_policy"),
    [
        ([], {}, 1, [], [False, False]),
        (["uae.u4g.replay_steps=2"], {}, 2, [1], [True, False]),
        (["uae.u4g.replay_steps=null"], {}, 3, [1], [True, False]),
        # The first step is alone: of two none are together.
        (PREFIX, {}, 2, [1], [True, False]),
        ([*PREFIX, "uae.u4g.window.size=2"], {}, 1, [], [False, False]),
        ([*PREFIX, "uae.u4g.window.size=1"], {}, 1, [], [False, False]),
        ([], {"replica": True}, 1, [1], [True, False]),
        (NFT, {"forward": True}, 3, [0, 1], [False, False]),
    ],
)
@pytest.mark.usefixtures("one_rank")
def test_old_values_are_the_trained_modules_where_sampling_rounds_otherwise(
    compose: Any,
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    options: dict[str, bool],
    together: int,
    recomputed: list[int],
    on_policy: list[bool],
) -> None:
    """Before the first update nothing has moved the weights, so its pass says them; the later ones are asked now."""
    tell(monkeypatch, "cpu")
    worker = Improving(compose(*tiny_overrides, *words, name="uae_u4g"), **options)
    batches = worker.batches()
    apart = worker._old_values(batches)
    assert [tu.get_non_tensor_data(data, "replay_steps", None) for data in batches] == [together] * 2
    assert worker.recomputed == recomputed
    assert [bool(tu.get_non_tensor_data(data, "on_policy", False)) for data in batches] == on_policy
    assert apart == ({"sampler_log_prob_difference/max": 0.5} if any(on_policy) else {})
    assert worker.swapped == (["old"] if options.get("forward") else [])

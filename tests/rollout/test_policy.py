# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Shape legend: B samples, K steps of the window, C h w latent, H W pixels."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.conditions import ConditionCache
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import PolicyDraw, PolicyRollout, PolicyRolloutSettings, PolicySample, PolicySource
from verl_uae.chain.reconstruct import ChainRequest, ReconstructionChain, SamplerSettings, encode_jpeg, encode_png
from verl_uae.errors import RewardError
from verl_uae.flow.kernels import step
from verl_uae.flow.ode import Velocity, guided
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import score_step
from verl_uae.reward import RewardScorer, RewardTerm, Status, register_reward
from verl_uae.scenes.render import render_float, sample_scene
from verl_uae.seeding import normal

LATENT = (30, 4, 4)
PLAN = SamplingPlan(tuple(sigma_schedule(5, 3.0).tolist()), "cps", 0.8, (0, 1, 3))
SAMPLES = [PolicySample(source, member) for source in range(4) for member in range(2)]
CAPTIONS = ["a red circle", "a large blue square", "", "green"]
UNREADABLE = "a \ud800 circle"
"""A lone surrogate has no UTF-8: the tokenizer raises."""


@register_reward("test_policy_fault")
class Fault(RewardTerm):
    """Brightness; raises what ``row["fault"]`` names."""

    needs = frozenset({"reconstruction", "row"})
    bounds = (0.0, 1.0)

    def score(self, batch: Any) -> Tensor:
        faults = [row.get("fault") for row in batch.rows]
        if "raise" in faults:
            raise ArithmeticError("bad sample")
        if "stop" in faults:
            raise RewardError("brightness", "gone")
        return batch.reconstruction_B3HW.mean(dim=(1, 2, 3))


def picture(seed: int) -> Image.Image:
    pixels = render_float([sample_scene(random.Random(seed))])[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def truncated() -> Image.Image:
    buffer = io.BytesIO()
    picture(2).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:-60]))


def make_sources(changed: dict[int, dict[str, Any]] | None = None) -> list[PolicySource]:
    """Four sources; ``changed`` are fields of some of them."""
    fields: list[dict[str, Any]] = [
        {"image": picture(number), "digest": f"d{number}", "caption": caption}
        for number, caption in enumerate(CAPTIONS)
    ]
    for number, change in (changed or {}).items():
        fields[number].update(change)
    return [PolicySource(**values) for values in fields]


@pytest.fixture(scope="module")
def decoder(tiny_models: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_models / "decoder")).requires_grad_(False)


@pytest.fixture(scope="module")
def conditioner(tiny_models: Path) -> Conditioner:
    return Conditioner.from_pretrained(str(tiny_models / "encoder"), length=20)


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer([("pixel", 1.0, {}), ("test_policy_fault", 0.5, {})], held_out=[("ssim", {})])


class Policy:
    """The decoder as a policy that counts its velocity calls; rows of the noise named in ``poison`` become NaN."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.calls: list[int] = []
        self.poison: Tensor | None = None

    def __call__(self, states_BLE: Tensor, negative_1LE: Tensor | None, guidance: float) -> Velocity:
        inner = self.decoder.field(states_BLE)
        if guidance != 1.0:
            assert negative_1LE is not None
            inner = guided(inner, self.decoder.field(negative_1LE.expand_as(states_BLE)), guidance)

        def velocity(x_BChw: Tensor, sigma_B: Tensor) -> Tensor:
            self.calls.append(len(x_BChw))
            v_BChw = inner(x_BChw, sigma_B)
            if self.poison is not None:
                hit_B = (x_BChw == self.poison).flatten(1).all(1)
                v_BChw = torch.where(hit_B.view(-1, 1, 1, 1), torch.nan, v_BChw)
            return v_BChw

        return velocity


@pytest.fixture
def policy(decoder: Decoder) -> Policy:
    return Policy(decoder)


@pytest.fixture
def make_rollout(decoder: Decoder, conditioner: Conditioner, scorer: RewardScorer) -> Callable[..., PolicyRollout]:
    def make(**changes: Any) -> PolicyRollout:
        values = {
            "seed": 5,
            "height": 32,
            "width": 32,
            "latent_shape": LATENT,
            "micro_batch_size": 4,
            "decode_batch_size": 8,
            "vae_batch_size": 8,
            "share_noise": False,
            "negative_prompt": "blue square",
        }
        settings = PolicyRolloutSettings(**{**values, **changes})
        return PolicyRollout(ConditionCache(conditioner, 99), decoder.vae, scorer, settings, "cpu")

    return make


def zero_field(states_BLE: Tensor, negative_1LE: Tensor | None, guidance: float) -> Velocity:
    return lambda x_BChw, sigma_B: torch.zeros_like(x_BChw)


def tensors(draw: PolicyDraw) -> Iterator[Tensor]:
    yield draw.states_NLE
    for name in draw.trajectory.__dataclass_fields__:
        yield getattr(draw.trajectory, name)


def rows_of(draw: PolicyDraw, rows: Sequence[int]) -> list[Tensor]:
    return [tensor[list(rows)] for tensor in tensors(draw)]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def values(draw: PolicyDraw) -> list[tuple[float | None, dict[str, float]]]:
    """Values and terms of the records, without their seconds."""
    return [(record.value, dict(record.terms)) for record in draw.records]


def test_noise_is_named_by_step_picture_member_and_denoising_step(make_rollout) -> None:
    draw = make_rollout().explore(zero_field, PLAN, make_sources(), SAMPLES, 3)
    nothing = torch.zeros(1, *LATENT)
    for row, sample in enumerate(SAMPLES):
        digest = f"d{sample.source}"
        x_1Chw = normal(LATENT, 5, "u4g noise", 3, digest, sample.member)[None]
        assert torch.equal(draw.trajectory.x_BKCHW[row, 0], x_1Chw[0])
        for k, index in enumerate(PLAN.window):
            noise = normal(LATENT, 5, "u4g step noise", 3, digest, sample.member, index)[None]
            taken = step(PLAN.coefficients(index), draw.trajectory.x_BKCHW[row, k][None], nothing, noise_BCHW=noise)
            assert torch.equal(draw.trajectory.x_next_BKCHW[row, k], taken.x_next_BCHW[0])
            assert torch.equal(draw.trajectory.log_prob_BK[row, k], taken.log_prob_B[0])


def test_a_sample_has_its_noise_whatever_its_micro_batch(make_rollout) -> None:
    sources = make_sources()
    expected = make_rollout().explore(zero_field, PLAN, sources, SAMPLES, 1)
    order = [6, 1, 3, 0, 7, 2, 5, 4]
    for size in (1, 2, 8):
        samples = [SAMPLES[index] for index in order]
        draw = make_rollout(micro_batch_size=size).explore(zero_field, PLAN, sources, samples, 1)
        assert same(rows_of(draw, range(8)), rows_of(expected, order))


def test_a_group_may_share_its_initial_noise_but_no_step_noise(make_rollout) -> None:
    shared = make_rollout(share_noise=True).explore(zero_field, PLAN, make_sources(), SAMPLES, 1).trajectory
    start_NChw = shared.x_BKCHW[:, 0]
    assert torch.equal(start_NChw[0::2], start_NChw[1::2])
    assert torch.equal(start_NChw[0], normal(LATENT, 5, "u4g noise", 1, "d0"))
    assert not torch.equal(start_NChw[0], start_NChw[2])
    assert (shared.x_next_BKCHW[0::2, 0] - shared.x_next_BKCHW[1::2, 0]).abs().amin(dim=(1, 2, 3)).max() > 0
    own = make_rollout().explore(zero_field, PLAN, make_sources(), SAMPLES, 1).trajectory
    assert (own.x_BKCHW[0, 0] - own.x_BKCHW[1, 0]).abs().mean() > 0.5


def test_trajectories_replay_to_the_same_log_probabilities(make_rollout, policy: Policy) -> None:
    """In the same micro-batches, with the conditions that came back."""
    draw = make_rollout().explore(policy, PLAN, make_sources(), SAMPLES, 1)
    trajectory = draw.trajectory
    for start in range(0, len(SAMPLES), 4):
        rows = slice(start, start + 4)
        field = policy(draw.states_NLE[rows], None, 1.0)
        for k, index in enumerate(PLAN.window):
            taken = score_step(field, trajectory.x_BKCHW[rows, k], trajectory.x_next_BKCHW[rows, k], PLAN, index)
            assert torch.equal(taken.log_prob_B, trajectory.log_prob_BK[rows, k])
            assert torch.equal(taken.mean_BCHW, trajectory.mean_BKCHW[rows, k])
    assert policy.calls == [4] * (2 * PLAN.num_steps + 2 * len(PLAN.window))


def test_a_draw_repeats_bit_for_bit_and_members_differ(make_rollout, policy: Policy) -> None:
    rollout = make_rollout()
    one, again = (rollout.explore(policy, PLAN, make_sources(), SAMPLES, 1) for _ in range(2))
    assert same(list(tensors(one)), list(tensors(again))) and values(one) == values(again)
    assert len({record.value for record in one.records}) == len(SAMPLES)
    later = rollout.explore(policy, PLAN, make_sources(), SAMPLES, 2)
    assert values(later) != values(one)
    assert set(one.seconds) == {"condition", "sample", "decode", "score"} and all(s > 0 for s in one.seconds.values())


def test_records_belong_to_the_pictures_of_the_trajectories(make_rollout, policy: Policy, decoder: Decoder) -> None:
    samples = [PolicySample(source, 0, want_picture=source == 1) for source in range(4)]
    draw = make_rollout().explore(policy, PLAN, make_sources(), samples, 1)
    drawn_B3HW = decoder.decode_latent(draw.trajectory.final_BCHW)
    assert draw.pictures == [None, encode_jpeg(drawn_B3HW[1]), None, None]
    assert draw.reconstructions == [None] * 4
    kept = make_rollout(keep_reconstructions=True).explore(policy, PLAN, make_sources(), samples, 1)
    assert kept.reconstructions == [encode_png(drawn_3HW) for drawn_3HW in drawn_B3HW]
    for record, picture_3HW in zip(draw.records, drawn_B3HW, strict=True):
        assert record.ok and set(record.terms) == {"pixel", "test_policy_fault", "ssim"}
        assert record.terms["test_policy_fault"] == pytest.approx(picture_3HW.mean().item(), abs=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_evaluation_is_the_chain_with_the_same_noise(
    make_rollout, policy: Policy, decoder: Decoder, conditioner: Conditioner, scorer: RewardScorer, guidance: float
) -> None:
    rollout, sources = make_rollout(decode_batch_size=3), make_sources()
    samples = [PolicySample(source, 0, want_picture=True) for source in range(4)]
    settings = SamplerSettings(32, 32, 3, guidance, "blue square", 1, 4, 4)
    chain = ReconstructionChain(conditioner, decoder, scorer, settings)
    draw = rollout.evaluate(policy, chain.sigmas, guidance, sources, samples)
    keys: list[tuple[int | str, ...]] = [(5, "u4g noise", 0, source.digest, 0) for source in sources]
    expected_B3HW, _ = chain.draw(CAPTIONS, keys)
    assert torch.allclose(decoder.decode_latent(draw.trajectory.final_BCHW), expected_B3HW, atol=1e-5)
    # The chain names noise by a further number, the k-th picture of a caption.
    keyed = [ChainRequest(s.image, s.caption, key[:-1]) for s, key in zip(sources, keys, strict=True)]
    results = chain.run(keyed)
    assert [r.value for r in draw.records] == pytest.approx([r.record.value for r in results], abs=1e-5)
    assert draw.trajectory.log_prob_BK.shape == (4, 0) and all(draw.pictures)


def test_guidance_of_the_plan_is_explored_with(make_rollout, policy: Policy) -> None:
    plan = SamplingPlan(PLAN.sigmas, PLAN.kernel, PLAN.noise_level, PLAN.window, guidance=3.0)
    plain, strong = (make_rollout().explore(policy, p, make_sources(), SAMPLES, 1) for p in (PLAN, plan))
    assert (plain.trajectory.mean_BKCHW - strong.trajectory.mean_BKCHW).abs().mean() > 1e-3
    neutral = make_rollout(negative_prompt="").explore(policy, plan, make_sources(), SAMPLES, 1)
    assert not torch.equal(neutral.trajectory.mean_BKCHW, strong.trajectory.mean_BKCHW)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"status": "timeout", "failure": "too slow", "caption": ""}, Status.TIMEOUT, "too slow"),
        ({"caption": UNREADABLE}, Status.ERROR, "condition: "),
        ({"image": truncated()}, Status.ERROR, "source picture: OSError"),
        ({"row": {"fault": "raise"}}, Status.ERROR, "test_policy_fault: raised ArithmeticError: bad"),
    ],
    ids=["caption", "condition", "picture", "reward"],
)
def test_a_fault_costs_its_samples_and_no_velocity_call(
    make_rollout, policy: Policy, change: dict[str, Any], status: Status, reason: str
) -> None:
    clean = make_rollout(decode_batch_size=3).explore(policy, PLAN, make_sources(), SAMPLES, 1)
    calls, policy.calls = policy.calls, []
    draw = make_rollout(decode_batch_size=3).explore(policy, PLAN, make_sources({1: change}), SAMPLES, 1)
    assert policy.calls == calls
    lost = [row for row, sample in enumerate(SAMPLES) if sample.source == 1]
    kept = [row for row in range(len(SAMPLES)) if row not in lost]
    for row in lost:
        assert draw.records[row].value is None and draw.records[row].status is status
        assert (draw.records[row].reason or "").startswith(reason)
    assert [values(draw)[row] for row in kept] == [values(clean)[row] for row in kept]
    assert same(rows_of(draw, kept), rows_of(clean, kept))


def test_a_sample_without_caption_is_drawn_from_the_empty_one(make_rollout, policy: Policy) -> None:
    empty = make_rollout().explore(policy, PLAN, make_sources({1: {"caption": ""}}), SAMPLES, 1)
    broken = make_rollout().explore(policy, PLAN, make_sources({1: {"caption": UNREADABLE}}), SAMPLES, 1)
    assert same(list(tensors(empty)), list(tensors(broken)))
    assert empty.records[2].ok and not broken.records[2].ok


def test_a_latent_that_is_not_finite_costs_one_sample(make_rollout, policy: Policy) -> None:
    clean = make_rollout().explore(policy, PLAN, make_sources(), SAMPLES, 1)
    policy.poison = normal(LATENT, 5, "u4g noise", 1, "d1", 1)
    draw = make_rollout().explore(policy, PLAN, make_sources(), SAMPLES, 1)
    kept = [row for row in range(8) if row != 3]
    assert draw.records[3].status is Status.INVALID and not draw.trajectory.final_BCHW[3].isfinite().any()
    assert [values(draw)[row] for row in kept] == [values(clean)[row] for row in kept]
    assert same(rows_of(draw, kept), rows_of(clean, kept))


def test_a_picture_the_vae_refuses_costs_one_sample(make_rollout, policy: Policy, decoder: Decoder) -> None:
    clean = make_rollout().explore(policy, PLAN, make_sources(), SAMPLES, 1)
    policy.poison = normal(LATENT, 5, "u4g noise", 1, "d1", 1)

    def refuse(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].isfinite().all():
            raise MemoryError("no room")

    hook = decoder.vae.decoder.register_forward_pre_hook(refuse)
    try:
        samples = [PolicySample(sample.source, sample.member, want_picture=True) for sample in SAMPLES]
        draw = make_rollout().explore(policy, PLAN, make_sources(), samples, 1)
    finally:
        hook.remove()
    assert draw.records[3].reason == "decoder: MemoryError: no room" and draw.records[3].status is Status.ERROR
    assert [picture is None for picture in draw.pictures] == [row == 3 for row in range(8)]
    for row in (0, 1, 2, 4, 5, 6, 7):
        assert draw.records[row].value == pytest.approx(clean.records[row].value, abs=1e-5)


def test_a_scorer_that_cannot_go_on_does_not_end_one_rank(make_rollout, policy: Policy) -> None:
    sources = make_sources({3: {"row": {"fault": "stop"}}})
    draw = make_rollout(decode_batch_size=4).explore(policy, PLAN, sources, SAMPLES, 1)
    assert [record.ok for record in draw.records] == [True] * 4 + [False] * 4
    assert draw.records[7].reason == "reward: RewardError: reward term 'brightness': gone"
    assert len(policy.calls) == 2 * PLAN.num_steps


def test_truncated_captions_are_reported(make_rollout, policy: Policy) -> None:
    draw = make_rollout().explore(policy, PLAN, make_sources({2: {"caption": "red " * 100}}), SAMPLES, 1)
    assert draw.truncated == [sample.source == 2 for sample in SAMPLES]

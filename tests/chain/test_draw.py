# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Shape legend: B samples, K steps of the window, C H W latents, 3 H W pictures."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.samples import UNREADABLE, damaged_picture, sample
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import Drawn, Painter, PainterSettings
from verl_uae.chain.records import Draw, Sample
from verl_uae.data.images import encode_png, encode_shown, to_tensor
from verl_uae.errors import ConfigError, RewardError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.sd3 import SD3
from verl_uae.flow.kernels import step
from verl_uae.flow.ode import Velocity
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import score_step
from verl_uae.reward import RewardScorer, RewardTerm, Status, register_reward
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.seeding import normal

LATENT = (30, 4, 4)
PLAN = SamplingPlan(tuple(sigma_schedule(5, 3.0).tolist()), "cps", 0.8, (0, 1, 3))
ODE = SamplingPlan.ode(sigma_schedule(3, 3.0))
CAPTIONS = ["a red circle", "a large blue square", "", "green"]


@register_reward("test_draw_fault")
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


def make_samples(changed: dict[int, dict[str, Any]] | None = None) -> list[Sample]:
    """Four samples; ``changed`` are arguments of some of them, or their picture."""
    found = []
    for number, text in enumerate(CAPTIONS):
        change = {"text": text, **(changed or {}).get(number, {})}
        image = change.pop("image", None)
        found.append(sample(seed=number, **change))
        if image is not None:
            found[-1] = replace(found[-1], image=image)
    return found


def draws_of(
    samples: Sequence[Sample], *, step: int = 1, members: int = 2, share: bool = False, **wanted
) -> list[Draw]:
    """``members`` draws of each."""
    return [
        Draw.for_decoder(one, seed=5, step=step, member=member, share_noise=share, **wanted)
        for one in samples
        for member in range(members)
    ]


@pytest.fixture(scope="module")
def decoder(tiny_models: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_models / "decoder")).requires_grad_(False)


@pytest.fixture(scope="module")
def conditioner(tiny_models: Path) -> Conditioner:
    return Conditioner.from_pretrained(str(tiny_models / "captioner"), SD3({}, {}, length=20))


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer([("pixel", 1.0, {}), ("test_draw_fault", 0.5, {})], held_out=[("ssim", {})])


class Policy:
    """The decoder as a policy that counts its velocity calls; rows of the noise named in ``poison`` become NaN."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.calls: list[int] = []
        self.poison: Tensor | None = None

    def __call__(self, condition: Condition, negative: Condition | None, guidance: float) -> Velocity:
        inner = self.decoder.field(condition, negative, guidance)

        def velocity(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            self.calls.append(len(x_BCHW))
            v_BCHW = inner(x_BCHW, sigma_B)
            if self.poison is not None:
                hit_B = (x_BCHW == self.poison).flatten(1).all(1)
                v_BCHW = torch.where(hit_B.view(-1, 1, 1, 1), torch.nan, v_BCHW)
            return v_BCHW

        return velocity


@pytest.fixture
def policy(decoder: Decoder) -> Policy:
    return Policy(decoder)


@pytest.fixture(params=[False, True], ids=["one_thread", "overlap"])
def make_painter(
    request: pytest.FixtureRequest, decoder: Decoder, conditioner: Conditioner, scorer: RewardScorer
) -> Iterator[Callable[..., Painter]]:
    """Every test runs with and without the second thread: nothing else may tell them apart, and none stays behind."""

    def make(**changes: Any) -> Painter:
        values = {
            "overlap": request.param,
            "height": 32,
            "width": 32,
            "latent_shape": LATENT,
            "negative_prompt": "blue square",
            "micro_batch_size": 4,
            "score_batch_size": 8,
            "vae_batch_size": 8,
        }
        settings = PainterSettings(**{**values, **changes})
        return Painter(ConditionCache(conditioner, 99), decoder.vae, scorer, settings, "cpu")

    yield make
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("verl_uae pictures")]


def zero_field(condition: Condition, negative: Condition | None, guidance: float) -> Velocity:
    return lambda x_BCHW, sigma_B: torch.zeros_like(x_BCHW)


def tensors(drawn: Drawn) -> Iterator[Tensor]:
    yield Condition.stack(drawn.conditions).states
    for name in drawn.trajectory.__dataclass_fields__:
        yield getattr(drawn.trajectory, name)


def rows_of(drawn: Drawn, rows: Sequence[int]) -> list[Tensor]:
    return [tensor[list(rows)] for tensor in tensors(drawn)]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def values(drawn: Drawn) -> list[tuple[float | None, dict[str, float]]]:
    """Values and terms of the records, without their seconds."""
    return [(outcome.record.value, dict(outcome.record.terms)) for outcome in drawn.outcomes]


# ------------------------------------------------------------------------------------------------- what is drawn


def test_a_picture_is_condition_noise_euler_steps_and_decoding_called_by_hand(
    make_painter, decoder: Decoder, conditioner: Conditioner
) -> None:
    one = sample("a red circle")
    (outcome,) = make_painter().draw(decoder.field, ODE, [Draw(one, ("k", 0), want_reconstruction=True)]).outcomes
    by_hand = decoder.sample(conditioner.encode(["a red circle"]), normal(LATENT, "k", 0)[None], sigma_schedule(3, 3.0))
    expected = pixel_similarity(to_tensor([one.image], 32), by_hand).item()
    assert outcome.record.terms["pixel"] == pytest.approx(expected, rel=1e-5)
    assert set(outcome.record.terms) == {"pixel", "test_draw_fault", "ssim"} and outcome.truncated is False
    assert outcome.reconstruction == encode_png(by_hand[0])


def test_noise_is_named_by_step_picture_member_and_denoising_step(make_painter) -> None:
    draws = draws_of(make_samples(), step=3)
    drawn = make_painter().draw(zero_field, PLAN, draws, collective=True)
    nothing = torch.zeros(1, *LATENT)
    for row in range(8):
        name = (3, f"d{row // 2}", row % 2)
        assert torch.equal(drawn.trajectory.x_BKCHW[row, 0], normal(LATENT, 5, "u4g noise", *name))
        for k, index in enumerate(PLAN.window):
            noise = normal(LATENT, 5, "u4g step noise", *name, index)[None]
            taken = step(PLAN.coefficients(index), drawn.trajectory.x_BKCHW[row, k][None], nothing, noise_BCHW=noise)
            assert torch.equal(drawn.trajectory.x_next_BKCHW[row, k], taken.x_next_BCHW[0])
            assert torch.equal(drawn.trajectory.log_prob_BK[row, k], taken.log_prob_B[0])


def test_a_sample_has_its_noise_whatever_its_micro_batch(make_painter) -> None:
    draws = draws_of(make_samples())
    expected = make_painter().draw(zero_field, PLAN, draws)
    order = [6, 1, 3, 0, 7, 2, 5, 4]
    for size in (1, 2, 8):
        drawn = make_painter(micro_batch_size=size).draw(zero_field, PLAN, [draws[index] for index in order])
        assert same(rows_of(drawn, range(8)), rows_of(expected, order))


def test_a_group_may_share_its_initial_noise_but_no_step_noise(make_painter) -> None:
    shared = make_painter().draw(zero_field, PLAN, draws_of(make_samples(), share=True)).trajectory
    start_NCHW = shared.x_BKCHW[:, 0]
    assert torch.equal(start_NCHW[0::2], start_NCHW[1::2])
    assert torch.equal(start_NCHW[0], normal(LATENT, 5, "u4g noise", 1, "d0"))
    assert not torch.equal(start_NCHW[0], start_NCHW[2])
    assert (shared.x_next_BKCHW[0::2, 0] - shared.x_next_BKCHW[1::2, 0]).abs().amin(dim=(1, 2, 3)).max() > 0
    own = make_painter().draw(zero_field, PLAN, draws_of(make_samples())).trajectory
    assert (own.x_BKCHW[0, 0] - own.x_BKCHW[1, 0]).abs().mean() > 0.5


def test_what_a_group_shares_is_drawn_once_in_a_micro_batch(make_painter, policy: Policy) -> None:
    plan = replace(PLAN, window=(1, 3))
    draws = draws_of(make_samples(), share=True)
    apart = make_painter().draw(policy, plan, draws, collective=True)
    assert policy.calls == [4] * (2 * plan.num_steps)
    policy.calls.clear()
    once = make_painter().draw(policy, plan, draws, collective=True, shared_prefix=True)
    # Two members of two captions in each.
    assert policy.calls == [2, 2, 4, 4, 4] * 2
    for one, other in zip(tensors(once), tensors(apart), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    policy.calls.clear()
    own = make_painter().draw(policy, plan, draws_of(make_samples()), collective=True, shared_prefix=True)
    assert policy.calls == [4] * (2 * plan.num_steps), "noise of their own: nothing is shared"
    assert len(own.outcomes) == 8


def test_trajectories_replay_to_the_same_log_probabilities(make_painter, policy: Policy) -> None:
    """In the same micro-batches, with the conditions that came back."""
    drawn = make_painter().draw(policy, PLAN, draws_of(make_samples()), collective=True)
    trajectory = drawn.trajectory
    for start in range(0, 8, 4):
        rows = slice(start, start + 4)
        field = policy(Condition.stack(drawn.conditions[rows]), None, 1.0)
        for k, index in enumerate(PLAN.window):
            taken = score_step(field, trajectory.x_BKCHW[rows, k], trajectory.x_next_BKCHW[rows, k], PLAN, index)
            assert torch.equal(taken.log_prob_B, trajectory.log_prob_BK[rows, k])
            assert torch.equal(taken.mean_BCHW, trajectory.mean_BKCHW[rows, k])
    assert policy.calls == [4] * (2 * PLAN.num_steps + 2 * len(PLAN.window))


def test_a_draw_repeats_bit_for_bit_and_members_differ(make_painter, policy: Policy) -> None:
    painter = make_painter()
    one, again = (painter.draw(policy, PLAN, draws_of(make_samples())) for _ in range(2))
    assert same(list(tensors(one)), list(tensors(again))) and values(one) == values(again)
    assert len({outcome.record.value for outcome in one.outcomes}) == 8
    assert values(painter.draw(policy, PLAN, draws_of(make_samples(), step=2))) != values(one)
    assert set(one.seconds) == {"condition", "sample", "decode", "score", "draw"}
    assert all(s > 0 for s in one.seconds.values())
    busy = sum(one.seconds.values()) - one.seconds["draw"]
    assert one.seconds["draw"] >= 0.8 * busy or painter.settings.overlap


def test_outcomes_belong_to_the_pictures_of_the_trajectories(make_painter, policy: Policy, decoder: Decoder) -> None:
    draws = draws_of(make_samples(), members=1)
    draws[1] = replace(draws[1], want_picture=True)
    draws[2] = replace(draws[2], want_reconstruction=True)
    drawn = make_painter(score_batch_size=3).draw(policy, PLAN, draws)
    drawn_B3HW = decoder.decode_latent(drawn.trajectory.final_BCHW)
    assert [outcome.picture for outcome in drawn.outcomes] == [None, encode_shown(drawn_B3HW[1]), None, None]
    assert [outcome.reconstruction for outcome in drawn.outcomes] == [None, None, encode_png(drawn_B3HW[2]), None]
    for outcome, picture_3HW in zip(drawn.outcomes, drawn_B3HW, strict=True):
        assert outcome.record.terms["test_draw_fault"] == pytest.approx(picture_3HW.mean().item(), abs=1e-6)


def test_guidance_draws_away_from_the_negative_prompt(make_painter, policy: Policy, conditioner: Conditioner) -> None:
    strong_plan = replace(PLAN, guidance=3.0)
    draws = draws_of(make_samples())
    plain, strong = (make_painter().draw(policy, plan, draws).trajectory for plan in (PLAN, strong_plan))
    assert (plain.mean_BKCHW - strong.mean_BKCHW).abs().mean() > 1e-3
    neutral = make_painter(negative_prompt="").draw(policy, strong_plan, draws).trajectory
    assert not torch.equal(neutral.mean_BKCHW, strong.mean_BKCHW)
    # Away from the caption itself is nowhere.
    own = make_painter(negative_prompt="green").draw(policy, strong_plan, draws).trajectory
    assert torch.allclose(own.mean_BKCHW[6:], plain.mean_BKCHW[6:], atol=1e-5)


def test_both_branches_of_guidance_are_one_call_of_the_transformer(
    make_painter, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        calls.append((len(kwargs["hidden_states"]), len(kwargs["encoder_hidden_states"])))

    hook = decoder.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        make_painter().draw(decoder.field, replace(ODE, guidance=2.0), draws_of(make_samples(), members=1))
    finally:
        hook.remove()
    assert calls == [(8, 8)] * ODE.num_steps


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("collective", [False, True])
@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"status": Status.TIMEOUT, "reason": "too slow", "text": ""}, Status.TIMEOUT, "too slow"),
        ({"text": UNREADABLE}, Status.ERROR, "condition: "),
        ({"image": damaged_picture(2)}, Status.ERROR, "source picture: OSError"),
        ({"row": {"fault": "raise"}}, Status.ERROR, "test_draw_fault: raised ArithmeticError: bad"),
    ],
    ids=["caption", "condition", "picture", "reward"],
)
def test_a_fault_costs_its_samples_and_no_velocity_call(
    make_painter, policy: Policy, change: dict[str, Any], status: Status, reason: str, collective: bool
) -> None:
    painter = make_painter(score_batch_size=3)
    clean = painter.draw(policy, PLAN, draws_of(make_samples()), collective=collective)
    calls, policy.calls = policy.calls, []
    drawn = painter.draw(policy, PLAN, draws_of(make_samples({1: change})), collective=collective)
    assert policy.calls == calls
    kept = [0, 1, 4, 5, 6, 7]
    for row in (2, 3):
        record = drawn.outcomes[row].record
        assert record.value is None and record.status is status and (record.reason or "").startswith(reason)
    assert [values(drawn)[row] for row in kept] == [values(clean)[row] for row in kept]
    assert same(rows_of(drawn, kept), rows_of(clean, kept))


@pytest.mark.parametrize("kind", [KeyError, OverflowError, MemoryError])
@pytest.mark.parametrize("where", ["conditioner", "vae", "scorer"])
def test_whatever_is_raised_costs_its_samples(
    make_painter,
    decoder: Decoder,
    conditioner: Conditioner,
    scorer: RewardScorer,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    kind: type[Exception],
) -> None:
    draws = draws_of(make_samples(), members=1)
    clean = values(make_painter().draw(decoder.field, ODE, draws))
    latent_CHW = make_painter().draw(decoder.field, ODE, draws).trajectory.final_BCHW[1]
    tokenize, score = conditioner.tokenize, scorer.score

    def fail(hit: bool) -> None:
        if hit:
            raise kind("odd")

    if where == "conditioner":
        odd = lambda texts, **kind: fail(CAPTIONS[1] in texts) or tokenize(texts, **kind)  # noqa: E731
        monkeypatch.setattr(conditioner, "tokenize", odd)
    elif where == "scorer":
        odd = lambda batch: fail(CAPTIONS[1] in batch.captions) or score(batch)  # noqa: E731
        monkeypatch.setattr(scorer, "score", odd)
    else:
        near = lambda x: bool((x - latent_CHW).abs().flatten(1).amax(1).lt(1e-3).any())  # noqa: E731
        decode = DecoderFamily.decode_latent
        odd = lambda family, vae, x: fail(near(x)) or decode(family, vae, x)  # noqa: E731
        monkeypatch.setattr(DecoderFamily, "decode_latent", odd)
    drawn = make_painter().draw(decoder.field, ODE, draws)
    assert [outcome.record.ok for outcome in drawn.outcomes] == [True, False, True, True]
    label = {"conditioner": "condition", "vae": "decoder", "scorer": "reward"}[where]
    assert (drawn.outcomes[1].record.reason or "").startswith(f"{label}: {kind.__name__}: ")
    for row in (0, 2, 3):
        assert values(drawn)[row][0] == pytest.approx(clean[row][0], abs=1e-5)


def test_a_negative_prompt_that_cannot_be_encoded_is_no_empty_one(make_painter, decoder: Decoder) -> None:
    painter = make_painter(negative_prompt=UNREADABLE)
    with pytest.raises(ConfigError, match=r"uae\.decoder\.negative_prompt: condition: "):
        painter.draw(decoder.field, replace(ODE, guidance=2.0), draws_of(make_samples(), members=1))


def test_what_an_odd_file_raises_costs_its_samples(make_painter, decoder: Decoder) -> None:
    """Pillow's decoders raise more than OSError."""

    class Odd:
        def convert(self, mode: str) -> None:
            raise EOFError("no more images")

    drawn = make_painter().draw(decoder.field, ODE, draws_of(make_samples({1: {"image": Odd()}}), members=1))
    assert [outcome.record.ok for outcome in drawn.outcomes] == [True, False, True, True]
    assert drawn.outcomes[1].record.reason == "source picture: EOFError: no more images"


def test_a_sample_without_caption_is_drawn_from_the_empty_one(make_painter, policy: Policy) -> None:
    empty = make_painter().draw(policy, PLAN, draws_of(make_samples({1: {"text": ""}})))
    broken = make_painter().draw(policy, PLAN, draws_of(make_samples({1: {"text": UNREADABLE}})))
    assert same(list(tensors(empty)), list(tensors(broken)))
    assert empty.outcomes[2].record.ok and not broken.outcomes[2].record.ok


def test_a_latent_that_is_not_finite_costs_one_sample(make_painter, policy: Policy) -> None:
    clean = make_painter().draw(policy, PLAN, draws_of(make_samples()))
    policy.poison = normal(LATENT, 5, "u4g noise", 1, "d1", 1)
    drawn = make_painter().draw(policy, PLAN, draws_of(make_samples()))
    kept = [row for row in range(8) if row != 3]
    assert drawn.outcomes[3].record.status is Status.INVALID
    assert not drawn.trajectory.final_BCHW[3].isfinite().any()
    assert [values(drawn)[row] for row in kept] == [values(clean)[row] for row in kept]
    assert same(rows_of(drawn, kept), rows_of(clean, kept))


def test_a_picture_the_vae_refuses_costs_one_sample(make_painter, policy: Policy, decoder: Decoder) -> None:
    clean = make_painter().draw(policy, PLAN, draws_of(make_samples()))
    policy.poison = normal(LATENT, 5, "u4g noise", 1, "d1", 1)

    def refuse(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].isfinite().all():
            raise MemoryError("no room")

    hook = decoder.vae.decoder.register_forward_pre_hook(refuse)
    try:
        drawn = make_painter().draw(policy, PLAN, draws_of(make_samples(), want_picture=True))
    finally:
        hook.remove()
    record = drawn.outcomes[3].record
    assert record.reason == "decoder: MemoryError: no room" and record.status is Status.ERROR
    assert [outcome.picture is None for outcome in drawn.outcomes] == [row == 3 for row in range(8)]
    for row in (0, 1, 2, 4, 5, 6, 7):
        assert values(drawn)[row][0] == pytest.approx(values(clean)[row][0], abs=1e-5)


def failing(inner: Policy, poison: Tensor) -> Callable[..., Velocity]:
    """A decoder whose kernel fails on one sample's noise."""

    def field_of(*condition: Any) -> Velocity:
        velocity = inner(*condition)

        def checked(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            if (x_BCHW == poison).flatten(1).all(1).any():
                raise ArithmeticError("bad kernel")
            return velocity(x_BCHW, sigma_B)

        return checked

    return field_of


def test_a_velocity_call_that_fails_costs_one_sample_where_ranks_are_alone(make_painter, policy: Policy) -> None:
    clean = make_painter().draw(policy, PLAN, draws_of(make_samples()))
    broken = failing(policy, normal(LATENT, 5, "u4g noise", 1, "d1", 1))
    drawn = make_painter().draw(broken, PLAN, draws_of(make_samples(), want_picture=True))
    assert drawn.outcomes[3].record.reason == "decoder: ArithmeticError: bad kernel"
    assert [outcome.picture is None for outcome in drawn.outcomes] == [row == 3 for row in range(8)]
    for row in (0, 1, 2, 4, 5, 6, 7):
        assert values(drawn)[row][0] == pytest.approx(values(clean)[row][0], abs=1e-5)
    with pytest.raises(ArithmeticError, match="bad kernel"):
        make_painter().draw(broken, PLAN, draws_of(make_samples()), collective=True)


def test_a_scorer_that_cannot_go_on_does_not_end_one_rank(make_painter, policy: Policy) -> None:
    samples = make_samples({3: {"row": {"fault": "stop"}}})
    drawn = make_painter(score_batch_size=4).draw(policy, PLAN, draws_of(samples), collective=True)
    assert [outcome.record.ok for outcome in drawn.outcomes] == [True] * 4 + [False] * 4
    assert drawn.outcomes[7].record.reason == "reward: RewardError: reward term 'brightness': gone"
    assert len(policy.calls) == 2 * PLAN.num_steps


def test_truncated_captions_are_reported(make_painter, policy: Policy) -> None:
    drawn = make_painter().draw(policy, PLAN, draws_of(make_samples({2: {"text": "red " * 100}})))
    assert [outcome.truncated for outcome in drawn.outcomes] == [row in (4, 5) for row in range(8)]


def test_memory_that_runs_out_costs_no_sample_and_the_size_that_fits_stays(
    make_painter, policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = values(make_painter(micro_batch_size=1, vae_batch_size=1).draw(policy, ODE, draws_of(make_samples())))
    painter, tried = make_painter(score_batch_size=4), {"velocity": [], "vae": []}

    def limited(name: str, room: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def check(first: Any, *rest: Any) -> Any:
            tried[name].append(len(first))
            if len(first) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB")
            return call(first, *rest)

        return check

    decode = DecoderFamily.decode_latent
    monkeypatch.setattr(
        DecoderFamily,
        "decode_latent",
        lambda family, vae, latent: limited("vae", 1, lambda x: decode(family, vae, x))(latent),
    )
    for _ in range(2):
        drawn = painter.draw(limited("velocity", 2, policy), ODE, draws_of(make_samples()))
        for (value, _), (wanted, _) in zip(values(drawn), expected, strict=True):
            assert value == pytest.approx(wanted, abs=1e-5)
    assert tried == {"velocity": [4, *[2] * 8], "vae": [4, 2, *[1] * 16]}
    lines = [message for message in caplog.messages if message.startswith("out of memory")]
    assert len(lines) == 2
    assert any("uae.decoder.batch_size=2" in line for line in lines)
    assert any("uae.decoder.vae_batch_size=1" in line for line in lines)


def test_memory_that_holds_not_even_one_picture_is_an_error_of_each(make_painter) -> None:
    def full(*condition: Any) -> Velocity:
        raise torch.OutOfMemoryError("CUDA out of memory")

    drawn = make_painter().draw(full, ODE, draws_of(make_samples()))
    assert [outcome.record.status for outcome in drawn.outcomes] == [Status.ERROR] * 8
    assert all("out of memory" in (outcome.record.reason or "") for outcome in drawn.outcomes)


def whole(drawn: Drawn) -> tuple[Any, ...]:
    """All of it but the seconds."""
    records = [replace(outcome, record=replace(outcome.record, seconds=0.0)) for outcome in drawn.outcomes]
    return records, [tensor.numpy().tobytes() for tensor in tensors(drawn)]


@pytest.mark.parametrize("make_painter", [False], indirect=True)
@pytest.mark.parametrize("collective", [False, True])
@pytest.mark.parametrize(("micro", "score"), [(3, 4), (4, 3), (2, 8), (8, 2)], ids=lambda size: f"{size}")
def test_a_second_thread_changes_no_bit(make_painter, policy: Policy, micro: int, score: int, collective: bool) -> None:
    draws = draws_of(make_samples({1: {"row": {"fault": "raise"}}, 2: {"text": UNREADABLE}}), want_picture=True)
    draws[5] = replace(draws[5], want_reconstruction=True)
    sizes = {"micro_batch_size": micro, "score_batch_size": score, "vae_batch_size": 2}
    found = []
    for overlap in (False, True):
        policy.calls.clear()
        drawn = make_painter(**sizes, overlap=overlap).draw(policy, PLAN, draws, collective=collective)
        found.append((*whole(drawn), list(policy.calls)))
    assert found[0] == found[1]


@pytest.mark.parametrize("make_painter", [True], indirect=True)
def test_pictures_are_scored_while_others_are_sampled(
    make_painter, policy: Policy, scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last velocity call waits for the first score, and the decoder is called in the caller's thread alone."""
    scored, callers, score = threading.Event(), set(), scorer.score

    def score_and_tell(batch: Any) -> Any:
        found = score(batch)
        scored.set()
        return found

    def field_of(*condition: Any) -> Velocity:
        velocity = policy(*condition)

        def last_one_waits(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            callers.add(threading.current_thread())
            if len(policy.calls) == 4 * ODE.num_steps - 1:
                assert scored.wait(60.0)
            return velocity(x_BCHW, sigma_B)

        return last_one_waits

    monkeypatch.setattr(scorer, "score", score_and_tell)
    drawn = make_painter(micro_batch_size=2, score_batch_size=2).draw(
        field_of, ODE, draws_of(make_samples()), collective=True
    )
    assert all(outcome.record.ok for outcome in drawn.outcomes) and callers == {threading.current_thread()}
    busy = sum(drawn.seconds.values()) - drawn.seconds["draw"]
    assert 0 < drawn.seconds["score"] < drawn.seconds["draw"] and drawn.seconds["sample"] < busy


def test_what_nobody_expects_of_pictures_reaches_the_caller_after_all_calls_of_the_decoder(
    make_painter, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in the encoder")

    monkeypatch.setattr("verl_uae.chain.draw.encode_shown", broken)
    with pytest.raises(ZeroDivisionError, match="in the encoder") as caught:
        make_painter(micro_batch_size=2, score_batch_size=2).draw(
            policy, ODE, draws_of(make_samples(), want_picture=True), collective=True
        )
    assert policy.calls == [2] * (4 * ODE.num_steps), "other ranks wait for every call"
    assert {"broken", "_outcome", "draw"} <= {frame.name for frame in traceback.extract_tb(caught.tb)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_what_ends_sampling_ends_the_call(
    make_painter, policy: Policy, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a request to stop; of the pictures that are there at most a batch is waited for."""
    decoded: list[int] = []
    decode_latent = DecoderFamily.decode_latent

    def counted(family: DecoderFamily, vae: Any, latent_BCHW: Tensor) -> Tensor:
        decoded.append(len(latent_BCHW))
        return decode_latent(family, vae, latent_BCHW)

    def field_of(*condition: Any) -> Velocity:
        if len(policy.calls) == 2 * ODE.num_steps:
            raise error("stop")
        return policy(*condition)

    monkeypatch.setattr(DecoderFamily, "decode_latent", counted)
    with pytest.raises(error, match="stop"):
        make_painter(micro_batch_size=2, score_batch_size=4).draw(
            field_of, ODE, draws_of(make_samples()), collective=True
        )
    assert sum(decoded) <= 4

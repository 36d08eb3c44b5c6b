# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.reconstruct import (
    ChainRequest,
    ReconstructionChain,
    SamplerSettings,
    encode_jpeg,
    encode_png,
    mean_record,
)
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward import RewardRecord, RewardScorer, Status
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.render import render_float, sample_scene
from verl_uae.seeding import normal

SETTINGS = {
    "height": 32,
    "width": 32,
    "num_steps": 3,
    "guidance": 1.0,
    "negative_prompt": "",
    "seeds_per_caption": 1,
    "batch_size": 4,
    "vae_batch_size": 4,
}


def picture(seed: int) -> Image.Image:
    pixels = render_float([sample_scene(random.Random(seed))])[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255.0


@pytest.fixture(scope="module")
def make_chain(tiny_models: Path) -> Callable[..., ReconstructionChain]:
    conditioner = Conditioner.from_pretrained(str(tiny_models / "encoder"), length=20)
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"))
    scorer = RewardScorer([("pixel", 1.0, {})], held_out=[("ssim", {})])

    def make(**changes: object) -> ReconstructionChain:
        settings = SamplerSettings(**{**SETTINGS, **changes})  # type: ignore[arg-type]
        return ReconstructionChain(conditioner, decoder, scorer, settings)

    return make


def request(caption: str = "a red circle", image: int = 0, key: tuple = ("k",), **fields) -> ChainRequest:
    return ChainRequest(picture(image), caption, key, **fields)


def test_is_the_four_stages_called_by_hand(make_chain) -> None:
    chain = make_chain()
    states = chain.conditioner.encode(["a red circle"]).states_BLE
    noise = normal((30, 4, 4), "k", 0)[None]
    drawn = chain.decoder.sample(states, noise, sigma_schedule(3, 3.0))
    expected = pixel_similarity(as_tensor(picture(0)), drawn).item()
    result = chain.run([request()])[0]
    assert result.record.value == pytest.approx(expected, rel=1e-5)
    assert result.picture is None and result.truncated is False
    assert set(result.record.terms) == {"pixel", "ssim"}


def test_noise_belongs_to_its_name(make_chain) -> None:
    chain = make_chain()
    pictures, _ = chain.draw(["red circle"] * 3, [("a", 0), ("a", 0), ("b", 0)])
    assert torch.allclose(pictures[0], pictures[1], atol=1e-6)
    assert (pictures[0] - pictures[2]).abs().max() > 0.05


def test_a_group_shares_its_noise_and_differs_by_caption_only(make_chain) -> None:
    chain = make_chain()
    captions = ["a red circle", "a red circle", "a large blue square"]
    values = [result.record.value for result in chain.run([request(caption) for caption in captions])]
    assert values[0] == values[1] != values[2]
    other = chain.run([request(captions[0], key=("other",))])[0].record.value
    assert other != pytest.approx(values[0], rel=1e-6)


def test_the_value_does_not_depend_on_the_batch_size(make_chain) -> None:
    requests = [request(caption, seed, (seed,)) for seed, caption in enumerate(["red", "blue", "", "circle", "square"])]
    by_two, by_five = (make_chain(batch_size=size).run(requests) for size in (2, 5))
    for one, other in zip(by_two, by_five, strict=True):
        assert one.record.value == pytest.approx(other.record.value, abs=1e-5)


def test_k_seeds_are_averaged(make_chain) -> None:
    many = make_chain(seeds_per_caption=3)
    result = many.run([request(want_picture=True)])[0]
    pictures, _ = many.draw(["a red circle"], [("k", k) for k in range(3)])
    expected = pixel_similarity(as_tensor(picture(0)).expand(3, -1, -1, -1), pictures).mean().item()
    assert result.record.value == pytest.approx(expected, rel=1e-5)
    assert result.record.terms["pixel"] == pytest.approx(expected, rel=1e-5)
    assert result.picture == encode_jpeg(pictures[0])
    kept = many.run([request(want_reconstruction=True)])[0].reconstruction
    assert kept == encode_png(pictures[0]) and result.reconstruction is None
    assert torch.equal(as_tensor(Image.open(io.BytesIO(kept))), (pictures[:1] * 255).round() / 255)
    assert make_chain(seeds_per_caption=9, batch_size=4).run([request()])[0].record.ok


@pytest.mark.parametrize("kind", ["caption", "picture", "noise"])
def test_one_poisoned_request_costs_one_sample(make_chain, kind: str) -> None:
    """Real failures: a lone surrogate has no UTF-8, a closed file no pixels, a float no stable name."""
    clean = [request(caption, seed, (seed,)) for seed, caption in enumerate(["red", "blue", "circle", "square"])]
    expected = make_chain().run(clean)
    requests = list(clean)
    if kind == "caption":
        requests[2] = ChainRequest(picture(2), "a \ud800 circle", (2,))
    elif kind == "noise":
        requests[2] = ChainRequest(picture(2), "circle", (2.5,))  # type: ignore[arg-type]
    else:
        buffer = io.BytesIO()
        picture(2).save(buffer, "PNG")
        broken = Image.open(io.BytesIO(buffer.getvalue()[:-60]))
        requests[2] = ChainRequest(broken, "circle", (2,))
    results = make_chain().run(requests)
    assert [result.record.ok for result in results] == [True, True, False, True]
    assert results[2].record.status is Status.ERROR and results[2].record.value is None
    assert (results[2].record.reason or "").startswith("decoder: ")
    for index in (0, 1, 3):
        assert results[index].record.value == pytest.approx(expected[index].record.value, abs=1e-5)


def test_memory_that_runs_out_costs_no_sample_and_the_size_that_fits_stays(
    make_chain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [request(caption, seed, (seed,)) for seed, caption in enumerate(["red", "blue", "circle", "square"])]
    expected = [result.record.value for result in make_chain(batch_size=1, vae_batch_size=1).run(requests)]
    chain, tried = make_chain(), {"denoise": [], "decode_latent": []}
    for name, room in (("denoise", 2), ("decode_latent", 1)):
        original = getattr(chain.decoder, name)

        def limited(first, *args, name=name, room=room, original=original, **kwargs):
            tried[name].append(len(first))
            if len(first) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB")
            return original(first, *args, **kwargs)

        monkeypatch.setattr(chain.decoder, name, limited)
    for _ in range(2):
        results = chain.run(requests)
        assert [result.record.value for result in results] == pytest.approx(expected, abs=1e-5)
    assert tried == {"denoise": [4, 2, 2, 2, 2], "decode_latent": [2, *[1] * 8]}
    lines = [message for message in caplog.messages if message.startswith("out of memory")]
    assert len(lines) == 2
    assert any("uae.decoder.batch_size=2" in line for line in lines)
    assert any("uae.decoder.vae_batch_size=1" in line for line in lines)


def test_memory_that_holds_not_even_one_picture_is_an_error_of_each(make_chain, monkeypatch) -> None:
    chain = make_chain()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(chain.decoder, "denoise", fail)
    results = chain.run([request(), request()])
    assert [result.record.status for result in results] == [Status.ERROR] * 2
    assert all("out of memory" in (result.record.reason or "") for result in results)


def test_the_negative_prompt_is_encoded_once_and_draws_the_same(make_chain, monkeypatch) -> None:
    chain = make_chain(guidance=4.0, negative_prompt="blue square")
    first, _ = chain.draw(["a red circle"], [("k", 0)])
    encoded: list[list[str]] = []
    original = chain.conditioner.encode
    monkeypatch.setattr(chain.conditioner, "encode", lambda captions: encoded.append(captions) or original(captions))
    again, _ = chain.draw(["a red circle"], [("k", 0)])
    assert torch.equal(first, again) and encoded == [["a red circle"]]


def test_jpeg_on_request_only(make_chain) -> None:
    chain = make_chain()
    without, with_picture = chain.run([request(), request(want_picture=True)])
    assert without.picture is None and with_picture.picture is not None
    drawn, _ = chain.draw(["a red circle"], [("k", 0)])
    with Image.open(io.BytesIO(with_picture.picture)) as opened:
        assert opened.format == "JPEG" and opened.size == (32, 32)
        assert (as_tensor(opened) - drawn).abs().mean() < 0.03


def test_guidance_uses_the_negative_prompt(make_chain) -> None:
    def value(**changes) -> float:
        return make_chain(**changes).run([request()])[0].record.value

    plain = value()
    assert value(guidance=4.0, negative_prompt="blue square") != pytest.approx(plain, rel=1e-4)
    assert value(guidance=4.0, negative_prompt="a red circle") == pytest.approx(plain, rel=1e-4)


def test_truncation_is_reported(make_chain) -> None:
    flags = [result.truncated for result in make_chain().run([request("red " * 100), request()])]
    assert flags == [True, False]


def test_the_shift_is_the_decoders_unless_given(make_chain) -> None:
    assert torch.equal(make_chain().sigmas, sigma_schedule(3, 3.0))
    assert torch.equal(make_chain(shift=1.0).sigmas, sigma_schedule(3, 1.0))


def test_timers(make_chain) -> None:
    chain = make_chain()
    chain.run([request()])
    assert chain.seconds["decode"] > 0 and chain.seconds["score"] > 0
    chain.reset_timers()
    assert chain.seconds == {"decode": 0.0, "score": 0.0}
    assert chain.run([]) == []


def test_mean_record_leaves_failures_out() -> None:
    good = [RewardRecord(value, Status.OK, {"a": value, **extra}, 1.0) for value, extra in ((0.2, {}), (0.6, {"b": 1}))]
    bad = RewardRecord.failed(Status.TIMEOUT, "late", 2.0)
    mean = mean_record([good[0], bad, good[1]])
    assert mean.value == pytest.approx(0.4) and dict(mean.terms) == {"a": pytest.approx(0.4)} and mean.seconds == 4.0
    none = mean_record([bad, RewardRecord.failed(Status.ERROR, "other")])
    assert none.value is None and none.status is Status.TIMEOUT and none.reason == "late"

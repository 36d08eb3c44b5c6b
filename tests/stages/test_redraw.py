# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.samples import UNREADABLE, sample
from verl_uae.chain.records import Draw
from verl_uae.data.images import encode_shown
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.family import DecoderFamily
from verl_uae.families.sd3 import Projector
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.masters import is_shared
from verl_uae.reward.record import Status
from verl_uae.stages.g4u.decoder_worker import Redrawer, build_redrawer
from verl_uae.visits import _ARRIVALS


@pytest.fixture
def make(compose, tiny_overrides: list[str]):
    def made(*overrides: str) -> Redrawer:
        return build_redrawer(compose(*tiny_overrides, *overrides), "cpu", "cpu")

    return made


def draws(*captions: str, **wanted: bool) -> list[Draw]:
    return [Draw.for_caption(sample(caption), seed=7, step=3, **wanted) for caption in captions]


def test_what_the_configuration_says(make, compose, tiny_overrides: list[str]) -> None:
    redrawer = make("uae.decoder.num_steps=4", "uae.decoder.guidance=2", "uae.decoder.batch_size=3")
    assert redrawer.plan == SamplingPlan.ode(sigma_schedule(4, 3.0), 2.0), "the shift is the decoder's"
    assert (
        make("uae.decoder.shift=2.0", "uae.decoder.num_steps=4").plan.sigmas
        == SamplingPlan.ode(sigma_schedule(4, 2.0)).sigmas
    )
    painter = redrawer.painter
    assert painter.settings.micro_batch_size == painter.settings.score_batch_size == 3
    assert painter.scorer.labels == ["pixel", "ssim"]
    assert painter.scorer.guard.timeout_s == compose(*tiny_overrides).uae.reward.timeout_s
    conditioner = painter.conditions.conditioner
    assert (conditioner.family.length, conditioner.family.role) == (20, "generate")
    assert painter.vae is redrawer.decoder.vae
    assert not any(parameter.requires_grad for parameter in redrawer.decoder.parameters())


def test_dtypes(make) -> None:
    redrawer = make("uae.decoder.dtype=bfloat16", "uae.conditioner.dtype=bfloat16")
    conditioner = redrawer.painter.conditions.conditioner
    assert redrawer.decoder.transformer.dtype == conditioner.language_model.dtype == torch.bfloat16
    assert redrawer.decoder.vae.dtype == torch.float32
    assert redrawer.run(draws("a red circle"))[0].record.ok


def test_a_conditioner_of_another_width_is_refused(make, tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "decoder", tmp_path / "decoder")
    Projector(64, 16, 96, 16).save_pretrained(tmp_path / "decoder" / "conditioner")
    with pytest.raises(ConfigError, match=r"uae.conditioner.path: .* states of width 64, .* width 96"):
        make(f"uae.decoder.path={tmp_path}/decoder")


def test_a_folder_that_is_no_decoder(make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no transformer/"):
        make(f"uae.decoder.path={tmp_path}")


def test_captions_of_a_picture_share_their_noise(make) -> None:
    redrawer = make()
    one, again, other = (outcome.record.value for outcome in redrawer.run(draws("red", "red", "a large blue square")))
    assert one == again != other
    later = redrawer.run([Draw.for_caption(sample("red"), seed=7, step=4)])[0].record.value
    assert later != pytest.approx(one, rel=1e-6)


def test_k_pictures_are_averaged_and_the_first_is_shown(make) -> None:
    redrawer = make("uae.decoder.seeds_per_caption=3", "uae.decoder.batch_size=2")
    (draw,) = draws("a red circle", want_picture=True, want_reconstruction=True)
    outcome, second = redrawer.run([draw, *draws("a blue square")])
    numbered = [Draw(draw.sample, (*draw.noise, k), want_picture=True, want_reconstruction=True) for k in range(3)]
    alone = redrawer.painter.draw(redrawer.decoder.field, redrawer.plan, numbered).outcomes
    assert outcome.record.value == pytest.approx(sum(found.record.value or 0 for found in alone) / 3, rel=1e-5)
    assert (outcome.picture, outcome.reconstruction) == (alone[0].picture, alone[0].reconstruction)
    assert len({found.record.value for found in alone}) == 3
    assert second.record.ok and second.picture is None and second.reconstruction is None
    pixels = torch.frombuffer(Image.open(io.BytesIO(outcome.reconstruction)).tobytes(), dtype=torch.uint8)
    assert encode_shown(pixels.view(32, 32, 3).permute(2, 0, 1) / 255) == outcome.picture


def test_where_the_first_picture_is_lost_the_next_is_shown(make, monkeypatch: pytest.MonkeyPatch) -> None:
    redrawer = make("uae.decoder.seeds_per_caption=3", "uae.decoder.batch_size=1")
    whole = redrawer.run(draws("red", want_reconstruction=True))[0]
    calls: list[int] = []

    decode_latent = DecoderFamily.decode_latent

    def decode(family: DecoderFamily, vae: object, latent_BCHW: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("bad kernel")
        return decode_latent(family, vae, latent_BCHW)

    monkeypatch.setattr(DecoderFamily, "decode_latent", decode)
    found = redrawer.run(draws("red", want_reconstruction=True))[0]
    assert found.record.ok and found.reconstruction not in (None, whole.reconstruction)


def test_many_captions_go_in_parts_that_tell_how_far_they_are(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_uae.stages.g4u.decoder_worker.MICRO_BATCHES", 2)
    told: list[tuple[int, int]] = []
    captions = ["red", "blue", "green", "circle", UNREADABLE]
    parts = make("uae.decoder.batch_size=1").run(draws(*captions), lambda *progress: told.append(progress))
    assert told == [(2, 5), (4, 5), (5, 5)]
    whole = make().run(draws(*captions))
    for one, other in zip(parts[:4], whole[:4], strict=True):
        assert one.record.value == pytest.approx(other.record.value, abs=1e-5)
    assert parts[4].record.status is Status.ERROR and (parts[4].record.reason or "").startswith("condition: ")


def test_seconds(make) -> None:
    redrawer = make()
    redrawer.run(draws("red"))
    spent = dict(redrawer.seconds)
    assert spent["decode"] > 0 and spent["score"] > 0
    assert spent["draw"] == pytest.approx(spent["decode"] + spent["score"], rel=0.2)
    redrawer.reset_seconds()
    assert redrawer.seconds == dict.fromkeys(("decode", "score", "draw"), 0.0) and redrawer.run([]) == []


def test_the_second_thread_of_the_configuration_changes_no_outcome(make) -> None:
    captions = ["red", "a large blue square", UNREADABLE, "green", "circle"]
    found = []
    for switch in ("false", "true"):
        redrawer = make(f"uae.decoder.overlap={switch}", "uae.decoder.batch_size=2", "uae.decoder.seeds_per_caption=2")
        assert redrawer.painter.settings.overlap == (switch == "true")
        outcomes = redrawer.run(draws(*captions, want_picture=True))
        found.append([replace(each, record=replace(each.record, seconds=0.0)) for each in outcomes])
    assert found[0] == found[1] and [outcome.record.ok for outcome in found[0]] == [True, True, False, True, True]


def test_weights_that_processes_share_change_no_outcome(make) -> None:
    found = []
    for switch in ("false", "true", "true"):
        redrawer = make(f"uae.decoder.shared_master={switch}")
        parts = {
            "decoder": redrawer.decoder,
            "conditioner": redrawer.painter.conditions.conditioner,
        }
        shared = {name: [is_shared(each) for each in part.parameters()] for name, part in parts.items()}
        assert all(set(each) == {switch == "true"} for each in shared.values()), shared
        outcomes = redrawer.run(draws("red", "a large blue square", want_picture=True))
        found.append([replace(each, record=replace(each.record, seconds=0.0)) for each in outcomes])
    assert found[0] == found[1] == found[2]


def test_weights_that_change_are_not_shared(make) -> None:
    redrawer = make("uae.decoder.shared_master=true", "uae.conditioner.weights=synced")
    parts = redrawer.painter.conditions.conditioner, redrawer.decoder
    assert [{is_shared(each) for each in part.parameters()} for part in parts] == [{False}, {True}]


def test_every_model_is_waited_for_before_it_is_used_and_not_earlier(make) -> None:
    """Conditions are encoded while the transformer travels."""
    redrawer, said = make("uae.decoder.batch_size=1"), list[str]()
    conditioner, decoder = redrawer.painter.conditions.conditioner, redrawer.decoder
    stream = SimpleNamespace(wait_event=lambda event: said.append(f"wait for {event.name}"))
    backend = SimpleNamespace(current_stream=lambda: stream)
    models = {
        "language model": (conditioner, conditioner.language_model),
        "projector": (decoder.projector, decoder.projector),
        "transformer": (decoder.transformer, decoder.transformer),
        "vae": (decoder.vae, decoder.vae.decoder),
    }
    for name, (module, used) in models.items():
        for part in module.modules():
            _ARRIVALS[part] = (SimpleNamespace(name=name), backend)
        used.register_forward_pre_hook(lambda *args, name=name: said.append(name))
    redrawer.run(draws("red"))
    first = {word: said.index(word) for word in said}
    for name in models:
        assert first[f"wait for {name}"] < first[name]
    assert first["language model"] < min(first["wait for transformer"], first["wait for projector"])
    assert first["transformer"] < first["wait for vae"]
    _ARRIVALS.clear()


def test_what_is_needed_first_is_sent_first(make, monkeypatch: pytest.MonkeyPatch) -> None:
    redrawer, sent = make(), list[object]()
    note = lambda module, device: sent.append(module)  # noqa: E731
    monkeypatch.setattr("verl_uae.stages.g4u.decoder_worker.visit", note)
    monkeypatch.setattr("verl_uae.chain.draw.visit", note)
    redrawer.to("meta")
    decoder, conditioner = redrawer.decoder, redrawer.painter.conditions.conditioner
    assert sent[0] is conditioner and sent[-1] is decoder.vae
    assert {id(part) for part in decoder.children()} <= {id(part) for part in sent}

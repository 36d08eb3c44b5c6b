# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from benchmarks.learning import crowd_models as m
from benchmarks.learning import crowds as w
from benchmarks.learning import long as e
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.render import COLOURS, OBJECTS, SceneObject, cell_templates
from verl_uae.seeding import normal

RED = SceneObject("circle", "red", "small")
BLUE = SceneObject("square", "blue", "large")


TINY = m.CrowdConfig(seed=3, codec_steps=1, short_steps=2, short_batch=2, steps=2, batch=2)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """A codec whose decoder has learnt nothing; no test changes it."""
    return m.build_crowd_codec(0, steps=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list]:
    out = tmp_path_factory.mktemp("crowd")
    steps: list = []
    m.train_arms(out, TINY, lambda *step: steps.append(step))
    return out, steps


def crowd(**objects: SceneObject) -> w.Crowd:
    """A crowd from objects by row and column: r1c2."""
    cells: list[SceneObject | None] = [None] * 16
    for name, obj in objects.items():
        cells[4 * (int(name[1]) - 1) + int(name[3]) - 1] = obj
    return w.Crowd(tuple(cells))


def test_a_caption_has_one_sentence_of_ten_words_per_object():
    assert w.caption(crowd(r2c3=RED), random.Random(0)) == "row two column three holds a small red circle ."
    both = {w.caption(crowd(r2c3=RED, r4c1=BLUE), random.Random(seed)) for seed in range(20)}
    first, second = "row two column three holds a small red circle .", "row four column one holds a large blue square ."
    assert both == {f"{first} {second}", f"{second} {first}"}


def test_what_is_mentioned_is_what_was_written_up_to_the_cut():
    rng = random.Random(3)
    for count in (1, 5, 16):
        drawn = w.sample_crowd(rng, count)
        text = w.caption(drawn, rng)
        assert w.mentioned(text) == drawn.objects and len(text.split(" ")) == 10 * count
        for tokens in (0, 9, 10, 77):
            part = w.mentioned(w.cut(text, tokens))
            assert len(part) == min(count, tokens // 10)
            assert list(part) == list(w.mentioned(text))[: len(part)]
    assert w.cut("a b c", 2) == "a b" and w.cut("a b c", 9) == "a b c"


@pytest.mark.parametrize(
    "text",
    [
        "row two column three holds a small red red .",
        "row two column five holds a small red circle .",
        "row two column three has a small red circle .",
        "row one column one holds a small red circle . row one column one holds a large red circle .",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"not a caption|not one of"):
        w.mentioned(text)


def test_cells_are_half_the_scale_of_the_scenes_cells_on_white():
    picture = w.render([crowd(r1c2=BLUE)])
    assert picture.shape == (1, 3, 32, 32)
    full = cell_templates()[0, 1 + OBJECTS.index(BLUE)].float() / 255
    expected = sum(full[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    torch.testing.assert_close(picture[0, :, :8, 8:16], expected)
    # The square has radius 7 of 16 pixels: all inner 6x6 pixels of the cell are blue.
    blue = torch.tensor(COLOURS["blue"]) / 255
    torch.testing.assert_close(picture[0, :, 1:7, 9:15], blue.view(3, 1, 1).expand(3, 6, 6))
    picture[0, :, :8, 8:16] = 245 / 255
    torch.testing.assert_close(picture, torch.full((1, 3, 32, 32), 245 / 255))


def test_samples_have_their_number_of_objects_and_their_split():
    rng = random.Random(1)
    drawn = [w.sample_crowd(rng, count, split) for count in (1, 7, 16) for split in ("train", "val") for _ in range(5)]
    assert [len(c.objects) for c in drawn] == [1] * 10 + [7] * 10 + [16] * 10
    assert [c.split for c in drawn] == (["train"] * 5 + ["val"] * 5) * 3
    shares = [w.sample_crowd(rng, 1).cells for _ in range(300)]
    assert {next(i for i, o in enumerate(cells) if o) for cells in shares} == set(range(16))


@pytest.mark.parametrize(("count", "split"), [(0, "val"), (17, "val"), (3, "test")])
def test_impossible_samples_are_refused(count, split):
    with pytest.raises(ValueError, match=r"count must be|split is"):
        w.sample_crowd(random.Random(0), count, split)


def test_a_crowd_has_sixteen_cells_and_an_object():
    with pytest.raises(ValueError, match="expected 16"):
        w.Crowd((RED,))
    with pytest.raises(ValueError, match="without objects"):
        w.Crowd((None,) * 16)


def test_rendered_crowds_are_read_exactly_even_with_some_noise():
    rng = random.Random(0)
    crowds = [w.Crowd((*OBJECTS[:16],)), w.Crowd((*OBJECTS[8:],))] + [w.sample_crowd(rng, n) for n in range(1, 17)]
    codes = torch.tensor([crowd.codes for crowd in crowds])
    picture = w.render(crowds)
    assert torch.equal(w.read_codes(picture), codes)
    assert torch.equal(w.read_codes(picture + 0.05 * normal(tuple(picture.shape), "test")), codes)
    assert torch.equal(w.read_codes(picture.where(picture < 0.9, 7.0)), codes), "values are clipped"


def test_hits_name_exactly_what_is_drawn_otherwise():
    truth = [None] * 16
    truth[:3] = [SceneObject("circle", "red", "large")] * 3
    drawn = list(truth)
    drawn[0] = SceneObject("square", "red", "large")
    drawn[1] = None
    drawn[5] = SceneObject("circle", "blue", "small")
    found = w.hits(w.render([w.Crowd(tuple(drawn))]), [w.Crowd(tuple(truth))])

    def right(name):
        return found[name][0].nonzero().flatten().tolist()

    assert right("occupied") == [i for i in range(16) if i not in (1, 5)]
    assert right("colour") == right("size") == [0, 2]
    assert right("shape") == right("object") == [2]


def test_a_picture_is_read_for_each_crowd():
    with pytest.raises(ValueError, match="1 pictures for 0 crowds"):
        w.hits(torch.zeros(1, 3, 32, 32), [])


def test_a_word_is_a_token_and_the_condition_holds_the_longest_caption():
    conditioner = m.build_conditioner(m.build_language_model(0), m.condition_length(16))
    rng = random.Random(0)
    text = w.caption(w.sample_crowd(rng, 16), rng)
    tokens = conditioner.tokenize([text])
    ids = tokens.ids_BT
    assert bool(tokens.attend_BT.all()) and not bool(tokens.truncated_B) and ids.shape == (1, 165)
    assert conditioner.tokenizer.convert_ids_to_tokens(ids[0, 2:-3]) == text.split(" ")
    assert m.VOCABULARY.index(w.WORDS[0]) == ids[0, 2]


def test_a_short_condition_cuts_where_cut_does():
    language_model = m.build_language_model(0)
    rng = random.Random(1)
    text = w.caption(w.sample_crowd(rng, 12), rng)
    short = m.build_conditioner(language_model, m.TEMPLATE_TOKENS + 77)
    behind_cut = short.encode([text])
    shortened = m.build_conditioner(language_model, m.condition_length(16)).encode([w.cut(text, 77)])
    assert bool(short.tokenize([text]).truncated_B)
    torch.testing.assert_close(behind_cut.states, shortened.states[:, :82], atol=1e-5, rtol=1e-5)
    assert not bool(shortened.states[:, 82:].any())


def test_latents_tell_all_cell_pictures_apart_and_have_no_more_directions(vae):
    rng = random.Random(2)
    crowds = [w.sample_crowd(rng, n) for n in (1, 4, 16) for _ in range(8)]
    with torch.no_grad():
        latent = vae.encode(w.render(crowds) * 2 - 1).latent_dist.mean
    latent_NC = latent.permute(0, 2, 3, 1).flatten(0, 2)
    codes_N = torch.tensor([c.codes for c in crowds]).flatten()
    assert torch.equal(codes_N, w.read_codes(w.render(crowds)).flatten())
    means = torch.stack([latent_NC[codes_N == code].mean(0) for code in codes_N.unique()])
    apart = torch.cdist(means, means).fill_diagonal_(9.0).min()
    within = (latent_NC - means[torch.searchsorted(codes_N.unique(), codes_N)]).norm(dim=1).max()
    assert apart > 10 * within, (apart, within)
    # 25 pictures span 24 directions; the written encoder keeps 30.
    assert latent_NC.std(0)[len(w.templates()) - 1 :].max() < 0.01 and latent_NC.std(0)[:18].min() > 0.5


def test_positions_are_sums_of_rows_and_columns(vae):
    table = m.build_crowd_decoder(0, vae).transformer.pos_embed.pos_embed.view(4, 4, -1)
    torch.testing.assert_close(table[1, 2] - table[1, 0], table[3, 2] - table[3, 0])
    distance = torch.pdist(table.flatten(0, 1))
    assert distance.min() > 5


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{key}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def test_both_decoders_go_on_from_the_short_phase(trained):
    out, steps = trained
    assert [(name, step) for name, step, _ in steps] == [(n, s) for n in ("short", "full", "cut") for s in (1, 2)]
    short, full, cut = (weights(out / name) for name in ("short", "full", "cut"))
    changed = [key for key in short if not torch.equal(short[key], full[key])]
    assert any(key.startswith("transformer/") for key in changed) and any("language_model/" in key for key in changed)
    assert any("conditioner/" in key for key in changed) and not any(key.startswith("vae/") for key in changed)
    assert any(not torch.equal(full[key], cut[key]) for key in full)


def test_a_seed_gives_the_same_weights_and_finished_phases_are_kept(trained, tmp_path):
    out, _ = trained
    m.train_arms(tmp_path, TINY)
    first, again = weights(out / "full"), weights(tmp_path / "full")
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    steps: list = []
    m.train_arms(tmp_path, TINY, lambda *step: steps.append(step))
    assert steps == [] and not list(tmp_path.glob("*.part*"))


def test_training_lowers_the_loss(vae):
    models = m.build_language_model(0), m.build_crowd_decoder(0, vae)
    losses: list[float] = []
    m.train(
        *models,
        JointConfig(steps=40, decoder_batch=8),
        m.CrowdConfig(),
        objects=2,
        length=25,
        name="short",
        on_step=lambda _, __, loss: losses.append(loss),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_diverged_phase_says_so(vae):
    language_model, decoder = m.build_language_model(0), m.build_crowd_decoder(0, vae)
    torch.nn.init.constant_(decoder.transformer.proj_out.bias, float("nan"))
    with pytest.raises(ValueError, match="phase short diverged at step 0 with seed 3"):
        phase = JointConfig(steps=1, decoder_batch=1)
        m.train(language_model, decoder, phase, TINY, objects=1, length=15, name="short")


def test_every_variant_draws_the_same_crowds(trained):
    out, _ = trained
    found = e.evaluate_arms(out, 0, counts=(2, 9), crowds=3, num_steps=2)
    assert [(d.variant, d.count, d.tokens) for d in found] == [(v, n, 10 * n) for n in (2, 9) for v in e.VARIANTS]
    assert all(len(values) == 3 for d in found for values in d.scores.values())
    short_full, short_cut, _, long_full, long_cut, _ = found
    # Nothing is cut from twenty tokens, thirteen of ninety are.
    assert short_full.scores["mse"] == short_cut.scores["mse"]
    assert long_full.scores["mse"] != long_cut.scores["mse"]
    # As text, where NaN is NaN.
    assert repr(found) == repr(e.evaluate_arms(out, 0, counts=(2, 9), crowds=3, num_steps=2))


def test_a_perfect_drawing_is_all_right():
    rng = random.Random(0)
    crowds = [w.sample_crowd(rng, 12) for _ in range(3)]
    found = e.score(w.render(crowds), crowds, [w.caption(c, rng) for c in crowds])
    assert found.pop("mse") == [0.0] * 3
    assert all(values == [1.0] * 3 for values in found.values()) and len(found) == 7


def test_what_stands_after_the_cut_is_counted_apart():
    """A drawing of exactly the first seven sentences of twelve."""
    rng = random.Random(1)
    crowd = w.sample_crowd(rng, 12)
    text = w.caption(crowd, rng)
    early = list(w.mentioned(text))[:7]
    drawn = w.Crowd(tuple(crowd.objects[name] if name in early else None for name in w.CELLS))
    found = e.score(w.render([drawn]), [crowd], [text])
    assert found["object_before"] == [1.0] and found["object_after"] == [0.0]
    assert found["object"] == pytest.approx([7 / 12]) and found["occupied"] == pytest.approx([11 / 16])
    assert found["mse"][0] > 0


def test_a_short_caption_has_nothing_after_the_cut():
    rng = random.Random(2)
    crowd = w.sample_crowd(rng, 7)
    found = e.score(w.render([crowd]), [crowd], [w.caption(crowd, rng)])
    assert found["object_before"] == [1.0] and math.isnan(found["object_after"][0])


def test_held_out_crowds_are_repeatable_and_held_out():
    crowds, captions = e.held_out(5, 10, 0)
    assert (crowds, captions) == e.held_out(5, 10, 0) and crowds != e.held_out(5, 10, 1)[0]
    assert {c.split for c in crowds} == {"val"} and {len(c.objects) for c in crowds} == {5}
    assert [w.mentioned(text) for text in captions] == [c.objects for c in crowds]


def test_the_interval_is_that_of_the_mean_over_crowds():
    values = [float(i % 2) for i in range(400)]
    found = e.interval([*values, float("nan")], "test")
    assert found is not None and found["mean"] == 0.5
    # The normal interval of a share: 0.5 -+ 1.96 sqrt(0.25 / 400).
    assert found["low"] == pytest.approx(0.5 - 0.049, abs=0.006)
    assert found["high"] == pytest.approx(0.5 + 0.049, abs=0.006)
    assert e.interval([float("nan")], "test") is None


def test_a_seed_that_is_there_is_read_and_one_with_other_settings_refused(tmp_path: Path):
    content = [{"variant": "full", "count": 2, "seed": 0, "tokens": 20, "scores": {}}]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert e.run_seed(tmp_path, TINY, lambda _: None) == [e.Drawn("full", 2, 0, 20, {})]
    with pytest.raises(SystemExit, match="other settings"):
        e.run_seed(tmp_path, m.CrowdConfig(), lambda _: None)


def test_the_summary_has_means_of_all_crowds_and_of_each_seed():
    drawn = [
        e.Drawn(variant, count, seed, 10 * count, {key: [0.2 + seed / 2, 0.3 + seed / 2] for key in e.FIGURES})
        for seed in (0, 1)
        for variant in e.VARIANTS
        for count in e.COUNTS
    ]
    found = e.summary(drawn, m.CrowdConfig(seed=1))
    assert found["seeds"] == [0, 1] and found["cut_tokens"] == 77 and "seed" not in found["settings"]
    assert len(found["figures"]) == len(e.VARIANTS) * len(e.COUNTS)
    assert {entry["crowds"] for entry in found["figures"]} == {4}
    entry = found["figures"][0]
    assert entry["pooled"]["object"]["mean"] == pytest.approx(0.5)
    assert [entry["by_seed"][seed]["mse"]["mean"] for seed in "01"] == pytest.approx([0.25, 0.75])

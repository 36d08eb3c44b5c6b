# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from verl_uae.chain.conditioner import Conditioner
from verl_uae.families.sd3 import SD3
from verl_uae.families.text import language_stack
from verl_uae.scenes import joint_training as c
from verl_uae.scenes.codec import build_codec
from verl_uae.scenes.evaluate import evaluate
from verl_uae.scenes.render import render_float
from verl_uae.scenes.tiny_models import CONDITION_LENGTH, build_captioner, build_decoder

SHORT = c.JointConfig(
    seed=1, codec_steps=2, steps=2, decoder_batch=4, captioner_batch=2, warmup_steps=1, object_counts=(1,)
)


def _weights(folder) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.parent.name}/{k}": v for f in files for k, v in load_file(f).items()}


def test_two_runs_of_a_seed_write_the_same_folders_and_report_every_step(tmp_path):
    seen: list[tuple] = []
    c.train_tiny_models(tmp_path / "a", SHORT, lambda *event: seen.append(event))
    c.train_tiny_models(tmp_path / "b", SHORT)
    first, second = _weights(tmp_path / "a"), _weights(tmp_path / "b")
    assert first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    assert [(part, step, total) for part, step, total, _ in seen] == [
        ("codec", 1, 2),
        ("codec", 2, 2),
        ("joint", 1, 2),
        ("joint", 2, 2),
    ]
    assert set(seen[-1][3]) == {"flow", "caption"}
    metrics = evaluate(
        tmp_path / "a/captioner", tmp_path / "a/decoder", tmp_path / "a/captioner", n=4, num_steps=1, scene_eval_items=1
    ).metrics
    assert 0 <= metrics["drawn"] <= 1


def test_pool_holds_training_scenes_with_their_own_latents():
    decoder = build_decoder(0, build_codec(0, fit_scenes=100))
    pool = c.Pool(decoder, c.scene_world(SHORT), SHORT.seed)
    scenes, image, latent = pool.draw(16)
    assert {scene.split for scene in scenes} == {"train"}
    assert torch.equal(image, render_float(scenes))
    torch.testing.assert_close(latent, decoder.encode_image(image), atol=1e-3, rtol=1e-3)


@pytest.fixture
def models(tokenizer):
    return build_captioner(0, tokenizer), build_decoder(0, build_codec(0, fit_scenes=100))


def test_flow_loss_of_a_zero_velocity_is_the_variance_of_its_target(models, tokenizer):
    """At the start the output is zero, so the loss is E(noise - x0)^2 = 1 + E x0^2."""
    captioner, decoder = models
    config = dataclasses.replace(SHORT, decoder_batch=128)
    scenes, image, latent = c.Pool(decoder, c.scene_world(config), config.seed).draw(128)
    flow, caption = c.JointLoss(captioner, decoder, tokenizer, config, c.scene_world(config))(scenes, image, latent)
    assert flow.item() == pytest.approx(1 + float(latent.square().mean()), rel=0.03)
    assert caption.item() > 2


def test_flow_gradient_reaches_the_language_model_but_not_the_codec(models, tokenizer):
    captioner, decoder = models
    torch.nn.init.normal_(decoder.transformer.proj_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    scenes, image, latent = c.Pool(decoder, c.scene_world(SHORT), SHORT.seed).draw(4)
    flow, _ = c.JointLoss(captioner, decoder, tokenizer, SHORT, c.scene_world(SHORT))(scenes, image, latent)
    flow.backward()
    assert float(captioner.model.language_model.embed_tokens.weight.grad.abs().sum()) > 0
    assert captioner.model.visual.patch_embed.proj.weight.grad is None
    assert all(p.grad is None for p in decoder.vae.parameters())


def test_conditions_at_training_are_those_at_rl(models, tokenizer, tiny_models):
    captioner, decoder = models
    loss = c.JointLoss(captioner, decoder, tokenizer, SHORT, c.scene_world(SHORT))
    text = "a topleft small red circle"
    trained = loss._conditioner.condition(loss._conditioner.tokenize([text]))
    family = SD3({}, {}, length=CONDITION_LENGTH)
    loaded = Conditioner.from_pretrained(str(tiny_models / "captioner"), family).encode([text])
    same = Conditioner(language_stack(captioner), tokenizer, family).encode([text])
    torch.testing.assert_close(trained.states, same.states)
    assert trained.lengths == loaded.lengths and trained.states.shape == loaded.states.shape


def test_divergence_is_reported_with_step_and_seed(models, tokenizer):
    captioner, decoder = models
    with torch.no_grad():
        captioner.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="step 0 with seed 1"):
        c.train_joint(captioner, decoder, tokenizer, SHORT, c.scene_world(SHORT))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_joint_training_reaches_its_bars_and_leaves_room(tmp_path):
    c.train_tiny_models(tmp_path)
    metrics = evaluate(tmp_path / "captioner", tmp_path / "decoder", tmp_path / "captioner").metrics
    assert metrics["grammatical"] >= 0.95 and metrics["true"] >= 0.85
    assert 0.1 <= metrics["full_detail"] <= 0.35

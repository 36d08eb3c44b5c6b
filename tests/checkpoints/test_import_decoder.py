# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Published folders of every family become model folders that draw what the published models do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import tiny
from verl_uae import UAEPipeline
from verl_uae.checkpoints.imports import DecoderImport, import_decoder
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.cli import main
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_of, family_of_modules
from verl_uae.families.text import language_stack
from verl_uae.flow.ode import euler
from verl_uae.seeding import normal

NAMES = sorted(set(tiny.BUILDERS) - {"sd3"})
SIDE, STEPS = 64, 3


@pytest.fixture(scope="module", params=NAMES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tiny.Tiny, Path]:
    """Models in memory, and a root with decoder/ as published and captioner/, which is another one where the
    decoder's language model does not see."""
    root = tmp_path_factory.mktemp(request.param)
    made = tiny.build(request.param)
    made.save(root)
    if not (root / "captioner").is_dir():
        tiny.build("qwen_image21").save(root / "other")
        (root / "other" / "captioner").rename(root / "captioner")
    import_decoder(DecoderImport(str(root / "decoder"), str(root / "captioner")), root / "model")
    return made, root


@torch.no_grad()
def by_hand(made: tiny.Tiny, root: Path) -> torch.Tensor:
    """A guided picture by the models in memory, as tests/families compares it with the stock pipeline's."""
    modules = {"transformer": made.transformer, "vae": made.vae}
    index = root / "decoder" / "model_index.json"
    known: dict[str, Any] = json.loads(index.read_text()) if index.is_file() else {}
    family = family_of_modules(modules, family_of(root / "decoder").scheduler, known)
    stack = language_stack(made.language_model)
    condition, negative = (
        family.encode_text(stack, made.tokenizer, [text], negative=negative)
        for text, negative in (("two blue cups", False), ("", True))
    )

    class Parts:
        transformer = made.transformer

    field = family.field(Parts, condition, negative, 3.0)
    noise = normal((1, *family.latent_shape(SIDE, SIDE)), "noise")
    return family.decode_latent(made.vae, euler(field, noise, family.sigmas(STEPS, SIDE, SIDE)))


def test_the_pipeline_draws_what_the_published_models_draw_also_when_saved_again(world: Any, tmp_path: Path) -> None:
    made, root = world
    expected = by_hand(made, root)
    folder = root / "model"
    verify_folder(folder)
    for _ in range(2):
        pipe = UAEPipeline.from_pretrained(folder)
        latents = normal((1, *pipe.decoder.latent_shape(SIDE, SIDE)), "noise")
        size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "guidance_scale": 3.0}
        drawn = pipe("two blue cups", latents=latents, output_type="pt", **size).images
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
        other = pipe("a red fox", latents=latents, output_type="pt", **size).images
        assert (other - expected).abs().max() > 5e-4, "the caption would not be seen"
        folder = tmp_path / "again"
        pipe.save_pretrained(folder)


def test_a_language_model_is_there_once_where_the_captioner_is_it(world: Any) -> None:
    made, root = world
    shared = hasattr(made.language_model.config, "vision_config")
    assert (root / "model" / "language_model").is_dir() == (not shared)
    index = json.loads((root / "model" / "model_index.json").read_text())
    family = UAEPipeline.from_pretrained(root / "model").family
    assert (index["num_inference_steps"], index["guidance_scale"]) == (family.steps, family.guidance)
    assert family.licence in (root / "model" / "README.md").read_text()


def test_a_captioner_that_is_not_the_language_model_needs_that(tmp_path: Path) -> None:
    tiny.build("z_image").save(tmp_path)
    tiny.build("qwen_image").save(tmp_path / "other")
    captioner = str(tmp_path / "other" / "captioner")
    (tmp_path / "decoder" / "text_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="takes states of qwen3, the language model is a qwen2_5_vl"):
        import_decoder(DecoderImport(str(tmp_path / "decoder"), captioner), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_sd3_is_sent_to_its_own_import(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads no language model without a projector: use verl-uae import sd3"):
        import_decoder(DecoderImport(str(tiny_models / "decoder"), str(tiny_models / "captioner")), tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny.build("sana").save(tmp_path)
    tiny.build("qwen_image").save(tmp_path / "other")
    words = ["--decoder", str(tmp_path / "decoder"), "--captioner", str(tmp_path / "other" / "captioner")]
    assert main(["import", "decoder", *words, "--out", str(tmp_path / "model")]) == 0
    assert "as in the manifest" in capsys.readouterr().out

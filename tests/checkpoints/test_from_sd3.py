# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.assemble import tensors_of
from verl_uae.checkpoints.imports import Sd3Import, empty_prompt_pooled, fresh_projector, import_sd3
from verl_uae.checkpoints.load import language_sizes
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.sd3 import Projector


@pytest.fixture
def settings(sd3: Path, tiny_models: Path) -> Sd3Import:
    return Sd3Import(str(sd3), str(tiny_models / "captioner"), hidden_dim=24, condition_length=20)


def test_everything_but_the_projector_is_the_sources(model_folder: Path, sd3: Path, tiny_models: Path) -> None:
    sources = {"transformer": sd3 / "transformer", "vae": sd3 / "vae", "captioner": tiny_models / "captioner"}
    for name, source in sources.items():
        found, wanted = tensors_of(model_folder / name), tensors_of(source)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert Decoder.from_pretrained(str(model_folder)).family.shift(4, 32, 32) == 3.0
    assert not (model_folder / "text_encoder").exists() and not (model_folder / "language_model").exists()


def test_the_projector_joins_both_and_holds_the_pooled_vector(model_folder: Path, sd3: Path) -> None:
    projector = Projector.from_pretrained(model_folder, subfolder="conditioner")
    assert (projector.config.in_dim, projector.config.hidden_dim, projector.config.out_dim) == (96, 24, 96)
    assert torch.equal(projector.pooled, by_diffusers(sd3, ""))


def test_the_released_width_is_the_default() -> None:
    assert Sd3Import("a", "b").hidden_dim == 8192


def test_the_projector_depends_on_its_seed_alone(settings: Sd3Import, model_folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    torch.rand(3)
    import_sd3(settings, tmp_path / "same")
    import_sd3(replace(settings, seed=1), tmp_path / "other")
    torch.set_rng_state(state)
    first, same, other = (
        tensors_of(folder / "conditioner") for folder in (model_folder, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert all(not torch.equal(tensor, other[name]) for name, tensor in first.items() if name != "pooled")
    assert torch.equal(first["pooled"], other["pooled"])


def test_first_values_are_those_of_a_linear_layer() -> None:
    state = torch.get_rng_state()
    projector = fresh_projector(400, 100, hidden_dim=200, pooled=torch.ones(3), seed=0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    # torch's default: uniform in +- 1 / sqrt(inputs), of variance 1 / (3 inputs).
    for layer, inputs in ((projector.layers[0], 400), (projector.layers[2], 200)):
        assert layer.weight.abs().max().item() <= 1 / math.sqrt(inputs)
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.02)
    with pytest.raises(ConfigError, match="--hidden-dim: must be at least 1, got 0"):
        fresh_projector(4, 4, hidden_dim=0, pooled=torch.ones(3), seed=0)


def test_the_card_names_the_sources_and_the_choices(model_folder: Path, settings: Sd3Import) -> None:
    text = (model_folder / "README.md").read_text()
    sources = [Path(settings.sd3), Path(settings.captioner)]
    assert all(f"| {source.name} |" in text and str(source.parent) not in text for source in sources)
    assert "| projector.hidden_dim | 24 |" in text and "fresh random weights" in text


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler", "text_encoder_2"])
def test_a_missing_part_is_named_and_nothing_is_written(settings: Sd3Import, tmp_path: Path, name: str) -> None:
    shutil.copytree(settings.sd3, tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / name)
    with pytest.raises(CheckpointError, match=name):
        import_sd3(replace(settings, sd3=str(tmp_path / "sd3")), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sd3"}


def test_pickled_weights_are_refused(settings: Sd3Import, tmp_path: Path) -> None:
    shutil.copytree(settings.sd3, tmp_path / "sd3")
    weights = tmp_path / "sd3" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"vae: has no .*pickles are refused: diffusion_pytorch_model\.bin"):
        import_sd3(replace(settings, sd3=str(tmp_path / "sd3")), tmp_path / "out")


def test_a_captioner_of_another_kind_is_refused(settings: Sd3Import, sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        import_sd3(replace(settings, captioner=str(sd3 / "text_encoder")), tmp_path / "out")
    with pytest.raises(CheckpointError, match="no vision-language model"):
        language_sizes(sd3)
    assert not (tmp_path / "out").exists()


def test_code_of_the_captioner_is_refused(settings: Sd3Import, tmp_path: Path) -> None:
    shutil.copytree(settings.captioner, tmp_path / "captioner")
    config = tmp_path / "captioner" / "config.json"
    config.write_text(config.read_text().replace("{", '{"auto_map": {"AutoModel": "m.Model"},', 1))
    with pytest.raises(CheckpointError, match="needs Python code of its own"):
        import_sd3(replace(settings, captioner=str(tmp_path / "captioner")), tmp_path / "out")


def test_an_import_is_not_written_over_another(settings: Sd3Import, model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        import_sd3(settings, model_folder)
    verify_folder(model_folder)


def by_diffusers(sd3: Path, prompt: str) -> Tensor:
    """Pooled prompt embedding of the stock pipeline, loaded from the folder."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        _, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return pooled[0]


def test_it_is_what_the_stock_pipeline_computes(sd3: Path) -> None:
    pooled = empty_prompt_pooled(sd3)
    assert pooled.shape == (16,) and pooled.dtype == torch.float32
    assert torch.equal(pooled, by_diffusers(sd3, ""))
    assert (pooled - by_diffusers(sd3, "abc")).abs().max() > 0.1
    assert pooled[:6].abs().min() > 0 and pooled[6:].abs().min() > 0


def test_it_is_computed_in_fp32_whatever_is_stored(sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3, tmp_path / "half")
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(pipeline, name).half().save_pretrained(tmp_path / "half" / name)
    pooled = empty_prompt_pooled(tmp_path / "half")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, empty_prompt_pooled(sd3), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"])
def test_a_missing_part_is_named(sd3: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(sd3, tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / name)
    with pytest.raises(CheckpointError, match="missing") as caught:
        empty_prompt_pooled(tmp_path / "sd3")
    assert caught.value.path.name == name


def test_pickled_text_encoders_are_refused(sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3, tmp_path / "sd3")
    weights = tmp_path / "sd3" / "text_encoder_2" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"text_encoder_2: has no .*pickles are refused: pytorch_model\.bin"):
        empty_prompt_pooled(tmp_path / "sd3")

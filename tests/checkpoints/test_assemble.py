# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from tests.checkpoints.conftest import smallest_parts
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.assemble import (
    check_model,
    check_transformers,
    copy_component,
    copy_transformers,
    publish_model,
    save_component,
    tensors_of,
    write_decoder,
)
from verl_uae.checkpoints.inference import write_index
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.errors import CheckpointError
from verl_uae.families.sd3 import SD3, Projector

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_index_is_that_of_a_decoder_folder_and_says_the_condition(tiny_models: Path, tmp_path: Path) -> None:
    write_index(tmp_path, SD3({}, {}), {"condition_length": 20, "condition_role": "generate"})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index.pop("condition_length"), index.pop("condition_role")) == (20, "generate")
    assert index == json.loads((tiny_models / "decoder" / "model_index.json").read_text())


def test_a_decoder_is_written_of_modules_or_copied(tiny_models: Path, tmp_path: Path) -> None:
    source = tiny_models / "decoder"
    decoder = Decoder.from_pretrained(str(source))
    names = ("transformer", "conditioner")
    write_decoder(tmp_path / "copied", {name: source / name for name in names}, source)
    modules = decoder.modules_by_folder()
    write_decoder(tmp_path / "written", {name: modules[name] for name in names}, source)
    for name in ("copied", "written"):
        again = Decoder.from_pretrained(str(tmp_path / name))
        assert again.family.shift(4, 32, 32) == 3.0
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in decoder.state_dict().items())


def test_a_model_that_came_back_other_than_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    projector = Projector(3, 4, 5, 2)
    save = Projector.save_pretrained

    def lossy(self: Projector, folder: Path, **options: object) -> None:
        save(self, folder, **options)
        state = load_file(Path(folder) / WEIGHTS)
        state["layers.0.bias"][1] += 1e-6
        save_file(state, Path(folder) / WEIGHTS)

    save_component(projector, tmp_path / "sound")
    monkeypatch.setattr(Projector, "save_pretrained", lossy)
    with pytest.raises(CheckpointError, match=r"1 tensors came back other than written: \['layers\.0\.bias'\]"):
        save_component(projector, tmp_path / "lossy")


def test_a_component_is_copied_without_variants_and_pickles(tiny_models: Path, tmp_path: Path) -> None:
    source = tmp_path / "transformer"
    shutil.copytree(tiny_models / "decoder" / "transformer", source)
    shutil.copy(source / WEIGHTS, source / "diffusion_pytorch_model.fp16.safetensors")
    (source / "diffusion_pytorch_model.bin").touch()
    copy_component(source, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"config.json", WEIGHTS}
    with pytest.raises(CheckpointError, match="not a component"):
        copy_component(tmp_path / "nothing", tmp_path / "copy")


def test_a_component_in_shards_is_copied_with_its_index(tiny_models: Path, tmp_path: Path) -> None:
    source, copy = tmp_path / "transformer", tmp_path / "copy"
    model = SD3Transformer2DModel.from_pretrained(tiny_models / "decoder", subfolder="transformer")
    model.save_pretrained(source, max_shard_size="500KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    copy_component(source, copy)
    loaded = SD3Transformer2DModel.from_pretrained(copy, use_safetensors=True)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert set(tensors_of(copy)) == set(model.state_dict())


def test_a_captioner_is_copied_with_its_processor_and_licence_and_nothing_else(
    tiny_models: Path, tmp_path: Path
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(tiny_models / "captioner", source)
    for name in ("optimizer.pt", "README.md", "LICENSE", "modeling.py", "manifest.json"):
        (source / name).write_text("text")
    copy_transformers(source, copy)
    before = {path.name for path in (tiny_models / "captioner").iterdir()}
    assert {path.name for path in copy.iterdir()} == before | {"LICENSE"}
    assert check_transformers(copy) == (96, 2, "qwen2_5_vl")
    copy_transformers(source, tmp_path / "with code", code=True)
    assert (tmp_path / "with code" / "modeling.py").is_file()


def test_a_captioner_must_have_all_its_tensors(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "captioner")
    state = load_file(tmp_path / "captioner" / "model.safetensors")
    state["model.layers.0.mlp.up_proj.wieght"] = state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, tmp_path / "captioner" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks model.*up_proj\.weight, has the unknown model.*up_proj\.wieght$"):
        check_transformers(tmp_path / "captioner")
    with pytest.raises(CheckpointError, match="does not load"):
        check_transformers(tmp_path)


def test_no_configuration_says_where_it_was_loaded_from(model_folder: Path, tiny_models: Path, tmp_path: Path) -> None:
    source = tiny_models / "decoder"
    decoder = Decoder.from_pretrained(str(source))

    def write(out: Path) -> None:
        write_decoder(out, {"transformer": decoder.transformer, "conditioner": decoder.projector}, source)
        assert str(source) in (out / "transformer" / "config.json").read_text()

    publish_model(replace(smallest_parts(), decoder=write), tmp_path / "model")
    texts = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert len(texts) == 6 and not any("_name_or_path" in text or str(tiny_models) in text for text in texts)
    again = SD3Transformer2DModel.from_pretrained(tmp_path / "model", subfolder="transformer")
    wanted = {name: value for name, value in decoder.transformer.config.items() if name != "_name_or_path"}
    assert {name: value for name, value in again.config.items() if name != "_name_or_path"} == wanted


def test_a_model_folder_loads_in_stock_classes(model_folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    verify_folder(model_folder)
    SD3Transformer2DModel.from_pretrained(model_folder, subfolder="transformer", use_safetensors=True)
    AutoencoderKL.from_pretrained(model_folder, subfolder="vae", use_safetensors=True)
    FlowMatchEulerDiscreteScheduler.from_pretrained(model_folder, subfolder="scheduler")
    AutoModelForImageTextToText.from_pretrained(model_folder / "captioner")
    AutoProcessor.from_pretrained(model_folder / "captioner")
    decoder = Decoder.from_pretrained(str(model_folder))
    index = json.loads((model_folder / "model_index.json").read_text())
    family = SD3({}, {}, length=index["condition_length"], role=index["condition_role"])
    conditioner = Conditioner.from_pretrained(str(model_folder / "captioner"), family)
    states = conditioner.encode(["a red circle"])
    noise = torch.zeros(1, *decoder.latent_shape(32, 32))
    assert decoder.sample(states, noise, torch.tensor([1.0, 0.5, 0.0])).shape == (1, 3, 32, 32)


def swap_projector(folder: Path, *dims: int) -> None:
    shutil.rmtree(folder / "conditioner")
    Projector(*dims).save_pretrained(folder / "conditioner")


@pytest.mark.parametrize(
    ("dims", "error"),
    [
        ((96, 24, 95, 16), "out_dim 95 is not the transformer's joint_attention_dim 96"),
        ((96, 24, 96, 15), "pooled_dim 15 is not the transformer's pooled_projection_dim 16"),
        ((95, 24, 96, 16), "takes states of width 95, the language model has width 96"),
    ],
)
def test_parts_that_do_not_fit_are_named(model_folder: Path, tmp_path: Path, dims: tuple[int, ...], error: str) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    check_model(tmp_path / "model")
    swap_projector(tmp_path / "model", *dims)
    with pytest.raises(CheckpointError, match=error):
        check_model(tmp_path / "model")


def test_weights_that_do_not_fit_their_config_are_never_published(tmp_path: Path) -> None:
    parts = smallest_parts()

    def write(folder: Path) -> None:
        parts.decoder(folder)
        state = load_file(folder / "transformer" / WEIGHTS)
        state.pop("proj_out.bias")
        save_file(state, folder / "transformer" / WEIGHTS)

    with pytest.raises(
        CheckpointError, match=r"transformer: is not a whole SD3Transformer2DModel: it lacks proj_out\.bias$"
    ):
        publish_model(replace(parts, decoder=write), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_condition_is_of_the_language_model_where_there_is_one(
    model_folder: Path, tiny_models: Path, tmp_path: Path
) -> None:
    parts = replace(
        smallest_parts(),
        decoder=lambda out: write_decoder(
            out, {name: model_folder / name for name in ("transformer", "conditioner")}, model_folder
        ),
        captioner=lambda out: copy_transformers(tiny_models / "captioner", out),
        language_model=lambda out: copy_transformers(tiny_models / "captioner", out),
    )
    manifest = publish_model(parts, tmp_path / "model")
    names = {name.split("/")[0] for name in manifest["files"]}
    assert names >= {"captioner", "language_model", "conditioner", "README.md", "model_index.json"}

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.chain.conftest import picture
from verl_uae import UAEPipeline
from verl_uae.chain.loading import keep_vae_fp32, load_model, load_processor, load_processor_of
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.manifest import USE, write_manifest
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.scenes.tiny_models import INFERENCE
from verl_uae.seeding import normal

DRAWING = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}


def draw(pipe: UAEPipeline) -> torch.Tensor:
    return pipe("a red circle", latents=normal((1, 30, 4, 4), "n"), **DRAWING).images


def test_saves_and_loads_a_complete_folder(pipe: UAEPipeline, make_pipe: Callable, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again = UAEPipeline.from_pretrained(str(tmp_path / "saved"))
    again.set_progress_bar_config(disable=True)
    assert again.config.condition_length == 20 and again.config.caption_prompt == "<image>describe"
    assert torch.equal(draw(again), draw(pipe))
    assert again.caption(picture(0), max_new_tokens=8) == pipe.caption(picture(0), max_new_tokens=8)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "model_index.json", "transformer", "vae", "scheduler", "conditioner", "captioner",
    }  # fmt: skip
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    # The captioner's folder is complete by itself, and the pipeline keeps its processor.
    AutoProcessor.from_pretrained(tmp_path / "saved" / "captioner")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "saved" / "captioner")
    assert pipe.processor is not None and pipe.caption(picture(0), max_new_tokens=2)
    with pytest.raises(ValueError, match="safetensors"):
        pipe.save_pretrained(tmp_path / "pickles", safe_serialization=False)


def test_a_folder_of_an_older_version_loads_once_its_captioner_is_renamed(pipe: UAEPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"captioner"', '"encoder"'))
    (tmp_path / "captioner").rename(tmp_path / "encoder")
    write_manifest(tmp_path)
    words = r"encoder: is of an older version of verl_uae: .* captioner/ now; rename it, and remove manifest\.json"
    with pytest.raises(CheckpointError, match=words):
        UAEPipeline.from_pretrained(tmp_path)
    (tmp_path / "encoder").rename(tmp_path / "captioner")
    (tmp_path / "manifest.json").unlink()
    again = UAEPipeline.from_pretrained(tmp_path)
    assert again.caption(picture(0), max_new_tokens=8) == pipe.caption(picture(0), max_new_tokens=8)


def test_what_a_model_card_tells_to_run_runs(
    pipe: UAEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    picture(0).save(tmp_path / "photo.jpg")
    code = USE.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("MODEL", "./saved").replace("cuda", "cpu"), {})
    assert Image.open("reconstruction.png").size == (32, 32)


def test_a_decoder_folder_takes_its_captioner_as_an_argument(
    make_pipe: Callable, tiny_models: Path, captioner_folder: Path, pipe: UAEPipeline
) -> None:
    parts = {"captioner": load_model(captioner_folder, torch.float32), "processor": load_processor_of(captioner_folder)}
    assert torch.equal(draw(make_pipe(tiny_models / "decoder", **parts)), draw(pipe))
    assert (
        load_model(tiny_models / "decoder", torch.float32) is None and load_processor(tiny_models / "decoder") is None
    )


def test_folders_from_before_and_settings_of_the_folder(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An index without entries has the defaults and that is said; one with them needs no arguments."""
    index = json.loads((model_folder / "model_index.json").read_text())
    assert "condition_length" not in index and "captioner" not in index
    assert UAEPipeline.from_pretrained(model_folder).inference == InferenceSettings()
    assert "does not say condition_length, " in caplog.text and "the defaults are used" in caplog.text
    caplog.clear()
    UAEPipeline.from_pretrained(model_folder, **asdict(InferenceSettings()))
    assert "defaults" not in caplog.text
    shutil.copytree(model_folder, tmp_path / "new")
    index |= {"condition_length": 20, "condition_role": "user"}
    (tmp_path / "new" / "model_index.json").write_text(json.dumps(index))
    new = UAEPipeline.from_pretrained(tmp_path / "new")
    assert (new.config.condition_length, new.config.condition_role) == (20, "user")
    assert new.encode_prompt(["red"])[0].states.shape[1] == 20
    (tmp_path / "new" / "model_index.json").write_text(json.dumps({**index, "guidance": 1.0}))
    with pytest.raises(
        CheckpointError, match=r"model_index\.json: guidance: unknown setting, did you mean guidance_scale"
    ):
        UAEPipeline.from_pretrained(tmp_path / "new")
    with pytest.raises(ConfigError, match="condition_length: must be"):
        UAEPipeline.from_pretrained(model_folder, condition_length=0)


def test_a_saved_pipeline_keeps_every_setting(make_pipe: Callable, tmp_path: Path) -> None:
    settings = {**asdict(INFERENCE), "condition_role": "user", "negative_prompt": "", "temperature": 0.5, "width": 64}
    make_pipe(**settings).save_pretrained(tmp_path / "saved")
    assert UAEPipeline.from_pretrained(tmp_path / "saved").inference == InferenceSettings(**settings)


def test_the_language_model_of_the_condition_may_be_another_one(
    make_pipe: Callable, model_folder: Path, tmp_path: Path
) -> None:
    """As after G4U: the captioner has moved, the condition keeps the model from before."""
    moved = tmp_path / "moved"
    shutil.copytree(model_folder, moved)
    shutil.copytree(model_folder / "captioner", moved / "language_model")
    captioner = load_model(moved / "captioner", torch.float32)
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.mul_(1.1)
    captioner.save_pretrained(moved / "captioner")
    before, after, own = make_pipe(), make_pipe(moved), make_pipe(moved, language_model=None)
    assert after.language_model is not None and torch.equal(draw(after), draw(before))
    assert not torch.equal(draw(own), draw(before))
    after.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(make_pipe(tmp_path / "saved")), draw(before))


def test_no_captioner_is_needed_to_draw(make_pipe: Callable, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / "captioner").rename(tmp_path / "m" / "language_model")
    pipe = make_pipe(tmp_path / "m")
    assert pipe.captioner is None and torch.equal(draw(pipe), draw(make_pipe()))
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(make_pipe(tmp_path / "saved")), draw(pipe))


def test_the_vae_is_loaded_in_fp32(make_pipe: Callable, pipe: UAEPipeline) -> None:
    half = make_pipe(torch_dtype=torch.bfloat16)
    assert {half.transformer.dtype, half.conditioner.dtype, half.captioner.dtype} == {torch.bfloat16}
    ours, theirs = half.vae.state_dict(), pipe.vae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert keep_vae_fp32({"vae": torch.float16, "transformer": torch.float16}) == {
        "vae": torch.float32, "transformer": torch.float16,
    }  # fmt: skip


def test_what_does_not_load_is_named(make_pipe: Callable, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no/such/folder: there is no such folder"):
        make_pipe(Path("no/such/folder"))
    for name, message in (("vae", "no vae/"), ("conditioner", "no conditioner/")):
        shutil.copytree(model_folder, tmp_path / name)
        shutil.rmtree(tmp_path / name / name)
        with pytest.raises(CheckpointError, match=message):
            make_pipe(tmp_path / name)
    for name in ("captioner", "transformer"):
        broken = tmp_path / f"no weights of {name}"
        shutil.copytree(model_folder, broken)
        for weights in (broken / name).glob("*.safetensors"):
            weights.with_suffix(".bin").write_bytes(weights.read_bytes())
            weights.unlink()
        with pytest.raises(CheckpointError, match=name):
            make_pipe(broken)


def test_a_hub_repository_in_the_cache_is_a_model_folder(
    make_pipe: Callable, model_folder: Path, pipe: UAEPipeline, tmp_path: Path
) -> None:
    """The layout that huggingface_hub keeps; the tokenizer files beside the captioner's weights come along."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--uae"
    shutil.copytree(model_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = make_pipe("someone/uae", cache_dir=str(tmp_path), local_files_only=True)
    assert torch.equal(draw(found), draw(pipe)) and found.processor is not None


@pytest.mark.parametrize(
    ("name", "value"), [("eos_token_id", 10**9), ("suppress_tokens", [-1]), ("eos_token_id", [3.5])]
)
def test_tokens_that_the_model_does_not_have_are_named(
    captioner_folder: Path, tmp_path: Path, name: str, value: Any
) -> None:
    folder = Path(shutil.copytree(captioner_folder, tmp_path / "captioner"))
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(CheckpointError, match=rf"{name} .* is none of the|does not load"):
        load_model(folder, torch.float32)

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions by vLLM, with an engine that computes its greedy search here; the real one is in tests/vllm."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chain.conftest import picture
from tests.chain.test_cli import run
from verl_uae import UAEPipeline
from verl_uae.bench.draw import DrawSettings, draw_folder
from verl_uae.chain.vllm_captioner import _SILENCE, VLLMCaptioner, runs_vllm, token_limits
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import load_config, load_generation, load_model, load_processor
from verl_uae.data.images import image_digest
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.seeding import derive_seed

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(caption_prompt="<image>describe", caption_system="", max_new_tokens=6)


class Engine:
    """``vllm.LLM``: greedy search token by token, without a cache."""

    alive = 0
    asked: list[Any] = []  # noqa: RUF012 - cleared by the fixture

    def __init__(self, model: str, dtype: str, **options: Any) -> None:
        from transformers import AutoModelForImageTextToText

        assert dtype == "float32" and options["generation_config"] == "vllm"
        self.model = load_model(AutoModelForImageTextToText, model, dtype=torch.float32)
        self.processor = load_processor(model)
        Engine.alive += 1
        core = SimpleNamespace(shutdown=self.shutdown)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def shutdown(self) -> None:
        Engine.alive -= 1

    @torch.no_grad()
    def generate(self, prompts: list[Any], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        return [self.one(prompt, settings) for prompt, settings in zip(prompts, sampling, strict=True)]

    def one(self, prompt: Any, settings: Any) -> Any:
        self.asked.append(settings)
        images = prompt["multi_modal_data"]["image"]
        inputs = self.processor(text=[prompt["prompt"]], images=images, return_tensors="pt")
        ids, total = inputs["input_ids"], 0.0
        while ids.shape[1] - inputs["input_ids"].shape[1] < settings.max_tokens:
            types = (ids == self.processor.image_token_id).long()
            logits_V = self.model(
                **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)} | {"mm_token_type_ids": types}
            ).logits[0, -1]
            for token, bias in settings.logit_bias.items():
                logits_V[token] += bias
            token = int(logits_V.argmax())
            total += float(logits_V.log_softmax(-1)[token])
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            if token in settings.stop_token_ids:
                break
        made = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=made, cumulative_logprob=total)])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    vllm, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    vllm.LLM, vllm.SamplingParams = Engine, SimpleNamespace  # type: ignore[attr-defined]
    platforms.current_platform = SimpleNamespace(device_type="cpu")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    for name, value in _SILENCE.items():
        # Set by the code under test; put back behind it.
        monkeypatch.setenv(name, value)
    Engine.asked.clear()
    yield Engine
    assert Engine.alive == 0


def test_what_writes_the_captions(engine: type[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert runs_vllm("vllm", CPU)
    assert not any((runs_vllm("transformers", cuda), runs_vllm("auto", CPU), runs_vllm("auto", cuda)))
    with pytest.raises(
        ConfigError, match=r"--captioner-engine: this vLLM computes on cpu, --device is cuda: give transformers"
    ):
        runs_vllm("vllm", cuda)
    sys.modules["vllm.platforms"].current_platform.device_type = "cuda"
    assert runs_vllm("auto", cuda)
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    assert not runs_vllm("auto", cuda)
    with pytest.raises(ConfigError, match=r"--captioner-engine: vllm cannot be imported .* or give transformers"):
        runs_vllm("vllm", CPU)


def test_sample_writes_the_captions_of_the_pipeline_before_it_draws(
    engine: type[Engine], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    for name in ("a", "b"):
        picture(ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [tmp_path / f"{name}.png" for name in ("a", "bad", "b", "a")]
    found = {}
    place = UAEPipeline.to

    def to(pipe: UAEPipeline, *args: Any, **kwargs: Any) -> UAEPipeline:
        assert engine.alive == 0, "the engine has the device to itself"
        return place(pipe, *args, **kwargs)

    monkeypatch.setattr(UAEPipeline, "to", to)
    for chosen in ("transformers", "vllm"):
        out = tmp_path / chosen
        assert run(model_folder, "--image", *files, "--out", out, "--captioner-engine", chosen) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        times = ("seconds", "caption_seconds")
        found[chosen] = [{key: value for key, value in line.items() if key not in times} for line in lines]
        assert {path.name for path in out.glob("*.png")} == {"0000_a.png", "0002_b.png", "0003_a.png"}
    assert found["vllm"] == found["transformers"]
    seeds = [derive_seed(3, "sample caption", image_digest(picture(ord(name)))) for name in ("a", "b")]
    assert [asked.seed for asked in engine.asked] == seeds


def test_a_bench_captions_what_is_new_and_draws_the_same(
    engine: type[Engine], make_pipe: Any, model_folder: Path, tmp_path: Path
) -> None:
    fast = {"num_inference_steps": 2, "guidance_scale": 2.0, "max_new_tokens": 6}
    pipe, images = make_pipe(**fast), tmp_path / "images"
    images.mkdir()
    for index in range(3):
        picture(index).save(images / f"{index}.png")
    (images / "bad.png").write_bytes(b"no picture")

    def first(pictures: Any, *name: Any) -> dict[str, str]:
        folder = str(model_folder / "captioner")
        with VLLMCaptioner(folder, pipe.inference, dtype=torch.float32, device=CPU) as captioner:
            return captioner.write_all(pictures, *name)

    plain = draw_folder(pipe, images, tmp_path / "plain", DrawSettings(model=str(model_folder)))
    settings = DrawSettings(model=str(model_folder), captioner_engine="vllm")
    drawn = [draw_folder(pipe, images, tmp_path / "out", settings, captions_first=first)]
    assert len(engine.asked) == 3
    picture(7).save(images / "1.png")
    drawn.append(draw_folder(pipe, images, tmp_path / "out", settings, captions_first=first))
    assert (len(engine.asked), drawn[1].kept) == (4, 2), "only the picture that is another one now"
    assert drawn[0].captions == plain.captions and drawn[0].reasons == plain.reasons
    assert "bad.png" in plain.reasons and drawn[1].captions.keys() == plain.captions.keys()
    assert drawn[0].settings["captioner_engine"] == "vllm" != plain.settings["captioner_engine"]


def test_limits_are_those_of_the_model(captioner_folder: Path) -> None:
    config, generation = load_config(captioner_folder), load_generation(captioner_folder)
    tokenizer = load_processor(captioner_folder).tokenizer
    limits = token_limits(config, generation, tokenizer)
    assert limits["stop_token_ids"] == [tokenizer.eos_token_id]
    assert set(limits["logit_bias"].values()) == {-math.inf}
    assert {config.image_token_id, config.video_token_id} <= limits["logit_bias"].keys()
    assert tokenizer.eos_token_id not in limits["logit_bias"]


def test_no_picture_starts_no_engine(engine: type[Engine], captioner_folder: Path) -> None:
    with VLLMCaptioner(str(captioner_folder), SETTINGS, dtype=torch.float32, device=CPU) as captioner:
        assert captioner.write_all([], 0) == {} and engine.alive == 0


def test_a_captioner_that_vllm_does_not_load(
    engine: type[Engine], captioner_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, **_: Any) -> None:
        raise ValueError("head size 24 is not supported")

    monkeypatch.setattr(engine, "__init__", fails)
    with (
        VLLMCaptioner(str(captioner_folder), SETTINGS, dtype=torch.float32, device=CPU) as captioner,
        pytest.raises(CheckpointError, match="head size 24 is not supported; or give --captioner-engine transformers"),
    ):
        captioner.write([picture(0)], [0])

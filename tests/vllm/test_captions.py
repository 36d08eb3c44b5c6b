# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy captions of vLLM are those of transformers: of U4G's servers, and of the engine outside of training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from PIL import Image

from tests.e2e.world import metrics, train
from tests.vllm.world import build_tiled_world, build_vllm_world, search_path
from verl_uae.chain.captioner import caption_messages, write_captions
from verl_uae.chain.loading import load_model
from verl_uae.chain.vllm_captioner import VLLMCaptioner, runs_vllm
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import load_processor
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import CheckpointError
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_image

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(caption_prompt="<image>describe", caption_system="", max_new_tokens=24)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vllm_world(tmp_path_factory.mktemp("world"))


def outputs(folder: Path) -> dict[str, list[str]]:
    """Captions by file of rollouts or validation."""
    return {
        path.name: [json.loads(line)["output"] for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


@pytest.mark.parametrize("build", [build_vllm_world, build_tiled_world])
def test_servers_write_the_captions_of_the_ranks_and_sleep_between(build: Callable[..., Path], tmp_path: Path) -> None:
    """Two steps and their validations: servers are woken for each, and the decoder trains while they sleep."""
    world, written = build(tmp_path / "world"), {}
    for writer in ("server", "ranks"):
        out = tmp_path / writer
        overrides = [f"trainer.rollout_data_dir={out}/rollouts", f"trainer.validation_data_dir={out}/val"]
        # The default of this hardware is the server.
        chosen = [] if writer == "server" else ["uae.u4g.captions.writer=ranks"]
        result = train(
            world,
            out,
            ["hardware=cpu_vllm", "trainer.test_freq=1", *overrides, *chosen],
            config="uae_u4g",
            extra_env={"PYTHONPATH": search_path(), "VLLM_NO_USAGE_STATS": "1"},
            timeout=900,
        )
        assert result.returncode == 0, result.stdout[-6000:]
        assert ("vLLMHttpServer" in result.stdout) is (writer == "server")
        assert "sleep mode is not supported" not in result.stdout
        assert all(record["train/grad_norm"] > 0 for record in metrics(out).values())
        written[writer] = [outputs(out / "rollouts"), outputs(out / "val")]
    assert written["server"] == written["ranks"]
    assert [len(kind) for kind in written["server"]] == [2, 2]


def test_sleep_returns_the_memory_of_the_cache() -> None:
    from verl_uae.caption_server.vllm_cpu import free_cache, restore_cache

    size = 2**28
    # As vLLM has it: the layers are views of one buffer.
    buffer = torch.ones(size, dtype=torch.int8)
    caches = [buffer[: size // 2].view(torch.float32), buffer[size // 2 :].view(torch.float32)]
    del buffer
    worker = SimpleNamespace(model_runner=SimpleNamespace(kv_caches=caches))
    awake = psutil.Process().memory_info().rss
    free_cache(worker)
    asleep = psutil.Process().memory_info().rss
    assert awake - asleep > 0.95 * size
    restore_cache(worker, ["weights"])
    assert caches[0].untyped_storage().nbytes() == 0
    restore_cache(worker, ["kv_cache"])
    assert [cache.untyped_storage().nbytes() for cache in caches] == [size, size]
    caches[1].fill_(2.0)
    assert float(caches[1][-1]) == 2.0


def test_the_engine_writes_the_captions_of_the_pipeline(world: Path, tmp_path: Path) -> None:
    pictures = [render_image(scene) for scene in held_out_scenes(16, 0)]
    folder = world / "captioner"
    model, processor = load_model(folder, torch.float32), load_processor(folder)
    expected = [
        write_captions(
            model,
            processor,
            [caption_messages(picture, SETTINGS.caption_prompt, SETTINGS.caption_system)],
            max_new_tokens=SETTINGS.max_new_tokens,
            temperature=0.0,
            generators=[torch.Generator()],
            device=CPU,
        )[0]
        for picture in pictures
    ]
    assert runs_vllm("vllm", CPU) and not runs_vllm("auto", CPU)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    decoders = [partial(decode_image, picture) for picture in pictures]
    decoders.insert(5, partial(decode_image, tmp_path / "bad.png"))
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    with VLLMCaptioner(str(folder), SETTINGS, dtype=torch.float32, device=CPU) as captioner:
        captions = captioner.write_all(decoders, 0, "test")
        captioner.settings = dataclasses.replace(SETTINGS, temperature=1.0)
        drawn = [captioner.write(pictures[:4], seeds) for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])]
    assert captions == {image_digest(picture): text for picture, text in zip(pictures, expected, strict=True)}
    assert drawn[0] == drawn[1] != drawn[2]
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not [child.name() for child in left if "VLLM" in child.name() and child.memory_info().rss > 0]


def test_logits_that_are_no_numbers_are_refused(world: Path, tmp_path: Path) -> None:
    model = load_model(world / "captioner", torch.float32)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    load_processor(world / "captioner").save_pretrained(tmp_path)
    with (
        VLLMCaptioner(str(tmp_path), SETTINGS, dtype=torch.float32, device=CPU) as captioner,
        pytest.raises(CheckpointError, match=r"its logits are NaN in torch\.float32"),
    ):
        captioner.write([Image.new("RGB", (32, 32))], [0])

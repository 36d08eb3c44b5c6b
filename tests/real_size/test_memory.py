# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What is held on the device at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.sizes import SIZES
from tests.real_size import models, workers
from tests.real_size.accelerator import Accelerator
from verl_uae.data.pairs import Pair
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.replica import SamplingReplica
from verl_uae.stages.pretrain.worker import build_pair_encoder


@pytest.mark.parametrize("pixels", [512, 1024])
def test_the_vae_sees_few_pictures_at_a_time(pixels: int, clip: str, accelerator: Accelerator, compose) -> None:
    """Whatever the batch of the decoder: 8 at a time would hold 6 GiB at 512 x 512 and 24 GiB at 1024 x 1024."""
    side = [f"uae.decoder.height={pixels}", f"uae.decoder.width={pixels}"]
    config = compose("uae.decoder.path=decoder", *side, name="uae_pretrain")
    size = models.size_of("sd35_large", 2048)
    painter = workers.training_painter(config, size, clip, models.policy_module(size))
    with accelerator:
        pictures, undrawn = painter._decode(torch.zeros(8, 16, pixels // 8, pixels // 8), {})
    assert pictures.shape == (8, 3, pixels, pixels) and not undrawn
    share = (pixels / 512) ** 2
    assert accelerator.peak_gib < 1.8 * share
    encoder = build_pair_encoder(config, painter)
    buffer = io.BytesIO()
    models.photograph().resize((pixels, pixels)).save(buffer, "PNG")
    pairs = [Pair(buffer.getvalue(), "", None, pixels, pixels, "file", 0)] * 8
    watched = Accelerator()
    with watched:
        latents, _ = encoder.latents(pairs, (pixels, pixels))
    assert len(latents) == 8 and watched.peak_gib < 1.8 * share


def test_a_replica_never_holds_more_than_what_it_is(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 38 blocks in bf16: 16 GB, not the 32 GB of the fp32 weights it is filled from."""
    size = dataclasses.replace(SIZES["sd35_large"], text_tokens=models.TEXT_TOKENS)
    module = models.policy_module(size, dtype=torch.float32)
    module.config.save_pretrained(str(tmp_path))
    codec = models.vae()
    codec.save_config(tmp_path / "vae")
    models.family(module, codec).save_scheduler(tmp_path)
    engine: Any = SimpleNamespace(
        module=module,
        model_config=SimpleNamespace(path=str(tmp_path), lora_rank=0, compile_blocks=False),
        engine_config=SimpleNamespace(mixed_precision={"param_dtype": "bf16"}),
    )
    materialise = DecoderModule.to_empty
    with contextlib.ExitStack() as stack:

        def watched(self: DecoderModule, **device: Any) -> DecoderModule:
            # Until here the module has shapes alone, which on this device look like memory.
            stack.enter_context(accelerator)
            return materialise(self, **device)

        monkeypatch.setattr(DecoderModule, "to_empty", watched)
        replica = SamplingReplica(engine)
    held = [*replica.module.parameters(), *replica.module.buffers()]
    whole = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert 16e9 < whole < 17e9
    assert accelerator.peak_bytes <= 1.02 * whole

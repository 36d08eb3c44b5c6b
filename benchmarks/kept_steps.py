# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of the cold start's decoder with every step of the sampler kept against none, in pairs.

    python -m benchmarks.kept_steps --clock processor --json outputs/kept_steps.json

Both are the package's own loss and engine (``uae.cold_start.kept_steps``), FSDP2 on one gloo rank, with random weights
and adapters, on the same pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig

from benchmarks.measure import add_options, compare, interleave, provenance, write_json
from benchmarks.ours import _start_group
from benchmarks.sizes import SIZES, build_policy, save_decoder
from benchmarks.work import Clock
from verl_uae.bench.results import markdown_table
from verl_uae.chain.decoder import Decoder
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.decoder_module import DecoderModelConfig
from verl_uae.engines.supervised import SUPERVISED_TYPE, SupervisedEngine
from verl_uae.families.family import Condition
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.terms.vision import EfficientNetLite0
from verl_uae.seeding import normal
from verl_uae.stages.cold_start.loss import ReconstructionLoss, ReconstructionSettings, recompute

STEPS, PAIRS = 10, 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add_options(parser, repetitions=5)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _start_group("cpu")
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as folder:
        save_decoder(build_policy(size, options.seed), size, folder)
        engine = SupervisedEngine(
            model_config=DecoderModelConfig(
                path=folder, model_type=SUPERVISED_TYPE, lora_rank=size.lora_rank, lora_alpha=64
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                use_torch_compile=False,
                use_remove_padding=False,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-5, total_training_steps=1000),
            checkpoint_config=CheckpointConfig(),
        )
        engine.initialize()
        vae = Decoder.from_pretrained(folder).vae.requires_grad_(False)
    recompute(vae)
    negative = Condition.whole(normal((1, size.text_tokens, size.language.hidden), options.seed, "negative"))
    settings = ReconstructionSettings(
        sigmas=sigma_schedule(STEPS, 3.0),
        guidance=5.0,
        gradient_steps=None,
        kept_steps=0,
        semantic_weight=1.0,
        caption_weight=0.0,
        in_context=False,
        vae_batch_size=PAIRS,
    )
    features = EfficientNetLite0(image_size=64)

    def captions_of(rows: Any) -> Any:
        raise NotImplementedError("there is no captioner")

    loss = ReconstructionLoss(settings, engine.family, vae, features, None, captions_of, lambda: negative)
    states = Condition.whole(normal((PAIRS, size.text_tokens, size.language.hidden), options.seed, "states"))
    fields = {
        **stored(states),
        "noise_BCHW": normal((PAIRS, *engine.family.latent_shape(size.pixels, size.pixels)), options.seed, "noise"),
        "source_B3HW": normal((PAIRS, 3, size.pixels, size.pixels), options.seed, "source").sigmoid(),
        "row_B": torch.arange(PAIRS),
        "weight_B": torch.ones(PAIRS),
    }
    data = TensorDict(fields, batch_size=PAIRS)
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=PAIRS, total_weight=float(PAIRS))

    def run(kept: int) -> dict[str, float]:
        loss.settings = dataclasses.replace(settings, kept_steps=kept)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            clock = Clock("cpu", processor=options.clock == "processor")
            engine.forward_backward_batch(data, loss)
            clock.lap("update")
        return dict(clock.seconds)

    kept, none = interleave([lambda _: run(STEPS), lambda _: run(0)], options.repetitions, options.warmup)
    part = compare([each["update"] for each in kept], [each["update"] for each in none])
    header = ["size", "none kept, s", "all kept, s", "ratio", "lowest to highest"]
    row = [options.size, f"{part.baseline_median:.3f}", f"{part.ours_median:.3f}", f"{part.ratio:.2f}"]
    print("\n".join(markdown_table(header, [[*row, f"{part.ratio_low:.2f} to {part.ratio_high:.2f}"]])))
    report = {"provenance": provenance("cpu", options.seed), "clock": options.clock, "update": dataclasses.asdict(part)}
    write_json(options.json, report)


if __name__ == "__main__":
    main()

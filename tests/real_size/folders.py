# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Model folders of published size with random weights in bf16: ``python -m tests.real_size.folders ROOT``.

In a process of its own, whose memory is gone when it ends.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from torch import nn

from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.names import CAPTIONER
from verl_uae.families.published import DECODERS, build, build_language_model, language_config, published
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.tokenizer import build_processor

DECODER = "sd35_medium"


def write(root: Path) -> None:
    """``decoder/``, ``captioner/`` and ``data/`` of the built-in scenes, whose words the tokenizer knows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    family, arguments = published(DECODER)
    parts = build(family, arguments, "cpu")
    with torch.no_grad():
        # At the start it gives nothing, whatever it is told.
        nn.init.normal_(parts["transformer"].proj_out.weight, std=0.02)
    Decoder(family, parts).save_pretrained(str(root / "decoder"))
    del parts
    gc.collect()
    config = language_config(DECODERS[DECODER].language_model, "uae.conditioner.path")
    processor = build_processor()
    tokens = processor.tokenizer
    config.image_token_id = tokens.convert_tokens_to_ids("<|image_pad|>")
    model = build_language_model(config, "cpu")
    model.save_pretrained(root / CAPTIONER)
    processor.save_pretrained(root / CAPTIONER)
    torch.set_default_dtype(torch.float32)
    write_dataset(root / "data", train=4, val=2, seed=0)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

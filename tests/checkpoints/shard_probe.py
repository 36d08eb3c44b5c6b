# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Saves tiny policies on gloo ranks as verl does, and as the engine exports them.

Started by tests.launch: <OUT>/<kind>/decoder_policy are the shards, and
<OUT>/<kind>_live and <kind>_ema decoder folders that the engine gathered with collectives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engines.policy_world import build_engine
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.export import export_folder
from verl_uae.engines.shadow import local_shards
from verl_uae.seeding import normal

#: Rank 5 does not divide by two ranks, and of rank 1 one rank has nothing.
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "uneven": {"lora_rank": 5, "lora_alpha": 10},
    "empty": {"lora_rank": 1, "lora_alpha": 3, "train_projector": True},
    "replicated": {"lora_rank": 4, "lora_alpha": 8, "fsdp": {"fsdp_size": 1}},
}


@torch.no_grad()
def move(engine: DecoderEngine, what: str) -> None:
    """Other trained weights, as an update would leave them: replicas agree."""
    for name, local in local_shards(engine.module).items():
        local.add_(0.05 * normal(tuple(local.shape), what, name, engine.device_mesh.get_coordinate()[-1]))


def main(decoder: str, out: str, number: str, size: str, port: str) -> None:
    """Move and save every kind."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    for kind, settings in KINDS.items():
        engine = build_engine(decoder, shadows=["ema"], **settings)
        for what in ("first", "second"):
            move(engine, what)
            engine.shadow("ema").update(0.5)
        engine.save_checkpoint(str(Path(out) / kind / "decoder_policy"))
        for weights in ("live", "ema"):
            export_folder(engine, decoder, Path(out) / f"{kind}_{weights}", weights)
    torch.distributed.barrier()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's engine on every family, in processes with VERL_PLATFORM=cpu: what one rank and what two find, whose
captions differ in length.

Shape legend: B samples, C H W latents.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from tests.engines.policy_probe import WIDE, losses, share
from tests.engines.policy_world import PLAN, build_engine, gradients
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.export import export_folder
from verl_uae.engines.replica import SamplingReplica
from verl_uae.families import family_of
from verl_uae.families.family import Condition
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import sample_trajectory
from verl_uae.seeding import normal

#: The first rank of two has both a long and a short one, the other has short ones alone.
CAPTIONS = ["a red fox on fresh snow, soft morning light, shallow depth of field, pines behind it", "two cups", "", "a"]
GUIDED = SamplingPlan.from_dict({**PLAN.to_dict(), "guidance": 2.0})
KINDS: dict[str, dict[str, Any]] = {"lora": {"lora_rank": 2, "lora_alpha": 8}, "full": {}}
SIDE = 64


def language_model(folder: Path) -> str:
    """Where conditions come from."""
    return str(next(path for path in (folder / "captioner", folder / "language_model") if path.is_dir()))


@functools.cache
def conditions(folder: Path) -> tuple[list[Condition], Condition]:
    """Of the captions, and of the unconditional branch."""
    family = family_of(folder / "decoder")
    cache = ConditionCache(Conditioner.from_pretrained(language_model(folder), family), 9)
    return cache.get(CAPTIONS).conditions, cache.negative("")


def sampled(engine: DecoderEngine, folder: Path, rows: list[int]) -> TensorDict:
    """A mini-batch of these samples, two at a time, by the engine's own weights."""
    all_conditions, negative = conditions(folder)
    shape = engine.family.latent_shape(SIDE, SIDE)
    parts = []
    with engine.eval_mode(), torch.no_grad():
        for start in range(0, len(rows), 2):
            some = rows[start : start + 2]
            field = engine.field(Condition.stack([all_conditions[row] for row in some]), negative, GUIDED.guidance)
            noise_BCHW = torch.stack([normal(shape, "noise", row) for row in some])
            draw = lambda i, some=some: torch.stack([normal(shape, "step", i, row) for row in some])  # noqa: E731
            parts.append(sample_trajectory(field, noise_BCHW, GUIDED, draw))
    names = {"x_BKCHW": "x_BKCHW", "x_next_BKCHW": "x_next_BKCHW"}
    names |= {"old_mean_BKCHW": "mean_BKCHW", "old_log_prob_BK": "log_prob_BK"}
    fields = {
        **stored(Condition.stack([all_conditions[row] for row in rows])),
        "weight_B": torch.ones(len(rows)),
        "advantage_B": torch.cat([normal((1,), "advantage", row) for row in rows]),
        **{name: torch.cat([getattr(part, source) for part in parts]) for name, source in names.items()},
    }
    data = TensorDict(fields, batch_size=len(rows))
    settings = {"plan": GUIDED.to_dict(), "plan_digest": GUIDED.digest, "negative": negative}
    tu.assign_non_tensor(data, **settings, micro_batch_size_per_gpu=2, total_weight=4.0)
    return data


def first_update(engine: DecoderEngine, folder: Path) -> dict[str, Any]:
    """Ratio, loss and length of the gradient, of several backward passes."""
    with torch.no_grad():
        for name, weight in engine.module.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)
    data = sampled(engine, folder, share(4))
    with engine.train_mode():
        output = engine.forward_backward_batch(data, WIDE)
        found = gradients(engine)
        engine.optimizer_zero_grad()
        tu.assign_non_tensor(data, replay_steps=2)
        together = engine.forward_backward_batch(data, WIDE)
        other = gradients(engine)
    length = sum(g.double().square().sum().item() for g in found.values()) ** 0.5
    apart = sum((other[name] - g).double().square().sum().item() for name, g in found.items()) ** 0.5
    return {
        "ratio": [output["metrics"][f"ratio/{name}"][0] for name in ("min", "max")],
        "loss": losses([output])[0],
        "gradient": length,
        "places together": [losses([together])[0], apart / length],
    }


def bf16_facts(folder: Path) -> dict[str, Any]:
    """The first update in the precision of a GPU, whose gradients are summed in another."""
    return first_update(build_engine(str(folder / "decoder"), precision="bf16", **KINDS["lora"]), folder)


def family_facts(folder: Path, out: Path, kind: str) -> dict[str, Any]:
    """Ratio, loss and gradient of the first update, and how far a decoder of the exported folder and a
    replica are from the engine."""
    engine = build_engine(str(folder / "decoder"), **KINDS[kind])
    first = first_update(engine, folder)
    trained = {name for name, weight in engine.module.named_parameters() if weight.requires_grad}
    frozen = tuple(f"transformer.{name}" for name in engine.family.frozen)
    target = out / kind
    export_folder(engine, str(folder / "decoder"), target, weights="live")
    all_conditions, negative = conditions(folder)
    x_BCHW = torch.stack([normal(engine.family.latent_shape(SIDE, SIDE), "x", row) for row in range(2)])
    asked = (Condition.stack(all_conditions[:2]), negative, 2.0)
    with engine.eval_mode(), torch.no_grad():
        mine = engine.field(*asked)(x_BCHW, torch.tensor([0.9, 0.3]))
        theirs = Decoder.from_pretrained(str(target)).field(*asked)(x_BCHW, torch.tensor([0.9, 0.3]))
        copied = SamplingReplica(engine).field(*asked)(x_BCHW, torch.tensor([0.9, 0.3]))
    return {
        **first,
        "calls": engine.family.calls(*all_conditions, negative),
        "frozen and trained": sorted(name for name in trained if frozen and name.startswith(frozen)),
        "export": (mine - theirs).abs().max().item(),
        "replica": (mine - copied).abs().max().item(),
        "velocity": mine.std().item(),
    }


def main(models: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    facts = {
        folder.name: {kind: family_facts(folder, Path(f"{out}_{folder.name}"), kind) for kind in KINDS}
        | {"bf16": bf16_facts(folder)}
        for folder in sorted(Path(models).iterdir())
    }
    Path(out).with_name(f"{Path(out).stem}_{number}.json").write_text(json.dumps(facts))
    torch.distributed.barrier()

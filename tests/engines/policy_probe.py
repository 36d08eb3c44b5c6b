# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Trains tiny policies on gloo ranks and writes what happened as JSON.

Started by tests.launch.

In processes of their own: VERL_PLATFORM is read once per process, and so is the process group. Every fact is a plain
number or text; the expectations are in test_decoder.py and test_export.py.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine_workers import TrainingWorker

from tests.engines.policy_world import (
    LATENT,
    PLAN,
    build_engine,
    gradients,
    minibatch,
    negative,
    parameters,
    sampled,
    states,
)
from verl_uae.checkpoints.names import BASE_FILE
from verl_uae.checkpoints.shards import load_tensors, model_file
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import INPUTS, OLD, read_condition, stored
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.export import export_folder, full_state_dict, trained_state
from verl_uae.engines.replica import SamplingReplica
from verl_uae.flow.divergence import transition_kl
from verl_uae.flow.kernels import transition_mean
from verl_uae.flow.objective import bind_objective
from verl_uae.flow.plan import SamplingPlan
from verl_uae.seeding import normal

WIDE = bind_objective("flow_grpo", {"clip_low": 0.5, "clip_high": 0.5})
LORA = {"lora_rank": 4, "lora_alpha": 8}
SIGMA = torch.tensor([0.9, 0.333])
X = normal((2, *LATENT), "x")


def rank() -> int:
    return torch.distributed.get_rank()


def share(count: int) -> list[int]:
    """Numbers of this rank's samples."""
    size = count // torch.distributed.get_world_size()
    return list(range(count))[rank() * size : (rank() + 1) * size]


@torch.no_grad()
def velocity(engine: DecoderEngine) -> torch.Tensor:
    with engine.eval_mode():
        return engine.field(states([0, 1]))(X, SIGMA)


def failure(call: Any) -> str:
    """What a call raises, as text; empty if nothing."""
    try:
        call()
    except Exception as error:
        # The error is the finding.
        return f"{type(error).__name__}: {error}"
    return ""


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max((a[name] - b[name]).abs().max().item() for name in a)


def train(engine: DecoderEngine, data: Any, updates: int, objective: Any = WIDE) -> list[Any]:
    with engine.train_mode():
        return [engine.train_batch(data, objective) for _ in range(updates)]


def losses(outputs: list[Any]) -> list[float]:
    """Of every update, over all ranks as verl's worker adds them."""
    found = torch.tensor([sum(output["loss"]) for output in outputs], dtype=torch.float64)
    torch.distributed.all_reduce(found)
    return (found / torch.distributed.get_world_size()).tolist()


def run_facts(decoder: str, micro: int, **fsdp: Any) -> dict[str, Any]:
    """Loss of every update, and figures of the last, of one run on eight samples."""
    engine = build_engine(decoder, lr=3e-4, fsdp=fsdp, **LORA)
    data = sampled(engine, share(8), micro=min(micro, len(share(8))), total=8.0)
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=micro)
    outputs = train(engine, data, 4)
    names = ("ratio/mean", "ratio/std", "ratio/max", "k/max", "step01/k/mean", "step02/ratio/min", "clipped_low/mean")
    return {"losses": losses(outputs), "figures": {name: outputs[-1]["metrics"][name] for name in names}}


def ratio_facts(decoder: str) -> dict[str, Any]:
    """The first update on samples of the same weights."""
    engine = build_engine(decoder, **LORA)
    data = sampled(engine, share(8), micro=4, total=8.0)
    facts: dict[str, Any] = {}
    for name, micro in (("same", 4), ("rebatched", 1)):
        tu.assign_non_tensor(data, micro_batch_size_per_gpu=micro)
        with engine.train_mode():
            output = engine.forward_backward_batch(data, WIDE)
            facts[name] = {key: value[0] for key, value in output["metrics"].items()}
            facts[f"{name} gradient"] = max(g.abs().max().item() for g in gradients(engine).values())
    del data["old_log_prob_BK"], data["old_mean_BKCHW"]
    with engine.eval_mode():
        engine.recompute_old(data)
    with engine.train_mode():
        facts["recomputed"] = {k: v[0] for k, v in engine.forward_backward_batch(data, WIDE)["metrics"].items()}
    return facts


def still_facts(decoder: str) -> dict[str, Any]:
    """Two updates of learning rate 0 by every objective on transitions: figures of the second."""
    facts: dict[str, Any] = {}
    for name, kernel, level in (("flow_grpo", "cps", 0.8), ("dppo", "cps", 0.8), ("grpo_guard", "flow_sde", 0.7)):
        plan = SamplingPlan.from_dict({**PLAN.to_dict(), "kernel": kernel, "noise_level": level})
        engine = build_engine(decoder, lr=0.0, **LORA)
        before = parameters(engine)
        data = sampled(engine, share(4), micro=2, total=4.0, plan=plan)
        metrics = train(engine, data, 2, bind_objective(name))[1]["metrics"]
        facts[name] = {key: value[0] for key, value in metrics.items() if isinstance(value, list)}
        facts[f"{name} gradient"] = metrics["grad_norm"]
        facts[f"{name} moved"] = largest(before, parameters(engine))
    return facts


def mask_facts(decoder: str) -> dict[str, Any]:
    """Samples of weight 0 that hold NaN, and a mini-batch of nothing else."""
    engine = build_engine(decoder, **LORA)
    data = sampled(engine, share(4), micro=2, total=2.0)
    train(engine, data.clone().update({"weight_B": torch.tensor([1.0, 0.0, 0.0, 1.0])}), 1)
    for name in ("states_BLE", "advantage_B", "x_BKCHW", "x_next_BKCHW", "old_log_prob_BK", "old_mean_BKCHW"):
        data[name][1:3] = float("nan")
    data["weight_B"] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    with engine.train_mode():
        output = engine.forward_backward_batch(data, WIDE)
        masked = gradients(engine)
        engine.optimizer_zero_grad()
        kept = sampled_rows(data, [0, 3])
        engine.forward_backward_batch(kept, WIDE)
        difference = largest(masked, gradients(engine))
    before = parameters(engine)
    data["weight_B"] = torch.zeros(4)
    tu.assign_non_tensor(data, total_weight=0.0)
    empty = train(engine, data, 1)[0]
    return {
        "loss": sum(output["loss"]),
        "valid": output["metrics"]["valid"],
        "gradient difference": difference,
        "empty": {key: empty[key] for key in ("loss", "metrics")},
        "empty moved": largest(before, parameters(engine)),
    }


def sampled_rows(data: Any, rows: list[int]) -> Any:
    """These rows of a mini-batch with its settings."""
    names = (*INPUTS["transition"], *OLD["transition"])
    return minibatch({name: data[name][rows] for name in names}, micro=2, total=float(len(rows)))


def reference_facts(decoder: str) -> dict[str, Any]:
    """The reference after training, and the penalty."""
    facts: dict[str, Any] = {}
    kinds = {"lora": LORA, "full": {"keep_reference": True}, "both": {**LORA, "train_projector": True}}
    for name, model in kinds.items():
        engine = build_engine(decoder, **{"keep_reference": True, **model})
        base, data = velocity(engine), sampled(engine, share(4), micro=2, total=4.0)
        train(engine, data, 2)
        moved, live = velocity(engine), parameters(engine)
        with engine.reference():
            facts[f"{name} is base"] = torch.equal(velocity(engine), base)
        facts[f"{name} moved"] = (moved - base).abs().max().item()
        facts[f"{name} restored"] = torch.equal(velocity(engine), moved) and same(live, parameters(engine))
        facts[f"{name} trained"] = sorted({part.split(".")[0] for part in live})
        facts[f"{name} shadows"] = sorted(engine.shadows)
        facts[name] = penalty_facts(engine, data)
    facts["none kept"] = failure(lambda: build_engine(decoder).reference().__enter__())
    return facts


@torch.no_grad()
def penalty_facts(engine: DecoderEngine, data: Any) -> dict[str, float]:
    """Loss with and without the penalty, and the penalty computed here."""
    with engine.eval_mode():
        plain = engine.forward_backward_batch(data, WIDE, forward_only=True)
        tu.assign_non_tensor(data, reference_kl={"form": "exact", "coef": 10.0})
        penalised = engine.forward_backward_batch(data, WIDE, forward_only=True)
        expected, c = [], [PLAN.coefficients(index) for index in PLAN.window]
        for k, index in enumerate(PLAN.window):
            x, sigma = data["x_BKCHW"][:, k], torch.full((len(data),), PLAN.sigmas[index])
            mean = transition_mean(c[k], x, engine.field(read_condition(data))(x, sigma))
            with engine.reference():
                reference = transition_mean(c[k], x, engine.field(read_condition(data))(x, sigma))
            expected.append(transition_kl(mean, reference, c[k].std))
    difference = losses([penalised])[0] - losses([plain])[0]
    return {
        "difference": difference,
        "metric": penalised["metrics"]["reference_kl/mean"][0],
        "expected": torch.cat(expected).mean().item(),
    }


def shadow_facts(decoder: str) -> dict[str, Any]:
    """Weight copies of a sharded module; FSDP must not go on using weights it had gathered."""
    engine = build_engine(decoder, shadows=["ema"])
    base, data = velocity(engine), sampled(engine, share(4), micro=2, total=4.0)
    start = parameters(engine)
    train(engine, data, 1)
    first = parameters(engine)
    engine.shadow("ema").update(0.75)
    engine.module.set_reshard_after_forward(False)
    live = velocity(engine)
    facts: dict[str, Any] = {}

    def interrupted() -> None:
        with engine.shadow("ema").swapped():
            facts["average"] = largest(
                parameters(engine), {name: start[name].lerp(first[name], 0.25) for name in start}
            )
            facts["seen"] = not torch.equal(velocity(engine), live) and not torch.equal(velocity(engine), base)
            raise ZeroDivisionError

    facts["error"] = failure(interrupted)
    facts["restored"] = torch.equal(velocity(engine), live)
    facts["exact"] = same(parameters(engine), first)
    facts["unknown"] = failure(lambda: engine.shadow("old"))
    return facts


def precision_facts(decoder: str) -> dict[str, Any]:
    """bf16 compute: what reaches the time embedding, and the dtypes around."""
    engine = build_engine(decoder, precision="bf16", **LORA)
    seen: list[Any] = []
    embed = engine.module.transformer.time_text_embed
    embed.time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    embed.timestep_embedder.linear_1.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    out = velocity(engine)
    cast = failure(lambda: engine.module(X, SIGMA, states([0, 1])))
    data = sampled(engine, share(4), micro=2, total=4.0)
    output = train(engine, data, 1)[0]
    return {
        "timestep": str(seen[0].dtype),
        "exact": torch.equal(seen[0], SIGMA * 1000.0),
        "compute": str(seen[1]),
        "velocity": str(out.dtype),
        "held": sorted({str(parameter.dtype) for parameter in engine.module.parameters()}),
        "cast sigma": cast,
        "ratio": [output["metrics"]["ratio/min"][0], output["metrics"]["ratio/max"][0]],
    }


def halved_facts(decoder: str, folder: Path) -> dict[str, Any]:
    """Frozen weights held in bf16 beside adapters in fp32, against all of them held in fp32: bf16 is computed in."""
    facts: dict[str, Any] = {}
    runs, merged = {}, {}
    for dtype in ("fp32", "bf16"):
        engine = build_engine(decoder, precision="bf16", fsdp={"model_dtype": dtype}, lr=1e-2, **LORA)
        kinds = {weight.requires_grad: set() for weight in engine.module.parameters()}  # type: ignore[var-annotated]
        for weight in engine.module.parameters():
            kinds[weight.requires_grad].add(str(weight.dtype).removeprefix("torch."))
        facts[dtype] = [sorted(kinds[True]), sorted(kinds[False])]
        outputs = train(engine, sampled(engine, share(4), micro=2, total=4.0), 3)
        facts[f"{dtype} ratio"] = [outputs[0]["metrics"]["ratio/min"][0], outputs[0]["metrics"]["ratio/max"][0]]
        runs[dtype], merged[dtype] = losses(outputs), full_state_dict(engine, "reference")
    merged["trained"], handed = full_state_dict(engine), trained_state(engine, "live", torch.float32)
    facts["losses"] = max(abs(a - b) for a, b in zip(runs["fp32"], runs["bf16"], strict=True))
    facts["moved"] = abs(runs["fp32"][0] - runs["fp32"][-1])
    if handed is not None:
        facts["merged"] = sorted({str(tensor.dtype) for tensor in merged["trained"].values()})
        rounded = {name: tensor.bfloat16().float() for name, tensor in merged["fp32"].items()}
        facts["rounded"] = same(merged["bf16"], rounded)
        layer, (a_RI, b_OR, scaling) = next(iter(handed.adapters.items()))
        weight = f"{layer}.weight"
        update = merged["trained"][weight] - rounded[weight]
        lost = (update - scaling * b_OR @ a_RI).abs() / merged["trained"][weight].abs().clamp(min=1e-6).float()
        facts["lost"] = lost.max().item()
    export_folder(engine, decoder, folder / "halved", "live")
    if rank() == 0:
        files = (folder / "halved" / "transformer").glob("*.safetensors")
        facts["exported"] = sorted({str(weight.dtype) for file in files for weight in load_file(file).values()})
        facts["loads"] = len(DecoderModule.from_pretrained(str(folder / "halved")).state_dict())
    facts["replica"] = apart(engine, SamplingReplica(engine))
    facts["projector"] = failure(
        lambda: build_engine(decoder, fsdp={"model_dtype": "bf16"}, train_projector=True, **LORA)
    )
    return facts


def gradient_facts(decoder: str) -> dict[str, Any]:
    """Which noise levels are trained, and the same gradient with checkpointing and with guidance."""
    facts: dict[str, Any] = {}
    found = []
    for checkpointing in (False, True):
        engine = build_engine(decoder, enable_gradient_checkpointing=checkpointing, **LORA)
        data = sampled(engine, share(4), micro=2, total=4.0)
        asked: list[float] = []
        hook = engine.module.transformer.time_text_embed.time_proj.register_forward_pre_hook(
            lambda _, args, asked=asked: asked.extend(args[0].tolist())
        )
        with engine.train_mode():
            engine.forward_backward_batch(data, WIDE)
            found.append(gradients(engine))
        hook.remove()
        facts["asked"] = sorted(set(asked))
        facts["trained"] = sorted({name.split("lora_")[-1] for name in found[-1]})
    facts["checkpointing"] = largest(*found)
    # In no_sync the gradient of a micro-batch must not be lost.
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=len(data))
    with engine.train_mode():
        engine.forward_backward_batch(data, WIDE)
        facts["accumulation"] = largest(found[-1], gradients(engine))
    return facts


def compiled_facts(decoder: str) -> dict[str, Any]:
    """Compiled blocks against the same ones as they are: sampling, gradient, names; and a compiled replica."""
    plain = build_engine(decoder, enable_gradient_checkpointing=True, **LORA)
    engine = build_engine(decoder, enable_gradient_checkpointing=True, compile_blocks=True, **LORA)
    found: dict[str, Any] = {"names": same(parameters(engine), parameters(plain))}
    torch._dynamo.utils.counters.clear()
    found["velocity"] = (velocity(engine) - velocity(plain)).abs().max().item()
    found["programs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    data = sampled(engine, share(4), micro=2, total=4.0)
    grads = []
    for each in (engine, plain):
        with each.train_mode():
            figures = each.forward_backward_batch(data, WIDE)["metrics"]
            grads.append(gradients(each))
        found.setdefault("ratio", [figures["ratio/min"][0], figures["ratio/max"][0]])
    found["gradient"] = largest(*grads) / max(gradient.abs().max().item() for gradient in grads[1].values())
    found["breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
    with torch.no_grad(), engine.eval_mode(), plain.eval_mode(), engine.reference(), plain.reference():
        found["reference"] = (velocity(engine) - velocity(plain)).abs().max().item()
    found["replica"] = apart(engine, SamplingReplica(engine))
    return found


def other_facts(decoder: str) -> dict[str, Any]:
    """Guidance, a forward-only engine, offloading."""
    guided = SamplingPlan.from_dict({**PLAN.to_dict(), "guidance": 3.0})
    engine = build_engine(decoder, **LORA)
    facts: dict[str, Any] = {}
    found = []
    for name, plan in (("guided", guided), ("plain", PLAN)):
        data = sampled(engine, share(4), micro=2, total=4.0, plan=plan)
        with engine.train_mode():
            metrics = engine.forward_backward_batch(data, WIDE)["metrics"]
            found.append(gradients(engine))
        facts[name] = [metrics["ratio/min"][0], metrics["ratio/max"][0]]
    facts["guidance matters"] = largest(*found)
    facts["step weights"] = step_weight_facts(decoder)
    still = build_engine(decoder, fsdp={"forward_only": True})
    facts["forward only"] = torch.equal(velocity(still), velocity(engine))
    facts["optimizer"] = str(still.optimizer)
    moved = build_engine(decoder, shadows=["ema"], fsdp={"param_offload": True, "optimizer_offload": True}, **LORA)
    facts["offloaded"] = losses(train(moved, data, 3)) == losses(train(engine, data, 3))
    return facts


def step_weight_facts(decoder: str) -> list[float]:
    """After an update: the loss with weights, that without, and those of the two steps alone."""
    engine = build_engine(decoder, lr=1e-2, **LORA)
    data = sampled(engine, share(4), micro=2, total=4.0)
    train(engine, data, 1)
    found = []
    for weights in ("noise", "uniform"):
        tu.assign_non_tensor(data, step_weights=weights)
        with engine.eval_mode():
            output = engine.forward_backward_batch(data, WIDE, forward_only=True)
        found += losses([output])
    return found + [output["metrics"][f"step{index:02d}/loss/mean"][0] for index in PLAN.window]


def forward_facts(decoder: str) -> dict[str, Any]:
    """DiffusionNFT, whose old policy is a weight copy."""
    engine = build_engine(decoder, shadows=["old"], **LORA)
    rows = share(4)
    fields = {
        **stored(states(rows)),
        "weight_B": torch.ones(len(rows)),
        "advantage_B": torch.tensor([1.0, -1.0] * (len(rows) // 2)),
        "x0_BCHW": torch.cat([normal((1, *LATENT), "x0", row) for row in rows]),
        "noise_BTCHW": torch.cat([normal((1, 3, *LATENT), "eps", row) for row in rows]),
        "sigma_BT": torch.tensor([[0.8, 0.4, 0.2]]).expand(len(rows), 3).clone(),
    }
    nft = bind_objective("nft")
    data = minibatch(fields, micro=2, total=4.0)
    engine.recompute_old(data)
    first = train(engine, data, 1, nft)[0]["metrics"]
    old = data["old_velocity_BTCHW"].clone()
    with engine.shadow("old").swapped():
        engine.recompute_old(data)
    second = train(engine, data, 1, nft)[0]["metrics"]
    tu.assign_non_tensor(data, reference_kl={"form": "exact", "coef": 1.0})
    refused = failure(lambda: engine.forward_backward_batch(data, nft))
    tu.assign_non_tensor(data, reference_kl={"form": "velocity", "coef": 1.0})
    third = train(engine, data, 1, nft)[0]["metrics"]
    return {
        "first distance": first["old_distance/mean"][0],
        "second distance": second["old_distance/mean"][0],
        "gradient": first["grad_norm"],
        "same old": torch.equal(old, data["old_velocity_BTCHW"]),
        "steps": [name for name in first if name.startswith("step")],
        "refused": refused,
        "penalty": third["reference_kl/mean"][0],
    }


def group_facts(decoder: str) -> dict[str, Any]:
    """Objectives whose loss is of a group, here of samples of both ranks, one of them without a reward."""
    engine = build_engine(decoder, shadows=["old"], lr=1e-2, keep_reference=True, **LORA)
    data = minibatch(grouped_fields(share(4)), micro=1, total=3.0)
    with engine.eval_mode(), engine.shadow("old").swapped():
        engine.recompute_old(data)
    crd, dgpo = bind_objective("crd"), bind_objective("dgpo", {"beta": 50.0, "reference": "base"})
    first = train(engine, data, 1, crd)[0]["metrics"]
    facts: dict[str, Any] = {
        "first": {name: first[name][0] for name in ("implicit_reward/mean", "old_distance/mean")},
        "gradient": first["grad_norm"],
        "lacks": failure(lambda: engine.forward_backward_batch(data.exclude("group_B"), crd)),
    }
    # Members that are alone in an update have an advantage and no gradient.
    fresh = build_engine(decoder, shadows=["old"], **LORA)
    alone = data.clone().update({"group_B": torch.tensor(share(4))})
    tu.assign_non_tensor(alone, total_weight=3.0)
    facts["alone"] = failure(lambda: train(fresh, alone, 1, crd))
    useless = build_engine(decoder, shadows=["old"], lora_target_modules=["1.attn.add_q_proj"], **LORA)
    facts["useless"] = failure(lambda: train(useless, data, 1, crd))
    whole = grouped_fields([0, 1, 2, 3])
    penalty = {"form": "velocity", "coef": 0.5, "floor": 0.1, "advantage_max": 2.0, "guidance": 3.0}
    for name, objective in (("crd", crd), ("dgpo", dgpo)):
        for together in (1, 3):
            tu.assign_non_tensor(data, replay_steps=together, reference_kl=penalty, norm_guard=2.0)
            with engine.eval_mode():
                output = engine.forward_backward_batch(data, objective, forward_only=True)
            facts[f"{name} {together}"] = losses([output])[0]
        facts[f"{name} expected"] = float(group_loss(engine, whole, name))
    facts["excess"] = output["metrics"]["norm_excess/mean"][0]
    return facts


def grouped_fields(rows: list[int]) -> dict[str, torch.Tensor]:
    """Samples 0 and 2 are one group, 1 and 3 the other; 3 has no reward, and NaN for a picture."""
    fields = {
        **stored(states(rows)),
        "weight_B": torch.tensor([float(row != 3) for row in rows]),
        "advantage_B": torch.tensor([(1.0, 0.5, -1.5, 9.0)[row] for row in rows]),
        "x0_BCHW": torch.cat([normal((1, *LATENT), "x0", row) for row in rows]),
        "noise_BTCHW": torch.cat([normal((1, 3, *LATENT), "eps", row % 2) for row in rows]),
        "sigma_BT": torch.tensor([[0.8, 0.4, 0.2]]).expand(len(rows), 3).clone(),
        "group_B": torch.tensor([row % 2 for row in rows]),
    }
    fields["x0_BCHW"][[number for number, row in enumerate(rows) if row == 3]] = float("nan")
    return fields


@torch.no_grad()
def group_loss(engine: DecoderEngine, fields: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Loss of the valid samples from the formulas, every sample computed here."""
    rows, condition = [0, 1, 2], states([0, 1, 2])
    advantage, total = fields["advantage_B"][rows], torch.zeros(())
    for k in range(3):
        x0, noise, sigma = fields["x0_BCHW"][rows], fields["noise_BTCHW"][rows, k], fields["sigma_BT"][rows, k]
        x, target = (1 - sigma[0]) * x0 + sigma[0] * noise, noise - x0
        with engine.eval_mode():
            v = engine.field(condition)(x, sigma)
            with engine.shadow("old").swapped():
                old = engine.field(condition)(x, sigma)
            with engine.reference():
                teacher = engine.field(condition, negative(), 3.0)(x, sigma)
        error = {key: each - target for key, each in (("new", v), ("old", old), ("teacher", teacher))}
        square = {key: each.square().mean((1, 2, 3)) for key, each in error.items()}
        if name == "crd":
            size = {key: each.abs().mean((1, 2, 3)) for key, each in error.items()}
            gap = square["old"] / size["old"] - square["new"] / size["new"] - (0.5 + advantage / 10)
            # Sample 1 is alone with its mean.
            gap = gap - torch.stack([(gap[0] + gap[2]) / 2, gap[1], (gap[0] + gap[2]) / 2])
            loss = 5.0 * gap**2
        else:
            term = advantage * (square["new"] - square["teacher"])
            weight = torch.sigmoid(50.0 * torch.stack([(term[0] + term[2]) / 2, term[1], (term[0] + term[2]) / 2]))
            loss = weight * advantage * square["new"]
        coefficient = 0.1 + 0.4 * (0.5 + advantage / 4)
        loss = loss + coefficient * (v - teacher).square().mean((1, 2, 3))
        rms = [each.square().mean((1, 2, 3)).sqrt() for each in (v, teacher)]
        total = total + (loss + 2.0 * (rms[0] - rms[1]).clamp_min(0)).sum() / 9
    return total


def resume_facts(decoder: str, folder: Path) -> dict[str, Any]:
    """An update, save, two; load, two."""
    facts: dict[str, Any] = {}
    for name, model in (("lora", LORA), ("full", {})):
        path = str(folder / name)

        def fresh(model: dict[str, Any] = model) -> DecoderEngine:
            return build_engine(decoder, shadows=["ema"], **model)

        engine = fresh()
        data = sampled(engine, share(4), micro=2, total=4.0)

        def updates(engine: DecoderEngine, count: int, data: Any = data) -> None:
            for _ in range(count):
                train(engine, data, 1)
                engine.lr_scheduler_step()
                engine.shadow("ema").update(0.5)

        updates(engine, 1)
        engine.save_checkpoint(path)
        saved = parameters(engine)
        updates(engine, 2)
        other = fresh()
        other.load_checkpoint(path)
        facts[f"{name} loaded"] = same(saved, parameters(other))
        updates(other, 2)
        facts[f"{name} parameters"] = same(parameters(engine), parameters(other))
        facts[f"{name} average"] = same(engine.shadow("ema").state_dict(), other.shadow("ema").state_dict())
        facts[f"{name} moved"] = not same(saved, parameters(engine))
    torch.distributed.barrier()
    (folder / "lora" / f"shadows_world_size_{torch.distributed.get_world_size()}_rank_{rank()}.pt").unlink()
    facts["missing"] = failure(
        lambda: build_engine(decoder, shadows=["ema"], **LORA).load_checkpoint(path[:-4] + "lora")
    )
    facts["files"] = sorted(file.name for file in (folder / "full").iterdir())
    return facts


def layout_facts(decoder: str, folder: Path) -> dict[str, Any]:
    """What a checkpoint of adapters beside a trained projector holds, and which others are taken."""
    model = {**LORA, "train_projector": True}
    engine = build_engine(decoder, **model)
    train(engine, sampled(engine, share(4), micro=2, total=4.0), 1)
    engine.save_checkpoint(str(folder / "ours"))
    # As verl lays it out, frozen weights included.
    engine.checkpoint_manager.checkpoint_save_contents = ["model", "optimizer", "extra"]
    engine.checkpoint_manager.save_checkpoint(str(folder / "verls"))
    size = torch.distributed.get_world_size()
    ours, verls = (model_file(folder / name, size, rank()) for name in ("ours", "verls"))
    facts: dict[str, Any] = {"held": sorted(load_tensors(ours)), "bytes": [ours.stat().st_size, verls.stat().st_size]}
    facts["trained"] = sorted(name for name, weight in engine.module.named_parameters() if weight.requires_grad)
    moved = folder / "moved"
    if rank() == 0:
        shutil.copytree(decoder, moved)
        file = next((moved / "transformer").glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    torch.distributed.barrier()
    for name in ("ours", "verls"):
        other = build_engine(decoder, **model)
        before = same(parameters(engine), parameters(other))
        other.load_checkpoint(str(folder / name))
        facts[name] = [before, same(parameters(engine), parameters(other))]
        another = build_engine(str(moved), **model)
        facts[f"{name} on another base"] = failure(lambda e=another, n=name: e.load_checkpoint(str(folder / n)))
    torch.distributed.barrier()
    if rank() == 0:
        for name in ("ours", "verls"):
            (folder / name / BASE_FILE).unlink(missing_ok=True)
    torch.distributed.barrier()
    for name in ("ours", "verls"):
        other = build_engine(decoder, **model)
        facts[f"{name} of no base"] = failure(lambda e=other, n=name: e.load_checkpoint(str(folder / n)))
    facts["other rank"] = failure(
        lambda: build_engine(decoder, lora_rank=2, lora_alpha=8, train_projector=True).load_checkpoint(
            str(folder / "ours")
        )
    )
    return facts


def refusal_facts(decoder: str) -> dict[str, Any]:
    """What stops before the first forward pass, on every rank."""
    engine = build_engine(decoder, **LORA)
    good = sampled(engine, share(4), micro=2, total=4.0)

    def with_entries(**entries: Any) -> str:
        data = good.clone()
        tu.assign_non_tensor(data, **entries)
        return failure(lambda: engine.forward_backward_batch(data, WIDE))

    def without(name: str) -> str:
        return failure(lambda: engine.forward_backward_batch(good.exclude(name), WIDE))

    half, narrow = good.clone(), SamplingPlan.from_dict({**PLAN.to_dict(), "window": [1]})
    half["x_BKCHW"] = half["x_BKCHW"].bfloat16()
    sizes = {"micro_batch_size_per_gpu": 1 + rank()}
    return {
        "plan": with_entries(plan_digest="0" * 16),
        "total": with_entries(total_weight=3.0),
        "ranks": with_entries(**sizes),
        "window": with_entries(plan=narrow.to_dict(), plan_digest=narrow.digest),
        "old": without("old_mean_BKCHW"),
        "micro": with_entries(micro_batch_size_per_gpu=0),
        "form": with_entries(reference_kl={"form": "l2", "coef": 1.0}),
        "half": failure(lambda: engine.forward_backward_batch(half, WIDE)),
        "fsdp1": failure(lambda: build_engine(decoder, fsdp={"strategy": "fsdp"})),
        "targets": failure(lambda: build_engine(decoder, lora_target_modules=["nothing"], **LORA)),
    }


def worker_facts(decoder: str) -> dict[str, Any]:
    """verl's training worker and trainer make numbers of the metrics: gathered, flattened, averaged by name."""
    from verl.utils.metric import reduce_metrics

    engine = build_engine(decoder, **LORA)
    data = sampled(engine, share(8), micro=2, total=8.0)
    train(engine, data, 1)
    output = train(engine, data, 1)[0]
    expected = {name: value[0] for name, value in output["metrics"].items() if isinstance(value, list)}
    output.pop("model_output")
    worker = SimpleNamespace(engine=engine, device_name="cpu", flops_counter=None)
    settings = {"global_token_num": None, "delta_time": 1.0, "forward_only": False, "images_seqlens": None}
    metrics = tu.get(TrainingWorker._postprocess_output(worker, output, **settings), "metrics")
    flat = {name: list(chain.from_iterable(metrics[name])) for name in expected}
    reduced = reduce_metrics(flat)
    return {"expected": expected, "reduced": {k: float(v) for k, v in reduced.items()}, "loss": metrics["loss"]}


def export_facts(decoder: str, folder: Path) -> dict[str, Any]:
    """Exported folders, and the velocities they should give."""
    facts: dict[str, Any] = {}
    for name, model in (("lora", {**LORA, "train_projector": True}), ("full", {})):
        engine = build_engine(decoder, shadows=["ema"], keep_reference=True, lr=1e-2, **model)
        data = sampled(engine, share(4), micro=2, total=4.0)
        train(engine, data, 2)
        engine.shadow("ema").update(0.5)
        train(engine, data, 1)
        for weights in ("live", "ema", "reference"):
            export_folder(engine, decoder, folder / f"{name}_{weights}", weights)
        live = velocity(engine)
        with engine.shadow("ema").swapped():
            average = velocity(engine)
        if rank() == 0:
            torch.save({"live": live, "ema": average, "x": X, "sigma": SIGMA}, folder / f"{name}.pt")
        facts[f"{name} again"] = failure(
            lambda e=engine, n=name: export_folder(e, decoder, folder / f"{n}_live", "live")
        )
        handed = trained_state(engine, "ema", torch.float32)
        merged = full_state_dict(engine, "ema")
        if rank() == 0:
            torch.save({"handed": (handed.tensors, handed.adapters), "merged": merged}, folder / f"{name}_handed.pt")
        facts[f"{name} handed"] = [handed is not None, handed.nbytes if handed else 0]
        facts[f"{name} ranks"] = len(full_state_dict(engine))
        facts[f"{name} unknown"] = failure(lambda e=engine: full_state_dict(e, "old"))
    return facts


def replica_facts(decoder: str) -> dict[str, Any]:
    """An unsharded copy beside sharded weights: equal at first, behind after training, equal again."""
    facts: dict[str, Any] = {}
    for name, model in (("lora", {**LORA, "train_projector": True}), ("full", {})):
        engine = build_engine(decoder, shadows=["ema"], **model)
        replica = SamplingReplica(engine)
        facts[f"{name} first"] = apart(engine, replica)
        train(engine, sampled(engine, share(4), micro=2, total=4.0), 2)
        facts[f"{name} behind"] = apart(engine, replica)
        facts[f"{name} tensors"] = replica.refresh() == len(parameters(engine))
        facts[f"{name} refreshed"] = apart(engine, replica)
        with engine.shadow("ema").swapped():
            replica.refresh()
            facts[f"{name} swapped"] = apart(engine, replica)
        replica.release()
        facts[f"{name} released"] = {p.device.type for p in replica.module.state_dict().values()} == {"meta"}
        facts[f"{name} filled"] = replica.refresh() == len(replica.module.state_dict())
        facts[f"{name} again"] = apart(engine, replica)
        facts[f"{name} sharded"] = any(hasattr(p, "full_tensor") for p in engine.module.parameters())
    other = SamplingReplica(build_engine(decoder))
    other._engine = engine = build_engine(decoder, **LORA)
    facts["no place"] = failure(other.refresh)
    engine.module.requires_grad_(False)
    facts["nothing"] = failure(other.refresh)
    half = build_engine(decoder, precision="bf16", **LORA)
    copy = SamplingReplica(half)
    facts["bf16"] = apart(half, copy)
    facts["bf16 held"] = sorted({str(p.dtype) for p in copy.module.parameters()})
    facts["buffers"] = sorted({str(b.dtype) for b in copy.module.buffers()})
    return facts


@torch.no_grad()
def apart(engine: DecoderEngine, replica: SamplingReplica) -> float:
    """Largest difference of the velocities."""
    return (replica.field(states([0, 1]))(X, SIGMA) - velocity(engine)).abs().max().item()


def useless_facts(decoder: str) -> dict[str, Any]:
    """An adapter that does not reach the velocity: the last block drops what its text stream asks for."""
    engine = build_engine(decoder, lora_target_modules=["1.attn.add_q_proj"], **LORA)
    data = sampled(engine, share(4), micro=2, total=4.0)
    silent = data.clone().update({"advantage_B": torch.zeros(len(data))})
    return {
        "silent": failure(lambda: train(engine, silent, 1)),
        "loud": failure(lambda: train(engine, data, 1)),
    }


ONE_RANK: dict[str, Callable[[str], dict[str, Any]]] = {
    "8 at once": functools.partial(run_facts, micro=8),
    "4 at once": functools.partial(run_facts, micro=4),
    "1 at once": functools.partial(run_facts, micro=1),
    "ratio": ratio_facts,
    "still": still_facts,
    "mask": mask_facts,
    "reference": reference_facts,
    "precision": precision_facts,
    "gradient": gradient_facts,
    "forward": forward_facts,
    "group": group_facts,
    "other": other_facts,
}
TWO_RANKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "4 at once": functools.partial(run_facts, micro=4),
    "replicated": functools.partial(run_facts, micro=2, fsdp_size=1),
    "kept": functools.partial(run_facts, micro=2, reshard_after_forward=False),
    "ratio": ratio_facts,
    "shadow": shadow_facts,
    "replica": replica_facts,
    "compiled": compiled_facts,
    "useless": useless_facts,
    "group": group_facts,
    "refusal": refusal_facts,
    "worker": worker_facts,
}


def main(decoder: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    folder = Path(out).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"engine": EngineRegistry.get_engine_cls("uae_decoder", "fsdp2").__name__}
    scenarios = ONE_RANK if size == "1" else TWO_RANKS
    for name, collect in scenarios.items():
        facts[name] = collect(decoder)
    if size == "2":
        facts["export"] = export_facts(decoder, folder)
        facts["halved"] = halved_facts(decoder, folder)
        facts["layout"] = layout_facts(decoder, folder)
    facts["resume"] = resume_facts(decoder, folder)
    Path(out).with_name(f"{Path(out).stem}_{number}.json").write_text(json.dumps(facts))
    torch.distributed.barrier()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Several places of a micro-batch in one pass against one after the other, on gloo ranks; started by tests.launch.

Expectations are in test_replay.py.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils import tensordict_utils as tu

from tests.engines.policy_probe import LORA, failure, losses, share, train
from tests.engines.policy_world import LATENT, PLAN, build_engine, gradients, minibatch, sampled, states
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import INPUTS, OLD, stored
from verl_uae.flow.objective import bind_objective
from verl_uae.flow.objective.types import Kind
from verl_uae.flow.plan import SamplingPlan
from verl_uae.seeding import normal

#: Objective, kernel, noise level, parameters: wide enough that every sample keeps its gradient.
TRANSITIONS: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("flow_grpo", "cps", 0.8, {"clip_low": 0.5, "clip_high": 0.5}),
    ("dppo", "cps", 0.8, {"threshold": 1.0}),
    ("grpo_guard", "flow_sde", 0.7, {"clip_low": 0.5, "clip_high": 0.5}),
)
AGAIN = {"enable_gradient_checkpointing": True}
#: What is trained, and guidance.
RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "adapters": (LORA, 1.0),
    "adapters, guided": (LORA, 3.0),
    "adapters, recomputed, guided": ({**LORA, **AGAIN}, 3.0),
    "full, guided": ({}, 3.0),
    "full, recomputed": (AGAIN, 1.0),
}
#: Places at once; the window has three.
TOGETHER = (2, 3)


def plan(kernel: str = "cps", level: float = 0.8, guidance: float = 1.0) -> SamplingPlan:
    changes = {"kernel": kernel, "noise_level": level, "guidance": guidance, "window": [1, 2, 3]}
    return SamplingPlan.from_dict({**PLAN.to_dict(), **changes})


def blanked(data: Any) -> Any:
    """With one sample of weight 0 that holds NaN, on the first rank, and a penalty on the distance to the reference."""
    kind: Kind = "forward" if "x0_BCHW" in data.keys() else "transition"
    if torch.distributed.get_rank() == 0:
        for name in {*INPUTS[kind], *OLD[kind]} - {"length_B", "weight_B"}:
            data[name][1] = float("nan")
        data["weight_B"][1] = 0.0
    form = {"forward": "velocity", "transition": "exact"}[kind]
    tu.assign_non_tensor(data, total_weight=3.0, reference_kl={"form": form, "coef": 0.5})
    return data


def forwards(guidance: float) -> Any:
    """A mini-batch of an objective on the forward process, old velocities not filled in."""
    rows = share(4)
    fields = {
        **stored(states(rows)),
        "weight_B": torch.ones(len(rows)),
        "advantage_B": torch.cat([normal((1,), "advantage", row) for row in rows]),
        "x0_BCHW": torch.cat([normal((1, *LATENT), "x0", row) for row in rows]),
        "noise_BTCHW": torch.cat([normal((1, 3, *LATENT), "eps", row) for row in rows]),
        "sigma_BT": torch.tensor([[0.8, 0.4, 0.2]]).expand(len(rows), 3).clone(),
    }
    return minibatch(fields, micro=2, total=4.0, plan=plan(guidance=guidance))


def outcome(engine: DecoderEngine, data: Any, objective: Any, together: int) -> dict[str, Any]:
    """Loss, gradient and figures of a mini-batch whose places go through the model so many at a time."""
    tu.assign_non_tensor(data, replay_steps=together)
    engine.optimizer_zero_grad()
    with engine.train_mode():
        output = engine.forward_backward_batch(data, objective)
        found = gradients(engine)
    return {
        "loss": losses([output])[0],
        "losses": len(output["loss"]),
        "gradient": torch.cat([g.double().flatten() for _, g in sorted(found.items())]),
        "figures": {name: value[0] for name, value in output["metrics"].items() if isinstance(value, list)},
    }


def compared(engine: DecoderEngine, data: Any, objective: Any) -> dict[str, Any]:
    one = outcome(engine, data, objective, 1)
    facts: dict[str, Any] = {"one": {**one, "gradient": float(one["gradient"].norm())}}
    for together in TOGETHER:
        other = outcome(engine, data, objective, together)
        apart = float((other["gradient"] - one["gradient"]).norm() / one["gradient"].norm())
        facts[str(together)] = {**other, "gradient": apart}
    return facts


def equal_facts(decoder: str, model: dict[str, Any], guidance: float) -> dict[str, Any]:
    """Of every objective, after an update that has moved the weights away from those that sampled."""
    engine = build_engine(decoder, lr=3e-3, keep_reference=True, shadows=["old"], **model)
    first = sampled(engine, share(4), micro=2, total=4.0, plan=plan(guidance=guidance))
    train(engine, first, 2, bind_objective("flow_grpo", {"clip_low": 0.5, "clip_high": 0.5}))
    facts = {}
    drawn = {
        name: (sampled(engine, share(4), micro=2, total=4.0, plan=plan(kernel, level, guidance)), params)
        for name, kernel, level, params in TRANSITIONS
    }
    train(engine, first, 1, bind_objective("flow_grpo", {"clip_low": 0.5, "clip_high": 0.5}))
    for name, (data, params) in drawn.items():
        facts[name] = compared(engine, blanked(data), bind_objective(name, params))
    data = forwards(guidance)
    with engine.eval_mode(), engine.shadow("old").swapped():
        engine.recompute_old(data)
    facts["nft"] = compared(engine, blanked(data), bind_objective("nft"))
    return facts


def policy_facts(decoder: str, precision: str) -> dict[str, Any]:
    """The first update, by where the old values come from; "off": another sampler's, who rounds otherwise."""
    engine = build_engine(decoder, precision=precision, **LORA)
    objective = bind_objective("flow_grpo")
    data = sampled(engine, share(8), micro=2, total=8.0, plan=plan())
    found = {"same": outcome(engine, data, objective, 1), "stored": outcome(engine, data, objective, 3)}
    # The first step of the second sample.
    data["old_log_prob_BK"][1, 0] += 2e-3
    found["off"] = outcome(engine, data, objective, 3)
    own = data.exclude("old_mean_BKCHW")
    tu.assign_non_tensor(own, on_policy=True)
    found["own"] = outcome(engine, own, objective, 3)
    tu.assign_non_tensor(data, replay_steps=3)
    with engine.eval_mode():
        engine.recompute_old(data)
    found["computed again"] = outcome(engine, data, objective, 3)
    same = found["same"]["gradient"]
    return {
        name: {"figures": each["figures"], "gradient": float((each["gradient"] - same).norm() / same.norm())}
        for name, each in found.items()
    }


class Collectives(TorchDispatchMode):
    """Counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def gathers(engine: DecoderEngine, data: Any, together: int) -> dict[str, int]:
    """Collectives of the gradient of a mini-batch."""
    tu.assign_non_tensor(data, replay_steps=together)
    engine.optimizer_zero_grad()
    with engine.train_mode(), Collectives() as counted:
        engine.forward_backward_batch(data, bind_objective("flow_grpo"))
    return dict(counted.counts)


def collective_facts(decoder: str) -> dict[str, Any]:
    """With gradients summed behind every pass, as verl's configuration has it."""
    engine = build_engine(decoder, fsdp={"use_no_sync_for_gradient_accumulation": False}, **LORA)
    data = sampled(engine, share(8), micro=2, total=8.0, plan=plan())
    return {str(together): gathers(engine, data, together) for together in (1, *TOGETHER)}


def with_origins(data: Any) -> Any:
    """As if samples had something in common."""
    data["origin_B"], data["old_velocity_BTCHW"] = torch.zeros(len(data), dtype=torch.long), data["noise_BTCHW"]
    return data


def refusal_facts(decoder: str) -> dict[str, Any]:
    engine = build_engine(decoder, **LORA)
    objective = bind_objective("flow_grpo")

    def with_entries(data: Any, **entries: Any) -> str:
        tu.assign_non_tensor(data, **entries)
        return failure(lambda: engine.forward_backward_batch(data, objective))

    data = sampled(engine, share(4), micro=2, total=4.0)
    forward = forwards(1.0)
    assert set(INPUTS["forward"]) < set(forward.keys()) and OLD["forward"][0] not in forward.keys()
    forward["old_velocity_BTCHW"] = forward["noise_BTCHW"]
    return {
        "none": with_entries(data.clone(), replay_steps=0),
        "ranks": with_entries(data.clone(), replay_steps=1 + torch.distributed.get_rank()),
        "forward": with_entries(forward, on_policy=True),
        "origins": failure(lambda: engine.forward_backward_batch(with_origins(forwards(1.0)), objective)),
    }


def in_pairs(data: Any) -> Any:
    """The same with two members of a caption side by side: one latent and condition up to the first trained step."""
    for row in range(0, len(data), 2):
        for name in ("states_BLE", "length_B"):
            data[name][row + 1] = data[name][row]
        data["x_BKCHW"][row + 1, 0] = data["x_BKCHW"][row, 0]
    return data


def shared_facts(decoder: str) -> dict[str, Any]:
    """The prefix of pairs once, against once for each member; the second row of the first rank is blank, or the first
    one, which stands for both where it can."""
    engine = build_engine(decoder, keep_reference=True, **LORA)
    objective = bind_objective("flow_grpo", {"clip_low": 0.5, "clip_high": 0.5})
    facts = {}
    for blank in (0, 1, None):
        data = in_pairs(sampled(engine, share(8), micro=4, total=8.0, plan=plan(guidance=3.0)))
        with engine.eval_mode():
            engine.recompute_old(data)
        data["old_log_prob_BK"] += 1e-3
        if blank is not None and torch.distributed.get_rank() == 0:
            for name in ("states_BLE", "x_BKCHW", "x_next_BKCHW"):
                data[name][blank] = float("nan")
            data["weight_B"][blank] = 0.0
        total = 8.0 - (blank is not None)
        tu.assign_non_tensor(data, total_weight=total, reference_kl={"form": "exact", "coef": 0.5})
        apart = outcome(engine, data, objective, 1)
        data["origin_B"] = torch.arange(len(data)) // 2
        for together in (1, 3):
            rows: list[int] = []
            hook = engine.module.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
            once = outcome(engine, data, objective, together)
            hook.remove()
            gradient = float((once["gradient"] - apart["gradient"]).norm() / apart["gradient"].norm())
            facts[f"{blank} {together}"] = {"apart": apart | {"gradient": 0}, "once": once | {"gradient": gradient}}
            facts[f"{blank} {together}"]["rows"] = rows
    return facts


def main(decoder: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    facts: dict[str, Any] = {name: equal_facts(decoder, model, guidance) for name, (model, guidance) in RUNS.items()}
    facts |= {precision: policy_facts(decoder, precision) for precision in ("fp32", "bf16")}
    facts["shared"] = shared_facts(decoder)
    if size == "2":
        facts |= {"collectives": collective_facts(decoder), "refusals": refusal_facts(decoder)}
    Path(out).with_name(f"{Path(out).stem}_{number}.json").write_text(json.dumps(facts))
    torch.distributed.barrier()

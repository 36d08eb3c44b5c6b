# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny captioner on gloo ranks, with masked tokens and with adapters, and writes what happened as JSON.

Started by tests.launch.

In processes of their own, as tests.engines.policy_probe. The expectations are in test_captioner.py.
"""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    ActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    OptimizerConfig,
    TrainingWorkerConfig,
)
from verl.workers.utils.losses import ppo_loss

from verl_uae.engines.captioner import MODEL_TYPE
from verl_uae.errors import UAEError
from verl_uae.scenes.tokenizer import pixel_values, prompt_ids
from verl_uae.seeding import normal
from verl_uae.stages.g4u.worker import CaptionerTrainingWorker

ROWS = 8
LENGTHS = [3, 5, 2, 4, 6, 1, 3, 2]


def worker(
    models: str,
    contents: list[str] | None = None,
    *,
    freeze_vision_tower: bool = False,
    precision: str = "fp32",
    **lora: Any,
) -> CaptionerTrainingWorker:
    """A training worker with momentum and weight decay, which move weights at a gradient of zero; its weights and what
    it computes in have a precision."""
    contents = contents or ["model", "optimizer", "extra"]
    config = TrainingWorkerConfig(
        model_type=MODEL_TYPE,
        model_config=HFModelConfig(
            path=f"{models}/captioner",
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
            **lora,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            use_remove_padding=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=2,
            model_dtype=precision,
            dtype="float32" if precision == "fp32" else "bfloat16",
            mixed_precision={"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, weight_decay=0.1, total_training_steps=4, clip_grad=1e9),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )
    made = CaptionerTrainingWorker(config, freeze_vision_tower=freeze_vision_tower)
    made.reset()
    actor = ActorConfig(
        strategy="fsdp2",
        rollout_n=2,
        use_kl_loss=True,
        kl_loss_coef=0.1,
        entropy_coeff=0.01,
        ppo_micro_batch_size_per_gpu=2,
        optim=OptimizerConfig(lr=1e-2),
    )
    made.set_loss_fn(partial(ppo_loss, actor))
    return made


def ragged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def batch(made: CaptionerTrainingWorker, trains: list[bool], *, mini_batch: int) -> TensorDict:
    """This rank's rows of ROWS samples, of which ``trains`` says which keep their tokens."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = range(ROWS)[rank * ROWS // size : (rank + 1) * ROWS // size]
    prompt = torch.tensor(prompt_ids(made.model_config.tokenizer))
    answers = [torch.arange(20, 20 + LENGTHS[row]) for row in mine]
    inputs = [torch.cat([prompt, answer]) for answer in answers]
    masks = [torch.full_like(answer, int(trains[row])) for row, answer in zip(mine, answers, strict=True)]
    numbers = [torch.linspace(-2.0 - row / ROWS, -1.0, LENGTHS[row]) for row in mine]
    fields = {
        "input_ids": ragged(inputs),
        "position_ids": ragged([torch.arange(len(row)).expand(4, -1) for row in inputs]),
        "prompts": ragged([prompt for _ in mine]),
        "responses": ragged(answers),
        "response_mask": ragged(masks),
        "loss_mask": ragged(masks),
        "old_log_probs": ragged(numbers),
        "ref_log_prob": ragged([number * 1.1 for number in numbers]),
        "advantages": ragged([torch.full((LENGTHS[row],), (-1.0) ** row) for row in mine]),
    }
    data = TensorDict(fields, batch_size=len(answers))
    pictures = [pixel_values(normal((1, 3, 32, 32), "picture", row).sigmoid()) for row in mine]
    inputs = [{"pixel_values": pixels, "image_grid_thw": grid} for pixels, grid in pictures]
    tu.assign_non_tensor_stack(data, "multi_modal_inputs", inputs)
    tu.assign_non_tensor(
        data,
        calculate_entropy=True,
        global_batch_size=mini_batch,
        mini_batch_size=mini_batch,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
    )
    return data


def state(made: CaptionerTrainingWorker) -> list[Tensor]:
    """Weights and what the optimiser holds, whole."""
    held = chain.from_iterable(
        [entry[name] for name in sorted(entry) if isinstance(entry[name], Tensor)]
        for entry in made.engine.optimizer.state.values()
    )
    tensors = chain(made.engine.module.parameters(), held)
    return [whole(tensor) for tensor in tensors]


def step(made: CaptionerTrainingWorker, trains: list[bool], *, mini_batch: int = ROWS) -> dict[str, Any]:
    """verl's metrics of a step, one list per name, and how far weights and optimiser moved."""
    before = state(made)
    output = made.train_mini_batch(batch(made, trains, mini_batch=mini_batch))
    after = state(made)
    moved = [len(before) != len(after), *(not torch.equal(a, b) for a, b in zip(before, after, strict=False))]
    metrics = {name: list(map(float, tu.get(output, "metrics")[name])) for name in tu.get(output, "metrics")}
    return {"metrics": metrics, "moved": any(moved)}


def facts(models: str) -> dict[str, Any]:
    """Steps one after the other; the first gives the optimiser a momentum."""
    made = worker(models)
    half = [row < ROWS // 2 for row in range(ROWS)]
    # The rows of the first of two mini-batches: each rank walks its own.
    first = half if torch.distributed.get_world_size() == 1 else [row % 4 < 2 for row in range(ROWS)]
    merged, sent = dict(made.engine.merged_weights()), dict(made.engine.get_per_tensor_param()[0])
    found = {
        "plain weights": merged.keys() == sent.keys() and all(_alike(merged, sent, name) for name in sent),
        "first": step(made, [True] * ROWS),
        # On two ranks the second has no token, on one two of four micro-batches have none.
        "half": step(made, half),
        "none": step(made, [False] * ROWS),
        "one of two": step(made, first, mini_batch=ROWS // 2),
    }
    return found


LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 12, "lora": {"merge": True}}


def lora_facts(models: str, folder: Path, precision: str) -> dict[str, Any]:
    """A step with adapters on all linear layers, saved in both ways, what a caption server is sent of it, and whether a
    worker that goes on from it does what this one does."""
    contents = ["model", "optimizer", "extra", "hf_model"]
    made = worker(models, contents, freeze_vision_tower=True, precision=precision, **LORA)
    before = {name: whole(parameter) for name, parameter in made.engine.module.named_parameters()}
    everything = batch(made, [True] * ROWS, mini_batch=ROWS)
    made.train_mini_batch(everything.clone())
    after = {name: whole(parameter) for name, parameter in made.engine.module.named_parameters()}
    trainable = [name for name, parameter in made.engine.module.named_parameters() if parameter.requires_grad]
    made.save_checkpoint(str(folder / "actor"))
    sent, _ = made.engine.get_per_tensor_param()
    served = {name: tensor.contiguous() for name, tensor in sent}
    if torch.distributed.get_rank() == 0:
        save_file(served, folder / "served.safetensors")
    unmoved = {name: whole(parameter) for name, parameter in made.engine.module.named_parameters()}
    found: dict[str, Any] = {
        "moved": [name for name, tensor in before.items() if not torch.equal(tensor, after[name])],
        "trainable": trainable,
        "precisions": {
            part: sorted({str(tensor.dtype) for name, tensor in after.items() if (name in trainable) is trains})
            for part, trains in (("trained", True), ("frozen", False))
        },
        "sending leaves the weights": all(torch.equal(tensor, unmoved[name]) for name, tensor in after.items()),
    }
    resumed = worker(models, contents, freeze_vision_tower=True, precision=precision, **LORA)
    again = {name: whole(parameter) for name, parameter in resumed.engine.module.named_parameters()}
    found["starts alike"] = all(torch.equal(tensor, again[name]) for name, tensor in before.items())
    found["start"] = {
        name: [float(before[name].abs().max() * before[name].shape[1] ** 0.5), float(before[name].double().sum())]
        for name in trainable
    }
    resumed.load_checkpoint(str(folder / "actor"))
    for each in (made, resumed):
        each.train_mini_batch(everything.clone())
    pairs = list(zip(state(made), state(resumed), strict=True))
    found["resumed"] = len(pairs) > len(trainable) and all(torch.equal(a, b) for a, b in pairs)
    if precision == "bf16":
        found |= sent_alone(models, served)
    if torch.distributed.get_world_size() == 1 and precision == "fp32":
        found |= adapter_facts(models, folder, after)
    return found


def sent_alone(models: str, served: dict[str, Tensor]) -> dict[str, Any]:
    """What verl sends to vLLM after an update where adapters are not multiplied in, and whether a conditioner is sent
    what is ``served`` after the same update where they are."""
    made = worker(models, freeze_vision_tower=True, precision="bf16", **{**LORA, "lora": {"merge": False}})
    made.train_mini_batch(batch(made, [True] * ROWS, mini_batch=ROWS))
    sent, config = made.engine.get_per_tensor_param(base_sync_done=True)
    found = {name: whole(tensor).cpu() for name, tensor in sent}
    held = {
        name.replace(".default.", "."): whole(parameter)
        for name, parameter in made.engine.module.named_parameters()
        if parameter.requires_grad
    }
    same = found.keys() == held.keys() and all(torch.equal(found[name].float(), held[name]) for name in held)
    before = {name: whole(parameter) for name, parameter in made.engine.module.named_parameters()}
    merged = dict(made.engine.merged_weights())
    after = {name: whole(parameter) for name, parameter in made.engine.module.named_parameters()}
    return {
        "sent alone": same,
        "sent with": [config["r"], config["lora_alpha"]],
        "merged": sorted(name for name in merged.keys() | served.keys() if not _alike(merged, served, name)),
        "merging leaves the weights": all(torch.equal(tensor, after[name]) for name, tensor in before.items()),
    }


def _alike(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> bool:
    return name in left and name in right and torch.equal(left[name], right[name])


def adapter_facts(models: str, folder: Path, trained: dict[str, Any]) -> dict[str, Any]:
    """What a run makes of adapters that lie at ``lora_adapter_path``."""
    from peft import LoraConfig

    found = {}
    halves = {name.replace(".default.", "."): whole(value) for name, value in trained.items() if ".lora_" in name}
    cut = dict(list(halves.items())[1:])
    for case, state in (("whole", halves), ("cut", cut), ("tower", {**halves, **tower_halves(models)})):
        place = folder / case
        targets = sorted({name.partition(".lora_")[0].removeprefix("base_model.model.") for name in state})
        LoraConfig(r=4, lora_alpha=12, target_modules=targets).save_pretrained(str(place))
        save_file(state, place / "adapter_model.safetensors", {"format": "pt"})
        try:
            made = worker(models, freeze_vision_tower=True, **LORA, lora_adapter_path=str(place))
            name, value = next(iter(halves.items()))
            start = dict(made.engine.module.named_parameters())[name.replace(".weight", ".default.weight")]
            found[case] = "" if torch.equal(whole(start), value) else "other adapters"
        except UAEError as error:
            found[case] = str(error)
    return {"adapters": found}


def tower_halves(models: str) -> dict[str, Tensor]:
    """Adapters of a layer of the vision tower."""
    from verl_uae.checkpoints.export import _auto_class
    from verl_uae.checkpoints.load import load_model

    model = load_model(_auto_class(), f"{models}/captioner")
    name, layer = next((n, m) for n, m in model.named_modules() if ".visual." in n and isinstance(m, torch.nn.Linear))
    prefix = f"base_model.model.{name}"
    shapes = {f"{prefix}.lora_A.weight": (4, layer.in_features), f"{prefix}.lora_B.weight": (layer.out_features, 4)}
    return {key: torch.full(shape, 0.01) for key, shape in shapes.items()}


def whole(tensor: Any) -> Tensor:
    """A copy of a parameter, gathered."""
    return getattr(tensor.detach(), "full_tensor", tensor.detach)().clone()


def main(models: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    os.environ.update(RANK=number, WORLD_SIZE=size, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    folder = Path(out).with_suffix("")
    (folder / "bf16").mkdir(parents=True, exist_ok=True)
    found = {
        **facts(models),
        "lora": lora_facts(models, folder, "fp32"),
        "lora beside bf16": lora_facts(models, folder / "bf16", "bf16"),
    }
    folder.with_name(f"{folder.name}_{number}.json").write_text(json.dumps(found))
    torch.distributed.barrier()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny captioner on gloo ranks with some or all tokens masked and writes what happened as JSON.

python -m tests.engine.captioner_probe MODELS OUT RANK SIZE PORT

In processes of their own, as tests.engine.policy_probe. The expectations are in test_captioner.py.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
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

from verl_uae.engine.captioner import MODEL_TYPE
from verl_uae.engine.worker import CaptionerTrainingWorker
from verl_uae.scenes.tokenizer import pixel_values, prompt_ids
from verl_uae.seeding import normal

ROWS = 8
LENGTHS = [3, 5, 2, 4, 6, 1, 3, 2]


def worker(models: str) -> CaptionerTrainingWorker:
    """A training worker with momentum and weight decay, which move weights at a gradient of zero."""
    config = TrainingWorkerConfig(
        model_type=MODEL_TYPE,
        model_config=HFModelConfig(
            path=f"{models}/encoder",
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            use_remove_padding=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=2,
            dtype="float32",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, weight_decay=0.1, total_training_steps=4, clip_grad=1e9),
        checkpoint_config=CheckpointConfig(),
    )
    made = CaptionerTrainingWorker(config)
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
    return [getattr(tensor.detach(), "full_tensor", tensor.detach)().clone() for tensor in tensors]


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
    found = {
        "first": step(made, [True] * ROWS),
        # On two ranks the second has no token, on one two of four micro-batches have none.
        "half": step(made, half),
        "none": step(made, [False] * ROWS),
        "one of two": step(made, first, mini_batch=ROWS // 2),
    }
    return found


def main(models: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    os.environ.update(RANK=number, WORLD_SIZE=size, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    Path(out).with_name(f"{Path(out).stem}_{number}.json").write_text(json.dumps(facts(models)))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])

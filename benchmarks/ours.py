# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One batch of stage U4G as the package does it: the parts its sampler and its engine are made of.

There are two engines: verl's FSDP2 engine, and one process without verl. Pictures are neither decoded nor scored: both
sides of a comparison would do that alike.

Shape legend: N samples, B of a micro-batch, K steps of the window, L text positions, E language-model width,
C H W latent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.sizes import Size, save_decoder
from benchmarks.work import CLIP, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Samples, Work
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.engines.decoder_module import DecoderModule, Uncast
from verl_uae.engines.lora import add_lora
from verl_uae.families.family import Condition
from verl_uae.flow.objective import TransitionInputs, bind_objective
from verl_uae.flow.ode import Velocity
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import Trajectory, Twins, sample_trajectory, score_step

#: Of the adapters, for every rank.
LORA_ALPHA = 64


#: Samples of an update, and their advantages.
Share = tuple[Samples, Tensor]


class Engine(Protocol):
    """What the benchmark asks of either."""

    name: str

    def field(self, condition: Condition) -> Velocity: ...

    def eval_mode(self) -> Any: ...

    def train_mode(self) -> Any: ...

    def gradient(self, samples: Samples, advantage_B: Tensor, plan: SamplingPlan, micro: int) -> float:
        """Leave the gradient of a mini-batch behind; returns the loss."""
        ...

    def updates(self, shares: Sequence[Share], plan: SamplingPlan, micro: int, together: int = 1) -> None:
        """The optimiser updates of a batch, ``together`` places of a sample going through the model in one pass."""
        ...

    def gradients(self) -> dict[str, Tensor]: ...


def verl_available() -> bool:
    """Whether verl, and Ray which it imports, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("verl", "ray", "tensordict"))


def make_trainable(module: DecoderModule, size: Size) -> DecoderModule:
    """Adapters or all weights, and the projector where the size says so; in place."""
    if size.lora_rank:
        add_lora(module, rank=size.lora_rank, alpha=LORA_ALPHA, target_modules=module.family.lora_targets)
    else:
        module.transformer.requires_grad_(True)
    module.projector.requires_grad_(size.train_projector)
    return module


def build_engine(
    kind: str,
    module: DecoderModule,
    size: Size,
    device: str,
    dtype: torch.dtype,
    *,
    reshard: bool = True,
    compiled: bool = False,
) -> Engine:
    """The engine ``verl`` around a copy of a frozen module, or ``plain`` around the module itself.

    The module is trainable afterwards. verl's engine copies it before it gets its adapters, which are drawn by name.
    """
    sharded = VerlEngine(module, size, device, dtype, reshard=reshard, compiled=compiled) if kind == "verl" else None
    make_trainable(module, size)
    return sharded or PlainEngine(module, dtype)


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients there are, gathered where they are sharded."""
    return {
        name: getattr(p.grad, "full_tensor", p.grad.detach)().clone()
        for name, p in module.named_parameters()
        if p.grad is not None
    }


class PlainEngine:
    """The package's module, transitions and objective in one unsharded process.

    Frozen weights are held in the compute dtype and adapters in fp32, under torch's autocast.

    Args:
        module: trainable, on its device.
        dtype: to compute in.
    """

    name = "plain"

    def __init__(self, module: DecoderModule, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.objective = bind_objective("flow_grpo", {"clip_low": CLIP, "clip_high": CLIP})
        self.device = self.trained[0].device

    def field(self, condition: Condition) -> Velocity:
        """The velocity with its condition filled in."""

        def velocity(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            with autocast(self.device.type, self.dtype):
                return self.module(x_BCHW, Uncast(sigma_B), condition)

        return velocity

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        self.module.eval()
        yield

    @contextmanager
    def train_mode(self) -> Iterator[None]:
        self.module.train()
        yield

    def gradient(self, samples: Samples, advantage_B: Tensor, plan: SamplingPlan, micro: int) -> float:
        """See :class:`Engine`."""
        self.optimizer.zero_grad()
        total, scale = 0.0, 1.0 / (len(advantage_B) * len(plan.window))
        for start in range(0, len(advantage_B), micro):
            rows = slice(start, start + micro)
            part, advantage = samples.rows(rows).to(self.device), advantage_B[rows].to(self.device)
            for k in range(len(plan.window)):
                loss = self._loss(part, advantage, plan, k) * scale
                loss.backward()
                total += loss.item()
        return total

    def updates(self, shares: Sequence[Share], plan: SamplingPlan, micro: int, together: int = 1) -> None:
        """See :class:`Engine`; one place at a time alone."""
        if together != 1:
            raise ValueError(f"{together} places together need verl's engine")
        with self.train_mode():
            for samples, advantage_B in shares:
                self.gradient(samples, advantage_B, plan, micro)
                nn.utils.clip_grad_norm_(self.trained, MAX_NORM)
                self.optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        return gradients_of(self.module)

    def _loss(self, part: Samples, advantage_B: Tensor, plan: SamplingPlan, k: int) -> Tensor:
        """Sum over the samples of a micro-batch at one step."""
        x_BCHW, x_next_BCHW, index = part.x_NKCHW[:, k], part.x_next_NKCHW[:, k], plan.window[k]
        taken = score_step(self.field(part.condition), x_BCHW, x_next_BCHW, plan, index)
        inputs = TransitionInputs(
            log_prob_B=taken.log_prob_B,
            old_log_prob_B=part.log_prob_NK[:, k],
            mean_BCHW=taken.mean_BCHW,
            old_mean_BCHW=part.mean_NKCHW[:, k],
            x_next_BCHW=taken.x_next_BCHW,
            std=plan.coefficients(index).std,
            step_size=plan.sigmas[index] - plan.sigmas[index + 1],
            sigma=plan.sigmas[index],
            kernel=plan.kernel,
            advantage_B=advantage_B,
        )
        return self.objective(inputs).loss_B.sum()


class VerlEngine:
    """:class:`~verl_uae.engines.decoder.DecoderEngine` on the ranks of the process group, one where there is none.

    Args:
        module: frozen, without adapters; the engine loads a copy of it.
        size: what is trained.
        device: ``cpu`` (gloo) or ``cuda`` (nccl).
        dtype: to compute in; weights are held in fp32.
        reshard: free gathered weights after every forward pass, verl's default.
        compiled: its blocks are compiled (``uae.decoder.compile``).
    """

    name = "verl"

    def __init__(
        self,
        module: DecoderModule,
        size: Size,
        device: str,
        dtype: torch.dtype,
        *,
        reshard: bool = True,
        compiled: bool = False,
    ) -> None:
        _start_group(device)
        from verl.trainer.config import CheckpointConfig
        from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig

        from verl_uae.engines.decoder import DecoderEngine
        from verl_uae.engines.decoder_module import DecoderModelConfig

        param_dtype = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        mixed = {"param_dtype": param_dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
        with tempfile.TemporaryDirectory() as folder:
            save_decoder(module, size, folder)
            self.inner = DecoderEngine(
                model_config=DecoderModelConfig(
                    path=folder,
                    lora_rank=size.lora_rank,
                    lora_alpha=LORA_ALPHA,
                    train_projector=size.train_projector,
                    enable_gradient_checkpointing=size.checkpointing,
                    compile_blocks=compiled,
                ),
                engine_config=FSDPEngineConfig(
                    strategy="fsdp2",
                    mixed_precision=mixed,
                    reshard_after_forward=reshard,
                    # As verl's configuration has it, and not the class.
                    use_no_sync_for_gradient_accumulation=False,
                    use_torch_compile=False,
                    use_remove_padding=False,
                ),
                optimizer_config=FSDPOptimizerConfig(
                    lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_grad=MAX_NORM, total_training_steps=1000
                ),
                checkpoint_config=CheckpointConfig(),
            )
            self.inner.initialize()
        self.field, self.eval_mode = self.inner.field, self.inner.eval_mode
        self.train_mode = self.inner.train_mode
        self.objective = bind_objective("flow_grpo", {"clip_low": CLIP, "clip_high": CLIP})

    def gradient(self, samples: Samples, advantage_B: Tensor, plan: SamplingPlan, micro: int) -> float:
        """See :class:`Engine`."""
        self.inner.optimizer_zero_grad()
        data = self._mini_batch(samples, advantage_B, plan, micro)
        return sum(self.inner.forward_backward_batch(data, self.objective)["loss"])

    def updates(self, shares: Sequence[Share], plan: SamplingPlan, micro: int, together: int = 1) -> None:
        """See :class:`Engine`. Old log-probabilities as :class:`~verl_uae.stages.u4g.worker.DecoderPolicyWorker` has
        them: the sampler's at one place at a time, else the first pass's own and later ones computed again."""
        from verl.utils import tensordict_utils as tu

        batches = [self._mini_batch(*share, plan, micro) for share in shares]
        for number, data in enumerate(batches):
            tu.assign_non_tensor(data, replay_steps=together, on_policy=together > 1 and number == 0)
        if together > 1:
            with self.inner.eval_mode():
                for data in batches[1:]:
                    self.inner.recompute_old(data)
        with self.inner.train_mode():
            for data in batches:
                self.inner.train_batch(data, self.objective)

    def gradients(self) -> dict[str, Tensor]:
        return gradients_of(self.inner.module)

    def _mini_batch(self, samples: Samples, advantage_B: Tensor, plan: SamplingPlan, micro: int) -> Any:
        from tensordict import TensorDict
        from verl.utils import tensordict_utils as tu

        from verl_uae.engines.decoder_batch import stored

        fields = {
            **stored(samples.condition),
            "weight_B": torch.ones(len(advantage_B)),
            "advantage_B": advantage_B,
            "x_BKCHW": samples.x_NKCHW,
            "x_next_BKCHW": samples.x_next_NKCHW,
            "old_log_prob_BK": samples.log_prob_NK,
            "old_mean_BKCHW": samples.mean_NKCHW,
        }
        if len(samples.origin_N.unique()) < len(advantage_B):
            fields["origin_B"] = samples.origin_N
        data = TensorDict(fields, batch_size=len(advantage_B))
        tu.assign_non_tensor(
            data,
            plan=plan.to_dict(),
            plan_digest=plan.digest,
            micro_batch_size_per_gpu=micro,
            total_weight=float(len(advantage_B) * torch.distributed.get_world_size()),
        )
        return data


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """torch's autocast below fp32, nothing at fp32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)


def _start_group(device: str) -> None:
    if torch.distributed.is_initialized():
        return
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


class Ours:
    """Sampling and updates of the package.

    Args:
        engine: holds the policy, for sampling and training.
        conditioner: of captions.
        work: see there.
    """

    def __init__(self, engine: Engine, conditioner: Conditioner, work: Work) -> None:
        self.engine = engine
        self.conditioner = conditioner
        self.work = work
        self.together = 1

    def run(self, repetition: int) -> dict[str, float]:
        """One batch; seconds by part."""
        clock = self.work.clock()
        conditions = self.encode(repetition)
        clock.lap("condition")
        samples = self.sample(conditions, repetition)
        clock.lap("sampling")
        self.update(samples, self.work.advantages(repetition), self.together)
        clock.lap("update")
        return clock.seconds

    def encode(self, repetition: int) -> list[Tensor]:
        """N conditions, (L, E) each, in host memory; every caption is encoded once, and is new."""
        return ConditionCache(self.conditioner, 1024).get(self.work.captions(repetition)).conditions

    def sample(self, conditions: list[Condition], repetition: int, micro: int = 0) -> Samples:
        """N trajectories in host memory.

        Args:
            conditions: of all samples.
            repetition: part of every noise's name.
            micro: samples per forward pass, a divisor of the work's; 0 is the work's.
        """
        work, size = self.work, micro or self.work.micro
        parts: list[Trajectory] = []
        with self.engine.eval_mode(), torch.no_grad():
            for start in range(0, work.samples, work.micro):
                for at in range(0, work.micro, size):
                    condition = Condition.stack(conditions[start + at :][:size]).to(work.device)
                    field, prefix = self.engine.field(condition), None
                    if work.shared_prefix:
                        twins = Twins.of(work.origin_N[start + at :][:size].tolist())
                        prefix = twins.velocity(self.engine.field(condition[twins.first]))

                    def step_noise(step: int, start: int = start, at: int = at) -> Tensor:
                        return work.noise(repetition, start, step)[at : at + size]

                    found = sample_trajectory(field, step_noise(-1), work.plan, step_noise, prefix)
                    parts.append(_to_host(found))
        fields = (torch.cat([getattr(part, name) for part in parts]) for name in Trajectory.__dataclass_fields__)
        return Samples(Condition.stack(conditions).states, *fields, work.origin_N)

    def update(self, samples: Samples, advantage_N: Tensor, together: int = 1) -> None:
        """All optimiser updates of a batch."""
        work, share = self.work, self.work.samples // self.work.updates
        cuts = [slice(start, start + share) for start in range(0, work.samples, share)]
        shares = [(samples.rows(rows), advantage_N[rows]) for rows in cuts]
        self.engine.updates(shares, work.plan, work.micro, together)


def _to_host(part: Trajectory) -> Trajectory:
    return Trajectory(*(getattr(part, name).to("cpu") for name in Trajectory.__dataclass_fields__))

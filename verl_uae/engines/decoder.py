# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engine of the decoder as a policy: verl's FSDP engine around the transformer and what stands in front of it.

Shape legend: B samples, K trained places of a sample, T drawn noise levels, L text positions, E language-model width,
C H W latent channels, height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from verl.utils.device import get_device_id, get_device_name
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry

from verl_uae.checkpoints.shards import plain_name, shadow_file
from verl_uae.compiling import compile_blocks
from verl_uae.engines.decoder_batch import OLD, DecoderBatch, MicroBatch, read_batch
from verl_uae.engines.decoder_module import MODEL_TYPE, DecoderModule, Uncast
from verl_uae.engines.lora import adapter_disabled, add_lora
from verl_uae.engines.shadow import WeightShadow
from verl_uae.engines.together import of_all_ranks, together
from verl_uae.engines.trained import TrainedWeightsEngine
from verl_uae.engines.update_metrics import LEFT_OUT, SAMPLER_DIFFERENCE, Figures
from verl_uae.errors import CheckpointError, ConfigError, TrainingError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.flow.advantage import group_means
from verl_uae.flow.divergence import norm_excess, transition_kl
from verl_uae.flow.objective import ForwardInputs, ObjectiveOutput, TransitionInputs
from verl_uae.flow.objective.registry import BoundObjective
from verl_uae.flow.ode import Velocity

#: The shadow that holds the policy before training, where switching adapters off does not give it back.
REFERENCE = "reference"

ObjectiveFunction = Callable[[TransitionInputs | ForwardInputs], ObjectiveOutput]


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class DecoderEngine(TrainedWeightsEngine):
    """Sharding, optimiser, offload, clipping and checkpoints are verl's; the module and the loss loop are not."""

    engine_config: Any

    @property
    def family(self) -> DecoderFamily:
        """Of the decoder."""
        module: Any = self.module
        return module.family

    @property
    def base_parts(self) -> tuple[str, ...]:
        """Subfolders of the base that hold its weights."""
        return tuple(self.family.trained.values())

    def initialize(self) -> None:
        """Build module, optimiser and the weight copies the model config asks for."""
        super().initialize()
        self._has_learned = False
        names = list(self.model_config.shadows)
        if self.model_config.keep_reference and not self._adapters_are_all:
            names.append(REFERENCE)
        self.shadows = {name: WeightShadow(self.module) for name in names}

    def shadow(self, name: str) -> WeightShadow:
        """A weight copy by name.

        Raises:
            KeyError: the model config did not ask for it.
        """
        if name not in self.shadows:
            raise KeyError(f"no weights named {name!r} are kept; there are {sorted(self.shadows)}")
        return self.shadows[name]

    @property
    def _adapters_are_all(self) -> bool:
        """Whether nothing but adapters is trained."""
        return self._is_lora and not self.model_config.train_projector

    def _build_module(self) -> DecoderModule:
        if self.engine_config.strategy == "fsdp" and get_device_name() == "cpu":
            # verl has FSDP1 broadcast the weights from device memory.
            raise ConfigError("uae.train.fsdp_config.strategy", "fsdp needs an accelerator; fsdp2 runs on a CPU too")
        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or "fp32")
        # Adapters are held in fp32 whatever stands beside them.
        if dtype != torch.float32 and not (self.engine_config.forward_only or self._adapters_are_all):
            raise ConfigError(
                "uae.train.fsdp_config.model_dtype",
                f"trained weights are held in fp32, got {dtype}; mixed_precision.param_dtype is what is computed in",
            )
        with together(lambda text: CheckpointError(self.model_config.path, text)):
            module = DecoderModule.from_pretrained(
                self.model_config.path,
                dtype=dtype,
                gradient_checkpointing=self.model_config.enable_gradient_checkpointing,
                # The others are sent the weights when the module is sharded.
                empty=self.device_mesh.get_coordinate()[-1] != 0,
            )
        config = self.model_config
        if config.compile_blocks:
            compile_blocks(module.transformer, module._no_split_modules)
        module.train_parts(transformer=config.train_transformer, projector=config.train_projector)
        return module

    def _build_lora_module(self, module: DecoderModule) -> DecoderModule:
        config = self.model_config
        targets, seed = config.lora_target_modules or module.family.lora_targets, config.lora_seed
        sizes = {"rank": config.lora_rank, "alpha": config.lora_alpha}
        add_lora(module, **sizes, target_modules=targets, seed=seed, frozen=module.family.frozen)
        for part in set(module.family.trained) - {"transformer"}:
            getattr(module, part).requires_grad_(config.train_projector)
        return module

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        config = self.engine_config
        self.engine_config = dataclasses.replace(
            config,
            # FSDP1 flattens what is trained and what is frozen into one parameter otherwise, and refuses.
            use_orig_params=True,
            # verl offloads a forward-only engine to pinned memory, which a machine without accelerator lacks.
            forward_only=config.forward_only and get_device_name() != "cpu",
        )
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config

    @contextmanager
    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Iterator[None]:
        """verl's; and where weights stay gathered after a forward pass, they do so until the last backward pass, not
        only until the next one."""
        if isinstance(self.module, FSDPModule) and not self.engine_config.reshard_after_forward:
            self.module.set_reshard_after_backward(is_last_micro_batch)
        with super()._gradient_sync_context(is_last_micro_batch=is_last_micro_batch):
            if isinstance(self.module, FSDPModule):
                for block in self._frozen_blocks():
                    block.set_requires_gradient_sync(True, recurse=False)
            yield

    def announce_backward(self, others_wait: bool) -> None:
        """To be called before a backward pass of one of several graphs.

        FSDP2 forgets with the last backward pass in which order blocks were gathered, and then gathers each only when
        it is needed, beside nothing.

        Args:
            others_wait: for a backward pass of their own, this one being of the graph that was made last.
        """
        if isinstance(self.module, FSDPModule):
            self.module.set_is_last_backward(not others_wait)

    def _frozen_blocks(self) -> list[Any]:
        """What has no gradient to wait with. FSDP2 would look for one also in blocks that the velocity passes by, whose
        weights are never gathered, and fail where gradients are summed in another precision."""
        blocks: list[Any] = [block for block in self.module.modules() if isinstance(block, FSDPModule)]
        return [block for block in blocks if not any(weight.requires_grad for weight in block.parameters())]

    def field(self, condition: Condition, negative: Condition | None = None, guidance: float = 1.0) -> Velocity:
        """The velocity with its condition filled in, for sampling within ``eval_mode()``.

        All ranks must ask for fields and velocities equally often: each call gathers the sharded weights.
        """
        calls = self._calls(condition, None if guidance == 1.0 else negative)
        return lambda x_BCHW, sigma_B: self.module(x_BCHW, Uncast(sigma_B), condition, negative, guidance, calls)

    def _calls(self, *conditions: Condition | None) -> int:
        """Calls of the transformer in a velocity: the most that any rank needs, since all gather weights in each."""
        own = self.family.calls(*conditions)
        if self.family.mixes_lengths or torch.distributed.get_world_size() == 1:
            return own
        most = torch.tensor(own, device=get_device_id())
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The module with the weights it had before training.

        Raises:
            ConfigError: they were not kept.
        """
        if REFERENCE in self.shadows:
            with self.shadows[REFERENCE].swapped():
                yield
        elif self._adapters_are_all:
            with adapter_disabled(self.module):
                yield
        else:
            raise ConfigError("uae.u4g.reference_kl.coef", "no reference is kept (keep_reference of the engine)")

    def train_batch(self, data: TensorDict, loss_function: ObjectiveFunction) -> dict[str, Any]:
        """One optimiser update; none if the mini-batch has no valid sample, where even a zero gradient would move
        the weights by momentum and weight decay.

        Raises:
            TrainingError: the first update with a signal has no gradient.
        """
        self.optimizer_zero_grad()
        output = self.forward_backward_batch(data, loss_function)
        left_out = output["metrics"]["valid"][0] == 0
        output["metrics"][LEFT_OUT] = [float(left_out)]
        if left_out:
            return output
        grad_norm = output["metrics"]["grad_norm"] = self.optimizer_step()
        self._has_learned = self._has_learned or grad_norm != 0.0
        if not self._has_learned:
            self._require_gradient(data)
        return output

    def forward_backward_batch(
        self, data: TensorDict, loss_function: ObjectiveFunction, forward_only: bool = False
    ) -> dict[str, Any]:
        """Loss and gradient of this rank's part of a mini-batch: one backward pass per micro-batch and place, or per
        ``replay_steps`` of its places.

        The loss is sum(weight * loss) / (total_weight * K) over the samples of all ranks and their K places, so the
        gradient does not depend on how they are spread over ranks, micro-batches and passes.

        Args:
            data: B samples. Always a condition by :func:`~verl_uae.engines.decoder_batch.stored`, weight_B (1 valid,
                0 not), advantage_B. For objectives on transitions x_BKCHW, x_next_BKCHW, old_log_prob_BK,
                old_mean_BKCHW, place k being step ``plan.window[k]``. For forward objectives x0_BCHW, noise_BTCHW,
                sigma_BT, old_velocity_BTCHW. All fp32 but the condition. For objectives with a figure of the group
                group_B, whole numbers that mean the same on every rank. For transitions optionally origin_B, whole
                numbers: rows of one number are one latent under one condition at place 0, and go through the model
                once there.
                Non-tensor: plan (dict), plan_digest, micro_batch_size_per_gpu, total_weight (sum of the weights of all
                ranks), and optionally reference_kl (fields of
                :class:`~verl_uae.engines.decoder_batch.ReferencePenalty`), norm_guard (weight of the hinge on the
                velocity's length), step_weights (uniform or noise), negative (condition of the unconditional branch,
                one row), replay_steps (places that go through the model together, 1 by default) and on_policy (for
                transitions: these are the weights that sampled, so old values are those of the pass itself, and how far
                the stored ones are from them is a figure).
            loss_function: of :func:`verl_uae.flow.objective.bind_objective`.
            forward_only: no gradient.

        Returns:
            ``model_output`` (empty), ``loss`` (one per micro-batch and place; their sum, averaged over ranks, is the
            loss) and ``metrics`` over the valid samples of all ranks.

        Raises:
            PlanMismatch: the samples were drawn with another plan.
            ValueError: tensors are missing or do not fit, or ranks disagree about the mini-batch.
        """
        batch = read_batch(data)
        self._check_ranks(batch)
        figures = Figures()
        if batch.total_weight > 0:
            references = self._reference_velocities(batch, loss_function)
            batch = self._with_group_means(batch, loss_function, references)
            last = -(-batch.rows // batch.micro_batch_size) * len(batch.passes) - 1
            numbers = itertools.count()
            for micro in batch.micro_batches(get_device_id()):
                for places in batch.passes:
                    number = next(numbers)
                    sync = (
                        nullcontext()
                        if forward_only
                        else self._gradient_sync_context(is_last_micro_batch=number == last)
                    )
                    with torch.set_grad_enabled(not forward_only), sync:
                        reference = references[number] if references else [None] * len(places)
                        velocities = self._velocities(micro, places)
                        parts = [
                            self._loss(micro, k, velocity_BCHW, loss_function, of_reference, figures)
                            for k, velocity_BCHW, of_reference in zip(places, velocities, reference, strict=True)
                        ]
                        if not forward_only:
                            loss = functools.reduce(operator.add, parts)
                            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                    for part in parts:
                        figures.add_loss(part)
        metrics, losses = figures.gather(self.get_data_parallel_group())
        return {"model_output": {}, "loss": losses, "metrics": {**metrics, "valid": [batch.total_weight]}}

    @torch.no_grad()
    def recompute_old(self, data: TensorDict) -> None:
        """Set the old policy's values to those of the current weights, in the very passes of training.

        Fills old_log_prob_BK and old_mean_BKCHW, or old_velocity_BTCHW, of a mini-batch without them; for other
        weights than the current ones call it within ``shadow(name).swapped()``.
        """
        batch = read_batch(data, with_old=False)
        columns: list[list[Tensor]] = [[] for _ in OLD[batch.kind]]
        for micro in batch.micro_batches(get_device_id()):
            places = [
                micro.old(k, velocity_BCHW)
                for some in batch.passes
                for k, velocity_BCHW in zip(some, self._velocities(micro, some), strict=True)
            ]
            for column, values in zip(columns, zip(*places, strict=True), strict=True):
                column.append(torch.stack(values, dim=1).to(data.device or "cpu"))
        for name, column in zip(OLD[batch.kind], columns, strict=True):
            data[name] = torch.cat(column)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """The engine's checkpoint, and this rank's shards of the weight copies in one file beside it."""
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.shadows:
            with together(lambda text: CheckpointError(local_path, text)):
                states = {name: shadow.state_dict() for name, shadow in self.shadows.items()}
                torch.save(states, _shadow_file(local_path))

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Inverse of :meth:`save_checkpoint`, on as many ranks.

        Raises:
            CheckpointError: the file of weight copies is missing or of another run.
        """
        super().load_checkpoint(local_path, *args, **kwargs)
        if not self.shadows:
            return
        path = _shadow_file(local_path)
        if not path.is_file():
            raise CheckpointError(path, f"missing: the weights {sorted(self.shadows)} of this rank")
        states = torch.load(path, map_location="cpu", weights_only=True)
        if set(states) != set(self.shadows):
            raise CheckpointError(path, f"holds the weights {sorted(states)}, wanted are {sorted(self.shadows)}")
        for name, shadow in self.shadows.items():
            try:
                shadow.load_state_dict(states[name])
            except ValueError as error:
                raise CheckpointError(path, f"{name}: {error}") from error

    def _loss(
        self,
        micro: MicroBatch,
        k: int,
        velocity_BCHW: Tensor,
        objective: ObjectiveFunction,
        reference: Tensor | None,
        figures: Figures,
    ) -> Tensor:
        batch, weight_B = micro.batch, micro.fields["weight_B"]
        inputs = micro.inputs(k, velocity_BCHW, reference)
        output = objective(inputs)
        loss_B, found = output.loss_B, {**_figures(inputs), **output.metrics, "loss": output.loss_B}
        if batch.step_weights:
            loss_B = batch.step_weights[k] * loss_B
        if batch.penalty.coef != 0.0:
            assert reference is not None
            penalty_B = micro.penalty(k, velocity_BCHW, reference)
            loss_B = loss_B + batch.penalty.weight(micro.fields["advantage_B"]) * penalty_B
            found["reference_kl"] = penalty_B
        if batch.norm_guard != 0.0:
            assert reference is not None
            excess_B = norm_excess(velocity_BCHW, reference)
            loss_B = loss_B + batch.norm_guard * excess_B
            found["norm_excess"] = excess_B
        if batch.on_policy:
            found[SAMPLER_DIFFERENCE] = micro.sampler_difference(k, inputs)
        found["velocity_rms"] = velocity_BCHW.detach().square().flatten(1).mean(1).sqrt()
        figures.add(found, micro.valid_B, batch.plan.window[k] if batch.kind == "transition" else None)
        # FSDP averages gradients over the ranks; this makes it a sum.
        return (weight_B * loss_B).sum() * (self.get_data_parallel_size() / (batch.total_weight * batch.places))

    def _velocities(self, micro: MicroBatch, places: range, guidance: float | None = None) -> tuple[Tensor, ...]:
        """Of a micro-batch at some places, by one call; with the plan's guidance unless another is given."""
        guidance = micro.batch.plan.guidance if guidance is None else guidance
        twins = micro.twins if places.start == 0 else None
        condition = micro.condition if twins is None else micro.condition[twins.first]
        field = self.field(condition, None if guidance == 1.0 else micro.negative, guidance)
        field = field if twins is None else twins.velocity(field)
        x, sigma = zip(*map(micro.position, places), strict=True)
        return field(torch.cat(x), torch.cat(sigma)).split(len(micro.valid_B))

    @torch.no_grad()
    def _reference_velocities(self, batch: DecoderBatch, objective: ObjectiveFunction) -> list[tuple[Tensor, ...]]:
        """Of every micro-batch and pass, in their order, before the first gradient: weights may have to be swapped."""
        asked = isinstance(objective, BoundObjective) and "reference_velocity_BCHW" in objective.needs
        if batch.penalty.coef == 0.0 and batch.norm_guard == 0.0 and not asked:
            return []
        guidance = batch.penalty.guidance
        with self.reference():
            micro_batches = batch.micro_batches(get_device_id())
            return [self._velocities(micro, places, guidance) for micro in micro_batches for places in batch.passes]

    @torch.no_grad()
    def _with_group_means(
        self, batch: DecoderBatch, objective: ObjectiveFunction, references: Sequence[tuple[Tensor, ...]]
    ) -> DecoderBatch:
        """The batch with the means of the objective's figure over every group, where it has one: group_mean_BK.

        A group is spread over micro-batches and ranks, so the figure is computed for all before the first gradient, by
        the weights and in the passes of the update.
        """
        if not (isinstance(objective, BoundObjective) and objective.grouped):
            return batch
        if "group_B" not in batch.fields:
            raise ValueError(f"a mini-batch of the objective {objective.objective.name!r} lacks group_B")
        rows, numbers = [], itertools.count()
        for micro in batch.micro_batches(get_device_id()):
            places: list[Tensor] = []
            for some in batch.passes:
                number = next(numbers)
                reference = references[number] if references else [None] * len(some)
                for k, velocity_BCHW, of_reference in zip(some, self._velocities(micro, some), reference, strict=True):
                    inputs: Any = micro.inputs(k, velocity_BCHW, of_reference)
                    places.append(objective.group_figure(inputs))
            rows.append(torch.stack(places, dim=1).cpu())
        own_B = batch.fields["group_B"]
        means = group_means(*self._of_all_ranks(torch.cat(rows), batch.fields["weight_B"] > 0, own_B))
        mean_BK = torch.stack([means[number] for number in own_B.tolist()]).float()
        return dataclasses.replace(batch, fields={**batch.fields, "group_mean_BK": mean_BK})

    @staticmethod
    def _of_all_ranks(*columns: Tensor) -> tuple[Tensor, ...]:
        """Rows of all ranks, in their order, on the host."""
        ranks = of_all_ranks(tuple(column.cpu() for column in columns))
        return tuple(torch.cat(parts) for parts in zip(*ranks, strict=True))

    def _require_gradient(self, data: TensorDict) -> None:
        """Refuse a first update whose samples have a signal and move nothing: there no trust region is active yet, so
        what is trained does not reach the velocity."""
        signal = self._signal(data).to(get_device_id())
        torch.distributed.all_reduce(signal, torch.distributed.ReduceOp.MAX, group=self.get_data_parallel_group())
        if signal > 0:
            names = [plain_name(name) for name, weight in self.module.named_parameters() if weight.requires_grad]
            raise TrainingError(
                f"samples have a signal, but the gradient of all {len(names)} trained tensors is zero: "
                f"{', '.join(names[:3])}, ... do not reach the velocity, see uae.train.lora.target_modules"
            )

    def _signal(self, data: TensorDict) -> Tensor:
        """Above 0 if this rank's samples should move the weights: an advantage, or where a loss is of a group, members
        of different ones. A member that is alone in an update is its own mean."""
        if "group_B" not in data.keys():
            return (data["advantage_B"] * data["weight_B"]).nan_to_num().abs().max()
        advantage_N, valid_N, group_N = self._of_all_ranks(
            data["advantage_B"][:, None], data["weight_B"] > 0, data["group_B"]
        )
        means = group_means(advantage_N, valid_N, group_N)
        apart = [(value - means[group]).abs().max() for value, group in zip(advantage_N, group_N.tolist(), strict=True)]
        return (torch.stack(apart) * valid_N).nan_to_num().max().float()

    def _check_ranks(self, batch: DecoderBatch) -> None:
        """Ranks that disagree would wait for each other for ever, or train on something else than meant."""
        group = self.get_data_parallel_group()
        count = -(-batch.rows // batch.micro_batch_size)
        same = (count, batch.places, batch.replay_steps, batch.plan.digest, batch.total_weight)
        mine = (same, float(batch.fields["weight_B"].sum()))
        ranks: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(ranks, mine, group=group)
        if len({rank[0] for rank in ranks}) != 1:
            found = [rank[0] for rank in ranks]
            raise ValueError(
                f"ranks disagree about (micro-batches, places, places at once, plan, total_weight): {found}"
            )
        if abs(sum(rank[1] for rank in ranks) - batch.total_weight) > 1e-3:
            raise ValueError(f"total_weight is {batch.total_weight}, the weights are {[rank[1] for rank in ranks]}")


@torch.no_grad()
def _figures(inputs: TransitionInputs | ForwardInputs) -> dict[str, Tensor]:
    """What every objective on transitions reports, whatever it uses."""
    if not isinstance(inputs, TransitionInputs):
        return {}
    difference_B = inputs.log_prob_B - inputs.old_log_prob_B
    found = {"ratio": difference_B.exp(), "log_prob_difference": difference_B.abs()}
    if inputs.old_mean_BCHW is not None:
        found["k"] = transition_kl(inputs.mean_BCHW, inputs.old_mean_BCHW, inputs.std)
    return found


def _shadow_file(folder: str) -> Path:
    return shadow_file(Path(folder), torch.distributed.get_world_size(), torch.distributed.get_rank())

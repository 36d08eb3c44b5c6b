# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a GPU holds of the models of a run, by owner, while they compute and while they wait."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig

from verl_uae.estimate.models import dtype_of
from verl_uae.estimate.work import Shards, Work, nbytes, without_adapters
from verl_uae.stages.common.config import is_joint
from verl_uae.stages.u4g.config import caption_writer, chosen_objective, needs_reference, trained_captions

#: Bytes of Adam's two moments, and of an fp32 gradient, of a number that trains.
ADAM, GRADIENT = 8, 4
#: GiB of a process on a GPU beside its tensors: CUDA context, libraries' workspaces, NCCL's buffers.
ASSUMED_PROCESS_GIB = 1.0
#: GiB that a caption server leaves on the GPU while it sleeps: context and CUDA graphs.
ASSUMED_ASLEEP_GIB = 2.0

GIB = 1024**3


class Layout:
    """Which ranks there are, and what the configuration says of a step."""

    def __init__(self, config: DictConfig) -> None:
        self.per_node, self.nodes = int(config.trainer.n_gpus_per_node), int(config.trainer.nnodes)
        self.ranks = self.per_node * self.nodes

    def shards(self, engine: Any) -> int:
        """Ranks that share one copy of a model."""
        size = int(engine.get("fsdp_size", -1))
        return self.ranks if size < 1 else min(size, self.ranks)

    def across(self, received: float, shards: int) -> float:
        """Of bytes that each rank of a group receives, those over the network, per GPU: a node needs what lies on the
        others once, and all of its GPUs fetch a part of it."""
        nodes = math.ceil(shards / self.per_node)
        return 0.0 if nodes == 1 else received / self.per_node

    def hops(self, shards: int) -> tuple[int, int]:
        """Steps of a ring around the ranks of a group, inside of nodes and between them."""
        between = math.ceil(shards / self.per_node) - 1
        return max(0, shards - 1 - between), between


class Held:
    """Bytes of a stage's models on one GPU.

    Args:
        work: pieces of its steps.
        config: the whole composed configuration; None is that of ``work``.
    """

    def __init__(self, work: Work, config: DictConfig | None = None) -> None:
        self.work = work
        self.models = work.models
        self.config = config or work.config
        self.layout = Layout(self.config)
        self.uae = self.config.uae

    @property
    def redraws(self) -> bool:
        """Whether decoder workers draw for the captioner's reward."""
        return self.uae.stage in ("g4u", "unified") and not is_joint(self.config)

    def frozen(self) -> dict[str, float]:
        """Bytes of the frozen models that draw and score, each rank its own copy, besides the velocity model."""
        networks, _ = self.models.networks
        return {
            "language model": nbytes(self.models.conditioner),
            "VAE": nbytes(self.models.vae),
            "rewards": nbytes(*(network.module for network in networks)),
        }

    def captioner_of_ranks(self) -> float:
        """Bytes that a captioner adds which ranks that train the decoder write captions with."""
        if caption_writer(self.config) != "ranks":
            return 0.0
        whole, conditioner = nbytes(self.models.frozen_captioner), self.uae.conditioner
        same = conditioner.path == self.config.actor_rollout_ref.model.path
        shared = same and conditioner.dtype == self.uae.u4g.captions.dtype
        return whole - (nbytes(self.models.conditioner) if shared else 0.0)

    def policy_shards(self) -> Shards:
        """The decoder that trains."""
        module = self.models.policy
        return Shards.of(module, module._no_split_modules, self.layout.shards(self.uae.train.fsdp_config))

    def actor_shards(self) -> Shards:
        """The captioner that trains."""
        model: Any
        if self.uae.stage == "cold_start":
            engine, model = self.uae.cold_start.captioner.fsdp_config, self.models.supervised_captioner
        else:
            engine, model = self.config.actor_rollout_ref.actor.fsdp_config, self.models.actor
        return Shards.of(model, list(without_adapters(model)._no_split_modules), self.layout.shards(engine))

    def shadows(self, shards: Shards) -> float:
        """Bytes of weight copies of the policy."""
        train = self.uae.train
        copies = float(train.ema.decay > 0)
        if self.uae.stage in ("u4g", "unified"):
            copies += self.forward_process()
            adapters_are_all = train.lora.rank > 0 and not train.train_projector
            copies += needs_reference(self.config) and not adapters_are_all
        return 4 * copies * shards.own_trained

    def forward_process(self) -> bool:
        """Whether the objective is one of the forward process, which has an old policy."""
        return chosen_objective(self.config).objective.kind == "forward"

    def group_figures(self) -> bool:
        """Whether the objective compares the pictures of a group, which takes a pass of the current weights."""
        return chosen_objective(self.config).grouped

    def policy(self, shards: Shards, *, backward: bool, state: bool) -> dict[str, float]:
        """Bytes of the decoder that trains while it computes.

        Args:
            shards: of it.
            backward: with gradients.
            state: with the optimiser's, wherever that waits.
        """
        engine = self.uae.train.fsdp_config
        width = width_of(engine.mixed_precision.param_dtype)
        held = {
            "weights": held_weights(shards, self.policy_width()),
            "gathered": shards.gathered(width, reshard=engine.reshard_after_forward, backward=backward),
            "optimiser": ADAM * shards.own_trained if state or not engine.optimizer_offload else 0.0,
            "averages": self.shadows(shards),
        }
        return held | ({"gradients": GRADIENT * shards.own_trained} if backward else {})

    def policy_waiting(self, shards: Shards) -> dict[str, float]:
        """Bytes of the decoder that trains while something else computes."""
        engine = self.uae.train.fsdp_config
        return {
            "weights": 0.0 if engine.param_offload else held_weights(shards, self.policy_width()),
            "optimiser": 0.0 if engine.optimizer_offload else ADAM * shards.own_trained,
            "averages": self.shadows(shards),
        }

    def moves(self, engine: Any, shards: Shards, width: float, *, state: bool) -> float:
        """Bytes to and from the host around a phase of an engine that is offloaded."""
        up = width * shards.own if engine.param_offload else 0.0
        up += ADAM * shards.own_trained if state and engine.optimizer_offload else 0.0
        return 2 * up

    def travels(
        self, shards: Shards, width: int, gathers: float, reduces: float = 0.0, engine: Any = None
    ) -> dict[str, Any]:
        """What a phase says of weights and gradients between ranks.

        Args:
            shards: of the model.
            width: bytes of a weight on its way.
            gathers: of all weights, part by part.
            reduces: of all gradients.
            engine: section of what trains, whose copies sum their gradients; None where nothing is summed.
        """
        inside, between = self.layout.hops(shards.ranks)
        received = gathers * shards.received(width) + reduces * shards.reduced()
        count = (gathers + reduces) * shards.units if shards.ranks > 1 else 0.0
        copies = 0.0 if engine is None else self._replicas(engine, shards)
        return {
            "gathered": received + copies,
            "across": self.layout.across(received, shards.ranks) + copies,
            "copied": reduces * shards.packed(),
            "collectives": count,
            "hops": count * inside,
            "hops_across": count * between,
        }

    def _replicas(self, engine: Any, shards: Shards) -> float:
        """Bytes over the network of a gradient that is summed over copies of the shards."""
        copies = self.layout.ranks / self.layout.shards(engine)
        return 2 * (copies - 1) / copies * GRADIENT * shards.own_trained

    @staticmethod
    def processes(count: float) -> dict[str, float]:
        """Bytes of so many processes beside their tensors."""
        return {"processes": ASSUMED_PROCESS_GIB * GIB * count}

    def actor_width(self) -> int:
        """Bytes of a weight of the captioner that does not train."""
        return width_of(self.config.actor_rollout_ref.actor.fsdp_config.get("model_dtype") or "fp32")

    def reference_width(self) -> int:
        """Bytes of a weight of the captioner's reference."""
        return width_of(self.config.actor_rollout_ref.ref.fsdp_config.get("model_dtype") or "fp32")

    def trained_pictures(self) -> float:
        """Of U4G on a rank in a step."""
        return trained_captions(self.config) * int(self.uae.u4g.samples_per_caption) / self.layout.ranks

    def window(self) -> int:
        """Steps of a trajectory that are trained."""
        window, steps = self.uae.u4g.window, int(self.uae.u4g.num_steps)
        return steps - 1 if window.mode == "all" else min(int(window.size), steps)

    def policy_width(self) -> int:
        """Bytes of a weight of the decoder that does not train."""
        return width_of(self.uae.train.fsdp_config.get("model_dtype") or "fp32")

    def actor_waiting(self, shards: Shards) -> tuple[float, float]:
        """Bytes of the captioner that trains in RL and of its optimiser, while something else computes."""
        engine = self.config.actor_rollout_ref.actor.fsdp_config
        weights = 0.0 if engine.param_offload else held_weights(shards, self.actor_width())
        return weights, 0.0 if engine.optimizer_offload else ADAM * shards.own_trained

    def beside_policy(self) -> dict[str, float]:
        """Bytes of the captioner that trains beside, in the unified stage."""
        if self.uae.stage != "unified":
            return {}
        shards = self.actor_shards()
        weights, state = self.actor_waiting(shards)
        stays = self.redraws and not self.uae.decoder.offload
        decoder = nbytes(self.models.frozen_decoder) if stays else 0.0
        found = {"captioner that trains": weights, "captioner's optimiser": state, "decoder of G4U": decoder}
        asleep = ASSUMED_ASLEEP_GIB * GIB if self.served_by_vllm() else 0.0
        return {**found, "caption server": asleep + 2 * ASSUMED_PROCESS_GIB * GIB}

    def served_by_vllm(self) -> bool:
        """Whether captions come from vLLM."""
        return bool(self.config.actor_rollout_ref.rollout.name == "vllm")


def width_of(name: Any) -> int:
    """Bytes of a number of that dtype."""
    return torch.empty((), dtype=dtype_of(name)).element_size()


def held_weights(shards: Shards, width: int) -> float:
    """Bytes of a model at rest: what trains is fp32 whatever the rest is, so wide."""
    return width * (shards.own - shards.own_trained) + 4 * shards.own_trained + shards.buffers

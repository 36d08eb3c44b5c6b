# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a node holds in its own memory during a run, by owner, and how much usual nodes have."""

from __future__ import annotations

import math
from collections.abc import Mapping

from verl_uae.estimate.held import ADAM, GIB, Held, held_weights
from verl_uae.estimate.models import trained_parameters
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.work import Shards, nbytes
from verl_uae.stages.g4u.decoder_worker import MICRO_BATCHES
from verl_uae.stages.u4g.config import by_servers, drawn_pictures

#: GiB of host memory per GPU of a usual node: of the largest instances of AWS with such GPUs (p4d, p4de, p5, p5en, p6,
#: g6, g6e: 1,152 to 2,048 GiB for eight; L4 768 GiB), and of a workstation.
HOST_GIB: Mapping[str, float] = {
    "A100-40GB": 144,
    "A100-80GB": 144,
    "H100-80GB": 256,
    "H200-141GB": 256,
    "B200-180GB": 256,
    "L4-24GB": 96,
    "L40S-48GB": 192,
    "RTX3090-24GB": 64,
    "RTX4090-24GB": 64,
    "RTX5090-32GB": 64,
}

#: Share of a node's memory that a run may take: the watch of the hosts stops a run above uae.supervision's own share.
ASSUMED_USABLE_HOST = 0.9
#: GiB of a Python process with torch, verl and Ray imported, beside its tensors: 0.33 to 0.46 in a run of the scenes on
#: a CPU; and what it has more once it uses a GPU, of which CUDA's libraries and driver keep state on the host.
ASSUMED_LIBRARIES_GIB, ASSUMED_CUDA_GIB = 0.5, 1.5
#: GiB of a caption server of vLLM beside weights, and of a forked loader of data.
ASSUMED_VLLM_GIB, ASSUMED_LOADER_GIB = 4.0, 0.5
#: GiB of Ray's daemons, of actors of Ray and of the TransferQueue (1.5 in the same run), and of what lies in both
#: their stores.
ASSUMED_RAY_GIB, ASSUMED_STORE_GIB = 1.5, 2.0


def host_memory(held: Held, phases: list[Phase]) -> dict[str, float]:
    """Bytes on a node of the trainer by owner, at the moment when most is there: everything waits on the host that ever
    does, and a checkpoint is being saved. What the loading of a model takes for a moment is not counted.

    Args:
        held: models of the stage.
        phases: of a step, for a run without GPU, whose device is the host.
    """
    found = _processes(held)
    on_cpu = held.config.trainer.device == "cpu"
    if on_cpu:
        owners = (phase.memory for phase in phases)
        peak = max(sum(memory.values()) - memory.get("processes", 0.0) for memory in owners)
        found["models and activations"] = held.layout.per_node * peak
    else:
        found["frozen models"] = _waiting(held)
        found["weights and optimiser"] = _offloaded(held)
        found["reference"] = _reference(held)
        found["sleeping caption servers"] = _asleep(held)
    found["conditions, features, trajectories"] = held.layout.per_node * _kept(held)
    return {owner: size for owner, size in found.items() if size}


def _ranks(held: Held) -> int:
    """Worker processes for every GPU of the trainer."""
    return 1 + (held.redraws and held.uae.decoder.pool == "colocated") + (held.uae.stage == "unified")


def _processes(held: Held) -> dict[str, float]:
    config, per_node = held.config, held.layout.per_node
    rollout = config.actor_rollout_ref.rollout
    captions = held.uae.stage in ("g4u", "unified")
    served = captions or (held.uae.stage == "u4g" and by_servers(config))
    ranks = per_node * _ranks(held)
    servers = math.ceil(per_node / int(rollout.tensor_model_parallel_size)) if served else 0
    # Driver and task runner; agent loops.
    others = 2 + (int(rollout.agent.num_workers) if served else 0)
    cuda = 0.0 if config.trainer.device == "cpu" else ASSUMED_CUDA_GIB
    vllm = held.served_by_vllm()
    found = {
        "processes of ranks": ranks * (ASSUMED_LIBRARIES_GIB + cuda),
        "caption servers": servers * (ASSUMED_VLLM_GIB + cuda if vllm else ASSUMED_LIBRARIES_GIB),
        "driver, task runner, agent loops": others * ASSUMED_LIBRARIES_GIB,
        "Ray": ASSUMED_RAY_GIB + ASSUMED_STORE_GIB,
        "loaders": int(config.data.dataloader_num_workers or 0) * ASSUMED_LOADER_GIB,
    }
    return {owner: size * GIB for owner, size in found.items()}


def _waiting(held: Held) -> float:
    """Frozen models that are copied to the GPU before they are used: once on a node, or in every process."""
    uae, per_node = held.uae, held.layout.per_node
    frozen = held.frozen()
    decoder = nbytes(held.models.frozen_decoder) if held.redraws else 0.0
    decoders = held.redraws and uae.decoder.pool == "colocated"
    learners = uae.stage != "g4u"
    captioner = held.captioner_of_ranks() if uae.stage == "u4g" else 0.0
    processes = per_node * (decoders + learners)
    if not (uae.decoder.offload and processes):
        return 0.0
    own = 0.0
    once = sum(frozen.values()) + captioner
    trains = uae.stage == "cold_start" and uae.cold_start.captioner.train
    if uae.conditioner.weights == "synced" or trains:
        # Every process takes the captioner's by itself.
        once -= frozen["language model"]
        own += frozen["language model"] * processes
    if decoders and uae.stage == "unified":
        own += decoder * per_node
    elif decoders:
        once += decoder
    return own + once * (1 if uae.decoder.shared_master else processes)


def _trained(held: Held) -> list[tuple[Shards, int, bool, bool]]:
    """Of what trains with an optimiser: shards, bytes of a weight that does not, and whether weights and state wait on
    the host."""
    found = []
    uae = held.uae
    if uae.stage in ("g4u", "unified"):
        engine = held.config.actor_rollout_ref.actor.fsdp_config
        found.append((held.actor_shards(), held.actor_width(), engine.param_offload, engine.optimizer_offload))
    if uae.stage != "g4u":
        engine = uae.train.fsdp_config
        found.append((held.policy_shards(), held.policy_width(), engine.param_offload, engine.optimizer_offload))
    if uae.stage == "cold_start" and trained_parameters(held.models.supervised_captioner):
        engine = uae.cold_start.captioner.fsdp_config
        found.append((held.actor_shards(), 4, bool(engine.param_offload), bool(engine.optimizer_offload)))
    return found


def _offloaded(held: Held) -> float:
    """Of what waits, and of the one that is being saved: all of it is copied to the host then."""
    waits, more = 0.0, 0.0
    for shards, width, weights_wait, state_waits in _trained(held):
        weights, state = held_weights(shards, width), float(ADAM * shards.own_trained)
        own = weights * bool(weights_wait) + state * bool(state_waits)
        waits += own
        more = max(more, weights + state - own)
    return held.layout.per_node * (waits + (more if held.config.trainer.save_freq > 0 else 0.0))


def _reference(held: Held) -> float:
    """verl keeps a reference with weights of its own in pinned memory."""
    if held.uae.stage not in ("g4u", "unified"):
        return 0.0
    hybrid = held.config.actor_rollout_ref
    if not (hybrid.actor.use_kl_loss or held.config.algorithm.get("use_kl_in_reward")):
        return 0.0
    shards = held.actor_shards()
    if shards.trained < 0.5 * shards.all:
        return 0.0
    return held.layout.per_node * held.reference_width() * shards.own


def _asleep(held: Held) -> float:
    """vLLM keeps the weights of a server that sleeps on the host where these are not sent to it anew."""
    hybrid = held.config.actor_rollout_ref
    captions = held.uae.stage in ("g4u", "unified")
    adapters = captions and hybrid.model.lora_rank > 0 and not hybrid.model.lora.get("merge")
    stays = adapters or (held.uae.stage == "u4g" and by_servers(held.config))
    if not (stays and held.served_by_vllm()):
        return 0.0
    size = int(hybrid.rollout.tensor_model_parallel_size)
    return held.layout.per_node * nbytes(held.models.frozen_captioner) / size


def _kept(held: Held) -> float:
    """Of one GPU's ranks: conditions, features of source pictures, latents on their way to the update."""
    uae, work = held.uae, held.work
    decoders, learners = held.redraws, uae.stage != "g4u"
    conditions = decoders * MICRO_BATCHES * int(uae.decoder.batch_size)
    conditions += learners * int(uae.conditioner.cache_size)
    features = (decoders + learners) * int(uae.reward.source_cache_mib) * 2**20
    latents = 0.0
    if uae.stage in ("u4g", "unified"):
        candidates, drawn = drawn_pictures(held.config)
        # Of candidates that are drawn as they train all are kept until they are chosen, and those are copied.
        samples = held.trained_pictures() + (0 if drawn else candidates / held.layout.ranks)
        # Of every trained step the latent before and behind it and the mean between, and the last one.
        latents = samples * (1 if held.forward_process() else 3 * held.window() + 1)
    return conditions * work.condition_bytes() + features + latents * work.latent_bytes()

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a run takes from the machine, counted as Ray will count it, and refused where the machine has less.

Ray waits for ever for a place that no node has; so this is settled before it starts. A cluster that is already running
is left to itself: it may have nodes that this machine knows nothing of, or get them later.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.settings import CAPTIONING

_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
_RAY = "ray_kwargs.ray_init"

#: CPUs of a bundle, which verl reserves with every GPU (ResourcePoolManager.max_colocate_count).
CPUS_PER_GPU = 3

#: verl's ``hf`` server of this package asks for CPUs of its own; see verl_uae/caption_server/types.py.
_HF_CPUS = "actor_rollout_ref.rollout.engine_kwargs.hf.num_cpus"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a local Ray would find."""

    cpus: int
    """As Ray counts them: containers and cgroups are respected."""
    accelerators: int
    """That torch sees in this process."""
    why_none: str = ""
    """Why torch sees no accelerator, where that is known."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run takes, by what takes it."""

    gpus: dict[str, int]
    cpus: dict[str, float]


def demand(config: DictConfig) -> Demand:
    """GPUs and CPUs that the placement groups and actors of a run reserve, verl's and ours."""
    trainer, decoder = config.trainer, config.uae.decoder
    gpus = {"trainer.n_gpus_per_node x trainer.nnodes": trainer.n_gpus_per_node * trainer.nnodes}
    captioning = config.uae.stage in CAPTIONING
    if captioning and decoder.pool == "own":
        gpus["uae.decoder.n_gpus_per_node x uae.decoder.nnodes"] = decoder.n_gpus_per_node * decoder.nnodes
    total = sum(gpus.values())
    cpus: dict[str, float] = {f"{CPUS_PER_GPU} with each of {total} GPUs": CPUS_PER_GPU * total}
    cpus["1 for the controller of the TransferQueue"] = 1
    if OmegaConf.select(config, "transfer_queue.backend.storage_backend") == "SimpleStorage":
        units = OmegaConf.select(config, _UNITS)
        cpus[f"1 for each of its {units} storage units"] = units
    rollout = config.actor_rollout_ref.rollout
    own = OmegaConf.select(config, _HF_CPUS)
    if captioning and rollout.name == "hf" and own:
        servers = gpus["trainer.n_gpus_per_node x trainer.nnodes"] // rollout.tensor_model_parallel_size
        cpus[f"{own:g} for each of {servers} caption servers"] = own * servers
    # An actor that reserves nothing still needs a free CPU to be placed, for that moment.
    cpus["1 to place the task runner and the agent loops"] = 1
    return Demand(gpus, cpus)


def check_machine(config: DictConfig, machine: Machine) -> None:
    """Refuse a run that could never be placed on this machine alone.

    Raises:
        ConfigError: naming the key and what would work.
    """
    _check_device(config, machine)
    wanted = demand(config)
    _check_gpus(config, machine, wanted)
    _check_cpus(config, machine, wanted)


def _check_device(config: DictConfig, machine: Machine) -> None:
    if config.trainer.device == "cpu" or machine.accelerators:
        return
    why = f" ({machine.why_none})" if machine.why_none else ""
    raise ConfigError(
        "trainer.device",
        f"is {config.trainer.device}, and torch sees no accelerator on this machine{why}; add hardware=cpu to run on "
        "CPUs, or set RAY_ADDRESS to the cluster that has them",
    )


def _check_gpus(config: DictConfig, machine: Machine, wanted: Demand) -> None:
    said = OmegaConf.select(config, f"{_RAY}.num_gpus")
    there = machine.accelerators if said is None else int(said)
    total = sum(wanted.gpus.values())
    if total <= there:
        return
    parts = " + ".join(f"{count} ({name})" for name, count in wanted.gpus.items())
    last = list(wanted.gpus)[-1].partition(" ")[0]
    remedy = f"lower {last}"
    if config.trainer.nnodes > 1:
        remedy += ", or join the nodes with `ray start` and set RAY_ADDRESS"
    elif said is not None:
        remedy += f" or raise {_RAY}.num_gpus"
    raise ConfigError(last, f"the run takes {total} GPUs, {parts}; Ray will find {there} here: {remedy}")


def _check_cpus(config: DictConfig, machine: Machine, wanted: Demand) -> None:
    said = OmegaConf.select(config, f"{_RAY}.num_cpus")
    there = machine.cpus if said is None else int(said)
    total = sum(wanted.cpus.values())
    if total <= there:
        return
    units = OmegaConf.select(config, _UNITS)
    spare = int(there - (total - units))
    parts = ", ".join(wanted.cpus)
    key, remedy = f"{_RAY}.num_cpus", f"set it to {total:g}: Ray counts CPUs, it does not bind processes to them"
    if spare >= 1:
        key, remedy = _UNITS, f"set it to {spare} or less, or set {_RAY}.num_cpus={total:g}"
    raise ConfigError(key, f"the run takes {total:g} CPUs ({parts}); Ray will find {there} here: {remedy}")

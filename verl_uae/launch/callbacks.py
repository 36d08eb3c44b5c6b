# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Hydra callbacks around a training command: whether Ray can place the run, what waits, and the last words.

Ray waits for ever for a place that no node has, so what a run takes from the machine is counted as Ray will count it. A
cluster that is already running is left to itself: it may have nodes that this machine knows nothing of, or get them
later. The watch runs in the process of the command, which otherwise only waits for the task runner; so it also sees
waits inside of verl, and the one for the task runner itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_uae.checkpoints.names import SUMMARY
from verl_uae.checkpoints.summary import RunSummary, duration, last_lines
from verl_uae.compat import ray_actors, ray_cluster_address, ray_cpu_count
from verl_uae.errors import ConfigError, UAEError
from verl_uae.paths import RAY_FOLDER_KEY, data_cache, ray_folder
from verl_uae.registry import known
from verl_uae.settings import CAPTIONING
from verl_uae.stages.common.banner import banner, lines
from verl_uae.waiting import EVERY_S

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


#: States of an actor that Ray has no place for yet, and of a placement group.
_PENDING_ACTOR, _PENDING_GROUP = "PENDING_CREATION", ("PENDING", "RESCHEDULING", "PREPARED")

#: Longest wait for the watch to end, seconds: a look takes milliseconds, unless Ray hangs.
STOP_S = 10.0


class PlacementCallback(Callback):
    """Hydra callback of our configs, after the one that validates: checks the machine, then watches Ray."""

    _stop: Callable[[], None] | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check, or leave with exit code 2."""
        try:
            check_logger(config)
            check_place(config)
        except UAEError as error:
            # Hydra turns an exception of a callback into a warning and goes on.
            sys.stderr.write(f"verl_uae: impossible here: {error}\n")
            raise SystemExit(2) from error
        self._stop = watch(lambda line: sys.stderr.write(f"verl_uae: {line}\n"))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """End the watch while Ray is still there."""
        if self._stop is not None:
            self._stop()


def check_logger(config: DictConfig) -> None:
    """verl meets a name that it does not know in the task runner, after Ray has started.

    Raises:
        ConfigError: it has no such logger.
    """
    from verl.utils.tracking import Tracking

    names = config.trainer.logger
    if names is None:
        raise ConfigError("trainer.logger", "is null; give names, as [console,file], or [] for none")
    for name in [names] if isinstance(names, str) else names:
        if name not in Tracking.supported_backend:
            text = f"verl has no logger {name!r}.{known(str(name), Tracking.supported_backend)}"
            raise ConfigError("trainer.logger", text)


def check_place(config: DictConfig, accelerators: int | None = None) -> None:
    """Check that this machine, or the running cluster that would be joined, has a place for the run.

    Args:
        config: the whole composed configuration, valid.
        accelerators: of :func:`this_machine`.

    Raises:
        ConfigError: naming the key and what would work.
    """
    address = cluster_address(config)
    if address is None:
        check_machine(config, this_machine(accelerators))
        ray_folder(OmegaConf.select(config, RAY_FOLDER_KEY))
        data_cache()
    else:
        join(config, address)


def cluster_address(config: DictConfig) -> str | None:
    """Address of the running cluster that ``ray.init`` would join; None where it would start one of its own.

    Raises:
        ConfigError: there is no such cluster.
    """
    key = "ray_kwargs.ray_init.address"
    address = OmegaConf.select(config, key)
    try:
        return ray_cluster_address(address, OmegaConf.select(config, RAY_FOLDER_KEY))
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(key, f"{address}: {' '.join(str(error).split())}") from error


#: What of ``ray.init`` describes a Ray that it starts, and is refused where it joins another.
_OF_A_NEW_RAY = ("num_cpus", "num_gpus", "object_store_memory", "resources", "labels", "_node_name")


def join(config: DictConfig, address: str) -> None:
    """Leave out, of ``ray_kwargs.ray_init``, what the running cluster has settled.

    Raises:
        ConfigError: nobody asked for that cluster; it is only there.
    """
    given = [name for name in _OF_A_NEW_RAY if OmegaConf.select(config, f"{_RAY}.{name}") is not None]
    if not given:
        return
    if not (OmegaConf.select(config, f"{_RAY}.address") or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            f"{_RAY}.{given[0]}",
            f"describes a Ray of this command, and one runs here at {address}: set RAY_ADDRESS={address} to use that "
            f"one, or ++{_RAY}.address=local to start another beside it",
        )
    for name in given:
        OmegaConf.update(config, f"{_RAY}.{name}", None)


def this_machine(accelerators: int | None = None) -> Machine:
    """What a local Ray would find here.

    Args:
        accelerators: how many there are; None: as verl's platform says, which a process chooses once for all.
    """
    import torch

    count = accelerators
    if count is None:
        from verl.plugin.platform import get_platform

        count = get_platform().device_count()
    built = torch.version.cuda or torch.version.hip
    why = "" if count or built else f"torch {torch.__version__} is built for CPUs"
    return Machine(cpus=ray_cpu_count(), accelerators=count, why_none=why)


def watch(say: Callable[[str], object], every_s: float = EVERY_S) -> Callable[[], None]:
    """Say once in ``every_s`` seconds what Ray has not started since the time before.

    Returns:
        What ends the watch and waits for the look that is being taken.
    """
    over = threading.Event()

    def look() -> None:
        before: set[str] = set()
        while not over.wait(every_s):
            try:
                now = waiting_places() if ray.is_initialized() else {}
                if still := {place: now[place] for place in now if place in before}:
                    say(describe(still))
            except (ray.exceptions.RayError, ConnectionError, RuntimeError, AttributeError):
                # Ray is coming up or going down: there is nothing to tell.
                now = {}
            before = set(now)

    thread = threading.Thread(target=look, name="verl_uae placement", daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join(STOP_S)

    return stop


def waiting_places() -> dict[str, str]:
    """Actors and placement groups that have no place yet, or do not run yet: id -> what it is."""
    places: dict[str, str] = {}
    for group in ray.util.placement_group_table().values():
        if group["state"] in _PENDING_GROUP:
            bundles = Counter(_resources(bundle) for bundle in group["bundles"].values())
            asked = " + ".join(f"{count} x ({text})" for text, count in bundles.items())
            places[group["placement_group_id"]] = f"placement group {group['name'] or 'without a name'}: {asked}"
    for identity, actor in ray_actors().items():
        if actor["State"] == _PENDING_ACTOR:
            places[identity] = f"actor {actor['ActorClassName']}"
    return places


def describe(places: Mapping[str, str]) -> str:
    """One line: what waits, and what the cluster has."""
    counted = Counter(places.values())
    names = "; ".join(f"{count} x {name}" if count > 1 else name for name, count in counted.items())
    total, free = _resources(ray.cluster_resources()), _resources(ray.available_resources())
    return f"waiting for Ray to start {names}; its cluster has {total or 'nothing'}, free: {free or 'nothing'}"


def _resources(amounts: Mapping[str, float]) -> str:
    named = ((name, amounts.get(name, 0)) for name in ("GPU", "NPU", "CPU"))
    return ", ".join(f"{amount:g} {name}" for name, amount in named if amount)


class EndingCallback(Callback):
    """Hydra callback of our configs, in the user's own process; the trainer's lines come through Ray among others."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what the run will do, and forget what an earlier run in the same folder reached."""
        self._started = time.monotonic()
        sys.stderr.write("\n".join(["verl_uae:", *lines(banner(config))]) + "\n")
        (Path(config.trainer.default_local_dir) / SUMMARY).unlink(missing_ok=True)
        if config.trainer.save_freq <= 0:
            sys.stderr.write(
                f"verl_uae: warning: nothing will be saved (trainer.save_freq={config.trainer.save_freq}); "
                "trainer.save_freq=N saves every N steps and at the end\n"
            )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Print what the run reached, after everything that Ray still has to say."""
        seconds = time.monotonic() - self._started
        # Nothing imports Ray here; where the job did, its processes end now, and their last lines come first.
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
        done = job_return.status == JobStatus.COMPLETED
        sys.stderr.flush()
        sys.stdout.write("\n".join(ending(config, seconds, done=done)) + "\n")
        sys.stdout.flush()


def ending(config: DictConfig, seconds: float, *, done: bool) -> list[str]:
    """The last lines of a command.

    Args:
        config: composed configuration.
        seconds: that it took.
        done: whether the job came to its end.
    """
    folder, stage = str(config.trainer.default_local_dir), config.uae.stage
    try:
        summary = RunSummary.read(Path(folder))
    except UAEError as error:
        return [f"verl_uae: stage {stage}: {error}"]
    if summary is None:
        what = "done" if done else "FAILED before its first step"
        lines = [f"verl_uae: stage {stage} {what}, after {duration(seconds)}"]
        if done:
            lines.append(f"  {SUMMARY} is not in {folder} of this machine: the trainer ran on another")
        return lines
    return last_lines(summary, folder, seconds, done=done, save_freq=int(config.trainer.save_freq))

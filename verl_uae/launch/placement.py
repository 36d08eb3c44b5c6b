# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Before Ray starts: whether it can place the run, and can write its folders. Afterwards, once a minute: what waits.

The watch runs in the process of the command, which otherwise only waits for the task runner; so it also sees waits
inside of verl, and the one for the task runner itself.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_uae.compat import ray_actors, ray_cluster_address, ray_cpu_count
from verl_uae.errors import ConfigError, UAEError
from verl_uae.launch.machine import Machine, check_machine
from verl_uae.paths import RAY_FOLDER_KEY, data_cache, ray_folder
from verl_uae.waiting import EVERY_S

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
            if cluster_address(config) is None:
                check_machine(config, this_machine())
                ray_folder(OmegaConf.select(config, RAY_FOLDER_KEY))
                data_cache()
        except UAEError as error:
            # Hydra turns an exception of a callback into a warning and goes on.
            sys.stderr.write(f"verl_uae: impossible here: {error}\n")
            raise SystemExit(2) from error
        self._stop = watch(lambda line: sys.stderr.write(f"verl_uae: {line}\n"))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """End the watch while Ray is still there."""
        if self._stop is not None:
            self._stop()


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


def this_machine() -> Machine:
    """What a local Ray would find here."""
    import torch
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

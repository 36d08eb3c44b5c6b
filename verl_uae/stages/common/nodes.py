# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes of a run: which ranks each has, and whether all of them see the folders that ranks share.

Ray says where it has placed a pool before a process of it starts, so a folder that one node does not see is named
minutes before a rank would miss it, and by the key that holds it.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.single_controller.ray import RayResourcePool
from verl.utils.device import get_device_name

from verl_uae.config.path_keys import places_of_ranks
from verl_uae.errors import ConfigError

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Seconds a node gets to start a small process.
START_TIMEOUT_S = 60.0

#: Key of the folder that all ranks that train write to.
_OUTPUT = "trainer.default_local_dir"


def run_on(node: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns that runs on a node.

    Args:
        node: Ray's id of it.
        function: importable there.
        args: of the function.

    Raises:
        ray.exceptions.RayError: it raised, or the node is gone or has not answered in time.
    """
    if node == this_node():
        return function(*args)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    placed = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False))
    return ray.get(placed.remote(*args), timeout=START_TIMEOUT_S)


def this_node() -> str:
    """Ray's id of the node of this process."""
    return str(ray.get_runtime_context().get_node_id())


def node_name(node: str) -> str:
    """A node for people: its address, and the beginning of Ray's id, which tells two nodes of one machine apart."""
    addresses = {entry["NodeID"]: entry["NodeManagerAddress"] for entry in ray.nodes()}
    return f"node {addresses.get(node, 'unknown')} ({node[:8]})"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of one pool."""

    name: str
    """In the plural, such as ``captioner ranks``."""
    pool: RayResourcePool
    writes: bool
    """Whether they write checkpoints."""


def nodes_of(pool: RayResourcePool) -> list[str]:
    """Node of every rank of a pool of verl's; blocks until Ray has placed it."""
    pool.get_placement_groups(device_name=get_device_name())
    nodes: list[str] = []
    # As they are now: sorted, which the answer of the first call is not.
    for group in pool.pgs or []:
        bundles = ray.util.placement_group_table(group)["bundles_to_node_id"]
        nodes += [bundles[number] for number in sorted(bundles)]
    return nodes


def check_nodes(config: DictConfig, pools: Sequence[Ranks]) -> dict[str, list[str]]:
    """Place the pools of a run, say where they are, and check that their nodes see what they need.

    Args:
        config: the whole composed configuration, with the paths of this process.
        pools: placed one after the other.

    Returns:
        Nodes of the ranks of each pool, by its name.

    Raises:
        ConfigError: naming the key, the path and the node that does not see it.
    """
    placed = {ranks.name: nodes_of(ranks.pool) for ranks in pools}
    by_node: dict[str, list[str]] = defaultdict(list, {this_node(): ["trainer"]})
    for name, nodes in placed.items():
        for node in dict.fromkeys(nodes):
            numbers = [str(rank) for rank, other in enumerate(nodes) if other == node]
            by_node[node].append(f"{name} {', '.join(numbers)}")
    for node, names in by_node.items():
        logger.info("%s: %s", node_name(node), "; ".join(names))
    _check_folders(config, by_node, {node for ranks in pools if ranks.writes for node in placed[ranks.name]})
    return placed


def _check_folders(config: DictConfig, by_node: Mapping[str, Sequence[str]], writing: set[str]) -> None:
    others = [node for node in by_node if node != this_node()]
    if not others:
        return
    read = places_of_ranks(config)
    output = Path(config.trainer.default_local_dir).absolute()
    mark = output / f".seen_{uuid.uuid4().hex}"
    mark.touch()
    try:
        for node in others:
            wanted = {**read, **({_OUTPUT: str(mark)} if node in writing else {})}
            for key in run_on(node, _missing, wanted):
                raise ConfigError(key, _unseen(key, wanted[key], output, node, by_node[node]))
    finally:
        mark.unlink(missing_ok=True)


def _unseen(key: str, path: str, output: Path, node: str, names: Sequence[str]) -> str:
    who = f"{node_name(node)}, which has {'; '.join(names)}"
    if key == _OUTPUT:
        return (
            f"{output} of {who}, is another folder than that of {node_name(this_node())}, where the trainer runs; all "
            "ranks write their part of a checkpoint into one folder: choose one of a file system that all nodes share"
        )
    return f"{path} is not on {who}; copy it there under the same path, or choose a path of a shared file system"


def _missing(paths: Mapping[str, str]) -> list[str]:
    """Keys of what this node does not have. A file system over a network may show what is new only when asked anew."""
    found = []
    for key, path in paths.items():
        try:
            os.listdir(os.path.dirname(path))
        except OSError:
            found.append(key)
            continue
        if not os.path.exists(path):
            found.append(key)
    return found

# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of several nodes on this machine, as `ray start` makes it, beside whatever other Ray runs here.

Ports, folders and the secret are its own, and its processes are ended one by one: `ray stop` would end those of others.
Nodes have addresses of their own (127.0.0.N), so nothing can take two for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: Seconds a node gets to start.
START_S = 90.0

#: Bytes of a node's object store; by default Ray takes a third of the machine for each.
_STORE = 200_000_000

_ASK = """
import json, ray
ray.init(log_to_driver=False, configure_logging=False)
from verl_uae.compat import ray_actors
ips = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
found = [[actor["ActorClassName"], ips[actor["Address"]["NodeID"]]] for actor in ray_actors().values()]
print("ACTORS " + json.dumps(found))
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Node:
    """One of the cluster."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """As a machine that loses its power: everything at once, and nothing says goodbye."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
            for process in family:
                # Stopped first: whoever is left alive for a moment would start another one.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=20)
        self.process.wait(20)


@dataclass
class Cluster:
    """A running cluster.

    Args:
        folder: of its files.
    """

    folder: Path
    nodes: list[Node] = field(default_factory=list)
    """The head first."""

    def __post_init__(self) -> None:
        self.environment = {
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_worker_niceness": "0",
        }

    def add(self, *, cpus: int, gpus: int) -> Node:
        """Start a node with logical resources and wait for it; the first one is the head."""
        number = len(self.nodes)
        words = [f"--node-ip-address=127.0.0.{number + 1}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words += [f"--object-store-memory={_STORE}", "--disable-usage-stats", "--block"]
        # The nodes of one machine share a folder of logs, and one reader of it is enough.
        if number:
            words += [f"--address={self.environment['RAY_ADDRESS']}", "--include-log-monitor=false"]
        else:
            words += ["--head", "--port=0", "--include-dashboard=false", f"--ray-client-server-port={_free_port()}"]
        log = self.folder / f"node{number}.log"
        with open(log, "wb") as output:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
            process = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=output, stderr=subprocess.STDOUT
            )
        node = Node(process, log)
        self.nodes.append(node)
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in (text := log.read_text(errors="replace")):
            assert process.poll() is None and time.monotonic() < deadline, text[-3000:]
            time.sleep(0.1)
        if not number:
            self.environment["RAY_ADDRESS"] = (self.folder / "ray" / "ray_current_cluster").read_text().strip()
        return node

    def actors(self) -> list[tuple[str, str]]:
        """Class and node address of every actor that the cluster has had, by Ray's own account."""
        result = subprocess.run(
            [sys.executable, "-c", _ASK],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        lines = [line for line in result.stdout.splitlines() if line.startswith("ACTORS ")]
        assert lines, result.stdout + result.stderr
        return [(name, address) for name, address in json.loads(lines[0].removeprefix("ACTORS "))]


@contextlib.contextmanager
def cluster(*sizes: tuple[int, int]) -> Iterator[Cluster]:
    """A cluster with nodes of these (CPUs, GPUs), the head first; ended whatever happens.

    A node of a size knows nothing of the machine's true one: Ray reserves what it is told there is.
    """
    # Not pytest's folder, whose path is longer than the address of a socket may be.
    folder = Path(tempfile.mkdtemp(prefix="uae_"))
    made = Cluster(folder)
    try:
        for cpus, gpus in sizes:
            made.add(cpus=cpus, gpus=gpus)
        yield made
    finally:
        for node in reversed(made.nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)
